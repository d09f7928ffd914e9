"""GPTQ: better than plain rounding on correlated inputs, never worse, from training data alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TinyRun, good, refused, small
from conftest import ModelMaker
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import tiny_config, write_stream

from bytegolf.api import run as training
from bytegolf.artifact import export as exporting
from bytegolf.artifact import gptq, quantize
from bytegolf.artifact.gptq import output_error, quantize_state, sample_windows, second_moments, solve
from bytegolf.artifact.pack import read_artifact
from bytegolf.artifact.payload import levels
from bytegolf.artifact.quantize import (
    QuantizedTensor,
    Storage,
    dequantize,
    plan_of,
    quantize_rows,
    quantizer,
    row_scales,
)
from bytegolf.artifact.run_folder import RunFolder
from bytegolf.config import Config, ExportConfig
from bytegolf.data.dataset import TokenStream, open_split
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import Linear
from bytegolf.model.lm import outline
from bytegolf.progress import Reporter
from bytegolf.training.schedule import training_budget


def correlated(inputs: int, samples: int, seed: int = 0) -> torch.Tensor:
    """Inputs that a few directions explain, as activations are."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs // 4, inputs, generator=rng)
    return torch.randn(samples, inputs // 4, generator=rng) @ mix + 0.1 * torch.randn(samples, inputs, generator=rng)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_it_beats_plain_rounding_where_inputs_are_correlated(bits: int) -> None:
    x, other = correlated(300, 4000), correlated(300, 500)
    weight = torch.randn(64, 300)
    plain, scale = quantize_rows(weight, bits)
    codes, solved_scale = solve(weight, x.mT @ x, Storage(f"int{bits}_row"))
    assert torch.equal(scale, solved_scale), "one quantiser: the same scales"
    assert int(codes.abs().max()) <= levels(bits)
    for inputs in (x, other):  # those it has seen, and others of the same kind
        errors = [(inputs @ (c * scale[:, None].float() - weight).mT).square().sum() for c in (codes, plain)]
        assert errors[0] <= 0.5 * errors[1]


@given(
    st.integers(1, 6), st.integers(1, 40), st.sampled_from([3, 5, 8]), st.sampled_from([0.0, 0.3]), st.integers(0, 9)
)
def test_no_row_is_worse_than_plain_rounding(rows: int, inputs: int, bits: int, prune: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(1 + seed, inputs, generator=rng)  # fewer samples than inputs: a singular Hessian
    x[:, seed % inputs] = 0.0  # and an input that never was
    weight = torch.randn(rows, inputs, generator=rng)
    plain, scale = quantize_rows(weight, bits, prune)
    codes, solved_scale = solve(weight, x.mT @ x, Storage(f"int{bits}_row", prune))
    assert torch.equal(scale, solved_scale)
    by = quantizer(f"int{bits}_row")
    found, before = (output_error(by, weight, c, scale, x.mT @ x) for c in (codes, plain))
    assert bool((found <= before).all())
    assert bool(((codes == 0).sum(1) >= int(prune * inputs)).all())


def test_uncorrelated_inputs_leave_plain_rounding() -> None:
    weight = torch.randn(16, 40)
    codes, _ = solve(weight, torch.eye(40), Storage("int4_row"))
    assert torch.equal(codes, quantize_rows(weight, 4)[0])


def test_more_columns_than_a_block_are_one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = correlated(40, 400), torch.randn(8, 40)
    whole = solve(weight, x.mT @ x, Storage("int4_row"))
    monkeypatch.setattr(gptq, "BLOCK", 7)
    parts = solve(weight, x.mT @ x, Storage("int4_row"))
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], row_scales(weight, 4))


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(BytegolfError, match="second moments are not finite"):
        solve(torch.randn(3, 4), torch.full((4, 4), float("nan")), Storage("int4_row"))


# ---------------------------------------------------------------------------------------------- calibration


def test_second_moments_are_those_of_the_inputs(tmp_path: Path, make_model: ModelMaker) -> None:
    model, stream = make_model("one-level").eval(), write_stream(tmp_path, "train", 20, seed=1)
    seen: dict[str, list[torch.Tensor]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=f"{path}.weight": seen.setdefault(name, []).append(args[0].flatten(0, -2))
            )
    names = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Linear)}
    found = second_moments(model, sample_windows(stream, 32, 3 * 32), names)
    assert found.keys() == seen.keys() == names
    for name, moments in found.items():
        x = torch.cat(seen[name])
        torch.testing.assert_close(moments, x.mT @ x, rtol=1e-4, atol=1e-4)
        assert len(x) == 96 if "main" not in name else 4 < len(x) < 96, "a main network's chunks, and no padding"
    assert second_moments(model, sample_windows(stream, 32, 1), {"none"}) == {}
    before = len(seen["network.residual.weight"])
    second_moments(model, sample_windows(stream, 32, 1), names)
    assert len(seen["network.residual.weight"]) == before + 1, "a window at least; and its own hooks are gone"


def test_windows_lie_over_the_whole_stream(tmp_path: Path) -> None:
    stream, starts = write_stream(tmp_path, "train", 2, seed=1), []

    class Watched(TokenStream):
        def slice(self, start: int, end: int) -> np.ndarray:
            starts.append((start, end - start))
            return super().slice(start, end)

    watched = Watched(stream.paths, 260)
    for tokens, count in ((32 * 3, 3), (1 << 30, (len(stream) - 1) // 32)):
        starts.clear()
        assert sample_windows(watched, 32, tokens).shape == (count, 33)
        assert len(starts) == count
        assert starts[0] == (0, 33)
        assert starts[-1] == (len(stream) - 33, 33)


def test_a_state_is_solved_where_it_has_moments(make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "SMALL_NUMEL", 64)
    state = make_model("flat").state_dict()
    name = "blocks.0.mlp.fc.weight" if "blocks.0.mlp.fc.weight" in state else "network.blocks.0.mlp.fc.weight"
    x = correlated(state[name].shape[1], 200)
    stored = quantize_state(state, plan_of(state, {}, ExportConfig(bits=4)), {name: x.mT @ x}, 0.01)
    solved = stored[name]
    assert isinstance(solved, QuantizedTensor)
    assert solved.quantizer == "int4_row"
    assert dequantize(solved).shape == state[name].shape
    assert all(stored[other] is state[other] for other in state if other != name)


# ---------------------------------------------------------------------------------------------- through the verbs


SMALL_BITS = ("export.bits=4", "export.gptq=true", "export.gptq_tokens=1024")


@pytest.fixture
def toy_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every tensor of a tiny model is small enough for fp16."""
    monkeypatch.setattr(quantize, "SMALL_NUMEL", 256)


@pytest.mark.usefixtures("toy_rows")
def test_export_reads_training_data_only(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = open_split

    def watched(data: Path, tokenizer: str, split: str, vocab_size: int) -> TokenStream:
        assert split == "train", "validation data must not be looked at"
        opened.append(split)
        return original(data, tokenizer, split, vocab_size)

    monkeypatch.setattr(exporting, "open_split", watched)
    result = good("export", tiny_run.folder, *SMALL_BITS, "--out", tmp_path / "solved", "--json").json
    assert opened == ["train"]
    assert result["gptq_seconds"] > 0
    good("export", tiny_run.folder, "export.bits=4", "export.coder=range", "--out", tmp_path / "plain")
    assert opened == ["train"], "plain rounding looks at no data"
    solved, rounded = (read_artifact(tmp_path / name) for name in ("solved", "plain"))
    different = {name for name in solved.state if not torch.equal(solved.state[name], rounded.state[name])}
    maps = {
        f"{path}.weight" for path, module in outline(solved.config.model).named_modules() if isinstance(module, Linear)
    }
    assert different
    assert different <= maps, "embedding and tables are rounded plainly"
    assert solved.config.export.bits == 4
    assert solved.info["gptq_seconds"] >= 0
    assert good("eval", tmp_path / "solved", "--data", tiny_run.data, "--limit", 512, "--json").json["bpb"] > 0


def test_what_cannot_be_changed_after_training(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x")
    assert "cannot be changed after training" in refused("export", tiny_run.folder, "model.softcap=3", *out)
    assert "cannot be changed after training" in refused("export", tiny_run.folder, "bits=3", *out)
    assert "up to 8" in refused("export", tiny_run.folder, "export.bits=9", *out)
    assert "give 3 to 8" in refused("export", tiny_run.folder, "export.ngram_bits=2", *out)
    assert "did you mean export.gptq" in refused("export", tiny_run.folder, "export.gptp=true", *out)
    assert not list(tmp_path.iterdir())


def test_missing_training_data_is_named(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(RunFolder(tiny_run.folder).read_config())
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path / "gone")))
    monkeypatch.setattr(
        RunFolder,
        "read_config",
        lambda self, overrides=(): dataclasses.replace(moved, export=ExportConfig(gptq=True)),
    )
    monkeypatch.setattr(
        "bytegolf.artifact.run_folder.DataIdentity.read", lambda path: None
    )  # nor where they lay before
    assert "gone" in refused("export", tiny_run.folder, "--out", tmp_path / "x")


@pytest.mark.usefixtures("toy_rows")
def test_training_ends_with_it_and_counts_its_time(tiny_data: Path, tmp_path: Path) -> None:
    changes = (*small(), *SMALL_BITS, "train.qat_from=0.5", "eval.unquantised=true", "train.max_seconds=600")
    ran = good(
        "train", "cpu-demo", *changes, "export.gptq_seconds=60", "--data", tiny_data, "--out", tmp_path, "--json"
    )
    summary = ran.json
    assert "training with quantised weights from step" in ran.err
    assert summary["gptq_seconds"] > 0
    assert summary["train_seconds"] > summary["gptq_seconds"]
    assert summary["bpb_unquantised"] != summary["bpb"]
    assert summary["bpb_unquantised"] == pytest.approx(summary["bpb"], abs=0.5)
    assert summary["validation_bpb_sample"] != summary["validation_bpb_unquantised_sample"]
    gap = f"({summary['bpb'] - summary['bpb_unquantised']:+.4f}); GPTQ took"
    assert gap in " ".join(ran.err.split())  # lines may be wrapped
    artifact = read_artifact(tmp_path / "artifact.bgolf")
    assert artifact.info["train_seconds"] == pytest.approx(summary["train_seconds"], abs=0.11)
    sample = ("--limit", Config.load("cpu-demo", changes).train.validate_tokens)
    assert good("eval", tmp_path, *sample, "--json").json["bpb"] == pytest.approx(summary["validation_bpb_sample"])


def test_a_budget_that_it_oversteps_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(max_seconds=100.0)
    for trained, spent, warned in ((90.0, 9.0, False), (99.5, 9.0, True), (100.1, 0.0, False)):
        training._check_reserve(config, trained, spent, Reporter())
        assert ("GPTQ took" in capsys.readouterr().err) == warned
    reserving = dataclasses.replace(config, export=ExportConfig(gptq=True, gptq_seconds=20.0))
    assert training_budget(reserving).max_seconds == 80.0
    assert training_budget(dataclasses.replace(reserving, export=ExportConfig(gptq_seconds=20.0))) == config.train
    with pytest.raises(BytegolfError, match="leaves nothing"):
        dataclasses.replace(config, export=ExportConfig(gptq=True, gptq_seconds=100.0))
