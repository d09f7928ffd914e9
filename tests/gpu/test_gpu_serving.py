"""A GPU's model behind the page and the interface: texts read as they change, completions, drafts, public weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import public_hnet
import pytest
import torch
from commands import TinyRun
from gpu_runs import CUDA, PRETENDED, RunOf, close, on_both, run_of  # noqa: F401

import bytegolf
from bytegolf.artifact.public.opening import BUDGET

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["cpu-demo", "hnet-2stage", "cpu-soft"])
def test_a_text_is_read_as_it_changes(name: str, run_of: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for constant, value in {"SPACING": 16, "BEHIND": 4, "SHORT": 16, "ROUND": 8}.items():
        monkeypatch.setattr(f"bytegolf.analyze.incremental.{constant}", value)
    cpu, gpu = (model.reader() for model in on_both(run_of(name)))
    for data in (b"Fellow citizens of the Senate and", b"Fellow citizens of the Senote and", b"Fellow citizens"):
        found, expected = gpu.read(data), cpu.read(data)
        close(torch.from_numpy(found.reading.bits), torch.from_numpy(expected.reading.bits), atol=1e-3)
        close(torch.from_numpy(found.expected.p), torch.from_numpy(expected.expected.p), atol=1e-3)
        assert found.computed == expected.computed
        for one, two in zip(found.reading.levels, expected.reading.levels, strict=True):
            assert (one.boundary == two.boundary).all() or not PRETENDED


def answered(model: bytegolf.Model) -> list[dict[str, Any]]:
    """A completion with all that it may have."""
    from bytegolf.tools.serve.answers import CompletionRequest
    from bytegolf.tools.serve.completions import Order, drawing
    from bytegolf.tools.serve.served import Served

    served = Served("model", model, model.reader())
    asked = CompletionRequest(["The", "We"], max_tokens=6, temperature=0, logprobs=3, echo=True)
    return [piece for piece in drawing(Order.of(asked, served, 1000)) if piece]


def test_completions_with_log_probabilities(run_of: RunOf) -> None:  # noqa: F811
    found, expected = (answered(model) for model in reversed(on_both(run_of("cpu-demo"))))
    if PRETENDED:
        assert [piece["text"] for piece in found] == [piece["text"] for piece in expected]
        values = [
            [value for piece in pieces for value in (piece["logprobs"] or {}).get("token_logprobs", []) if value]
            for pieces in (found, expected)
        ]
        assert values[0] == pytest.approx(values[1], abs=1e-3)
    assert len(found) == 2 + 12


def test_drafts_write_what_would_be_written_without(run_of: RunOf) -> None:  # noqa: F811
    _, gpu = on_both(run_of("cpu-demo"))
    drafted, plain = (list(gpu.generate_bytes(["The"], [1], 12, 0.8, 0.9, draft=draft)) for draft in (3, 0))
    assert drafted == plain or not PRETENDED


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A public H-Net of two stages with Mamba-2, in bf16."""
    config = public_hnet.public(["m1", ["T1m1", ["T1"], "m1T1"], "m1"], (64, 64, 96))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGET, "seq_len", 64)
        weights = public_hnet.weights(config, torch.bfloat16)
        yield public_hnet.write(tmp_path_factory.mktemp("public"), config, weights)


def test_public_weights_mapped_from_their_file(public: Path) -> None:
    """In bf16 as they lie there, moved to the device; forward, steps and samples are the CPU's."""
    cpu, gpu = (bytegolf.load(public, device=device, precision="fp32") for device in ("cpu", "cuda"))
    kept = {tensor.dtype for tensor in cpu.module.state_dict().values()}
    assert torch.bfloat16 in kept
    assert {tensor.dtype for tensor in gpu.module.state_dict().values()} == kept
    assert {tensor.device for tensor in gpu.module.state_dict().values()} == {CUDA}
    some = "Fellow citizens, naïve café."
    close(torch.from_numpy(gpu.log_probs(some)), torch.from_numpy(cpu.log_probs(some)), atol=1e-2)
    found, expected = (model.reader().read(some.encode()) for model in (gpu, cpu))
    close(torch.from_numpy(found.reading.bits), torch.from_numpy(expected.reading.bits), atol=2e-2)
    tokens = np.frombuffer(some.encode(), np.uint8).astype(np.int64)
    state = gpu.module.start(1)
    with torch.no_grad():
        first = gpu.module.extend(torch.from_numpy(tokens[None, :20]).to(CUDA), state)
        last = gpu.module.step(torch.from_numpy(tokens[20:21]).to(CUDA), state)
        whole = gpu.module.cap(gpu.module(torch.from_numpy(tokens[None, :21]).to(CUDA)).logits)
    close(torch.cat((first, last[None]), 1), whole.cpu(), atol=1e-2)


def test_a_file_mixed_with_contexts(run_of: RunOf, tmp_path: Path) -> None:  # noqa: F811
    run: TinyRun = run_of("cpu-demo")
    from commands import good

    common = ("--data", run.data, "--limit", 256, "--mix", "--json")
    scores = [good("eval", run.folder, *common, "--device", device).json["bpb"] for device in ("cpu", "cuda")]
    assert scores[1] == pytest.approx(scores[0], rel=5e-3)
