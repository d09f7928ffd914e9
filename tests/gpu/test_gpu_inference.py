"""Inference on a GPU: step by step as all at once, samples, distributions, chunks, the codec, the analysis."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import good, text
from gpu_runs import CUDA, PRETENDED, RunOf, close, on_both, run_of  # noqa: F401

from bytegolf.model.embed import BOS

pytestmark = pytest.mark.gpu

RUNS = ("cpu-demo", "cpu-gpt", "hnet-2stage", "hnet-2stage-L", "cpu-soft", "study1-sp1024")
every_run = pytest.mark.parametrize("name", RUNS)


def ids(vocabulary: int) -> torch.Tensor:
    """Three sequences of 24 random tokens, some of which begin documents."""
    found = torch.randint(4, min(vocabulary, 200), (3, 24), generator=torch.Generator().manual_seed(1))
    found[:, 0] = BOS
    found[1, 9] = BOS
    return found


@pytest.mark.parametrize(
    ("name", "apart"), [*((name, False) for name in RUNS), ("cpu-demo", True), ("hnet-2stage", True)]
)
def test_steps_are_the_forward_pass(name: str, apart: bool, run_of: RunOf) -> None:  # noqa: F811
    model = on_both(run_of(name))[1].module
    model.config = dataclasses.replace(model.config, reset_at_bos=apart)
    model.set_capacity("exact")
    tokens = ids(model.config.vocab_size).to(CUDA)
    with torch.no_grad():
        expected = model.cap(model(tokens).logits).cpu()
    state = model.start(3)
    some = model.extend(tokens[:, :9], state)
    rest = [model.step(tokens[:, at], state) for at in range(9, 12)]
    # the second and third sequence go on by different lengths, then each by itself
    model.extend(tokens[1:, 12:16], state, np.array([1, 2]), np.array([4, 2]))
    last = [model.step(tokens[1:2, 16], state, np.array([1])), model.step(tokens[2:, 14], state, np.array([2]))]
    assert some.device == CUDA
    close(torch.cat((some, torch.stack(rest, 1)), 1), expected[:, :12], atol=2e-3)
    close(torch.cat(last), torch.stack((expected[1, 16], expected[2, 14])), atol=2e-3)


@every_run
def test_distributions_and_scores_of_a_text(name: str, run_of: RunOf) -> None:  # noqa: F811
    cpu, gpu = on_both(run_of(name))
    some = "Fellow citizens, naïve café: 3.14."
    close(torch.from_numpy(gpu.log_probs(some)), torch.from_numpy(cpu.log_probs(some)), atol=1e-3)
    assert gpu.score(some).bpb == pytest.approx(cpu.score(some).bpb, rel=1e-3)
    assert gpu.logits([[BOS, 5, 6]]).device == CUDA
    if cpu.module.levels():
        assert gpu.chunks(some) == cpu.chunks(some) or not PRETENDED


@every_run
def test_samples(name: str, run_of: RunOf) -> None:  # noqa: F811
    cpu, gpu = on_both(run_of(name))
    for temperature in (0.0, 0.8):
        found = list(gpu.generate_bytes(["The", "", "We the people of"], [1, 2, 3], 12, temperature, 0.9))
        expected = list(cpu.generate_bytes(["The", "", "We the people of"], [1, 2, 3], 12, temperature, 0.9))
        assert found == expected or not PRETENDED
        assert sum(len(piece) for _, piece in found) <= 36


def test_the_codec_of_a_model_on_a_gpu_runs_on_the_cpu(run_of: RunOf) -> None:  # noqa: F811
    cpu, gpu = on_both(run_of("cpu-demo"))
    content = text(120).encode()
    packed = gpu.compress(content)
    assert packed == cpu.compress(content)
    assert gpu.decompress(packed) == content


def test_probabilities_for_the_codec_come_from_any_device(run_of: RunOf) -> None:  # noqa: F811
    from bytegolf.infer.frequencies import Decoder, Encoder
    from bytegolf.infer.streams import Mode, code_streams

    _, gpu = on_both(run_of("cpu-demo"))
    tokens = np.array([[BOS, 70, 71, 72, 73, 74, 75], [BOS, 90, 91, 92, 0, 0, 0]], np.uint16)
    coder, lengths = Encoder(), np.array([7, 4])
    code_streams(gpu.module, tokens.copy(), lengths, Mode(4, 2), coder, 4)
    found = np.zeros_like(tokens)
    found[:, 0] = BOS
    code_streams(gpu.module, found, lengths, Mode(4, 2), Decoder(coder.payload()), 4)
    assert (found == tokens).all()


@pytest.mark.parametrize("name", ["cpu-demo", "hnet-2stage", "cpu-soft"])
def test_the_analysis(name: str, run_of: RunOf, tmp_path: Path) -> None:  # noqa: F811
    run = run_of(name)
    options = ("--data", run.data, "--limit", 512, "--html", tmp_path / "page.html", "--json")
    (row,) = good("analyze", run.folder, *options, *(["--stability"] if name == "cpu-demo" else [])).json["models"]
    assert row["bytes"] > 0
    assert (tmp_path / "page.html").stat().st_size > 10_000
    good("segment", run.folder, "Fellow citizens", "--data", run.data)
