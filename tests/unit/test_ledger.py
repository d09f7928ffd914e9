"""The ledger: every byte is in exactly one row."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bytegolf.artifact.pack import write_artifact
from bytegolf.artifact.quantize import group_of
from bytegolf.artifact.results import LIMIT, LedgerRow
from bytegolf.config import Config, HNetConfig, ModelConfig, RouterConfig, StackConfig, TrainConfig
from bytegolf.errors import BytegolfError
from bytegolf.results import to_json
from bytegolf.tools.bundle.ledger import account, measure, table
from bytegolf.tools.bundle.script import code_bytes

STACK = StackConfig(layers=1, dim=8, heads=2, kv_heads=1)
CONFIG = Config(
    name="tiny",
    about="a test's model",
    model=ModelConfig(network=HNetConfig(encoder=STACK, router=RouterConfig(4.0), main=STACK, decoder=STACK)),
    train=TrainConfig(seq_len=8, batch_tokens=16, max_steps=1),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = torch.Generator().manual_seed(0)
    state = {
        "embedding.weight": torch.randn(260, 256, generator=rng),
        "network.encoder.blocks.0.mlp.fc.weight": torch.randn(300, 256, generator=rng),
        "network.encoder.blocks.0.mlp.proj.weight": torch.zeros(256, 300),
        "network.encoder.blocks.0.mlp_scale": torch.ones(256),
        "network.encoder.skip_weights": torch.ones(1, 256),
        "network.router.q_proj.weight": torch.eye(256),
    }
    path = tmp_path_factory.mktemp("ledger") / "model"
    write_artifact(path, state, CONFIG, {})
    return path


def test_rows_add_up_to_the_file_and_the_code(file: Path) -> None:
    ledger = measure(file)
    assert ledger.model_bytes == file.stat().st_size
    assert sum(row.packed_bytes for row in ledger.rows) == ledger.total_bytes
    assert ledger.total_bytes == ledger.model_bytes + code_bytes(CONFIG)
    rows = {row.group: row for row in ledger.rows}
    mlp = rows["network.encoder mlp"]
    assert (mlp.tensors, mlp.parameters) == (2, 2 * 300 * 256)
    assert mlp.raw_bytes == 2 * 300 * 256 + 2 * (300 + 256)
    assert rows["network.router.q_proj"].raw_bytes == 256 * 256 * 2
    assert rows["network.encoder scales"].raw_bytes == 2 * 256 * 4
    # the random embedding of the same size must cost more than the half-empty MLP's other half
    assert rows["embedding"].packed_bytes > 0.4 * mlp.packed_bytes
    assert ledger.fits


def test_limit_is_decimal_and_inclusive() -> None:
    row = LedgerRow("code", 0, 0, 1, 1)
    assert account([row], LIMIT - 1, 1).fits
    assert not account([row], LIMIT, 1).fits
    assert LIMIT == 16_000_000


def test_json(file: Path) -> None:
    plain = json.loads(json.dumps(to_json(measure(file))))
    assert plain["total_bytes"] == plain["model_bytes"] + plain["code_bytes"]
    assert plain["fits"] is True
    assert {"group", "tensors", "parameters", "raw_bytes", "packed_bytes", "bits_per_weight"} == plain["rows"][0].keys()


def test_groups() -> None:
    assert group_of("network.main.encoder.blocks.11.mixer.proj.weight") == "network.main.encoder mixer"
    assert group_of("network.blocks.0.mixer.q_gain") == "network mixer"
    assert group_of("blocks.0.mixer_scale") == "scales"
    assert group_of("network.skip_weights") == "network scales"
    assert group_of("network.residual.weight") == "network.residual"
    assert group_of("pad") == "pad"
    assert group_of("weight") == "weight"


@pytest.mark.parametrize("terminal", [False, True])
def test_table(file: Path, terminal: bool) -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=terminal, width=80, _environ={"TERM": "xterm"}).print(table(measure(file)))
    text = out.getvalue()
    assert "network.encoder mlp" in text
    assert "16,000,000: fits," in text
    assert ("\x1b[" in text) == terminal
    big = io.StringIO()
    Console(file=big, width=80).print(table(account([], LIMIT, 5)))
    assert "5 bytes too large" in big.getvalue()


def test_an_artifact_without_tensors(tmp_path: Path) -> None:
    write_artifact(tmp_path / "empty", {}, CONFIG, {})
    ledger = measure(tmp_path / "empty")
    assert sum(row.packed_bytes for row in ledger.rows) == ledger.total_bytes


def test_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(BytegolfError, match="not a bytegolf artifact"):
        measure(tmp_path / "x")
