"""Scoring on a GPU: the CPU's bits per byte in every mode, test-time training and verification included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gpu_runs import RTOL, RunOf, bits, on_both, run_of  # noqa: F401

from bytegolf.config import MixConfig, TttConfig

pytestmark = pytest.mark.gpu

RUNS = ("cpu-gpt", "hnet-2stage", "hnet-2stage-L", "cpu-soft", "study1-sp1024")

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sliding": {"stride": 32},
    "sliding by one": {"stride": 1, "seq_len": 16},
    "fixed capacity": {"capacity": "fixed", "capacity_divisor": 4.0},
    "capacities in buckets": {"capacity": "bucketed", "stride": 48},
    "a receptive field": {"receptive_field": (24,), "seq_len": 256, "stride": 128},
    "lora": {"ttt": TttConfig("lora", documents=3), "stride": 64},
    "lora, carried on": {"ttt": TttConfig("lora", reset="never", matrices="mlp", steps=2)},
    "sgd": {"ttt": TttConfig("sgd")},
    "mixed with contexts": {"mix": MixConfig(on=True, megabytes=1)},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_score_is_the_cpus(mode: str, run_of: RunOf) -> None:  # noqa: F811
    run = run_of("cpu-demo")
    expected, found = (bits(model, run, model.mode(**MODES[mode])) for model in on_both(run))
    assert found == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_model(name: str, run_of: RunOf) -> None:  # noqa: F811
    run = run_of(name)
    scores = [
        [
            bits(model, run, model.mode(**changes), 128)
            for changes in ({}, {"stride": 64}, {"ttt": TttConfig("lora", lora_lr=0.01)})
        ]
        for model in on_both(run)
    ]
    assert scores[1] == pytest.approx(scores[0], rel=5 * RTOL)


def test_one_pass(run_of: RunOf) -> None:  # noqa: F811
    run = run_of("cpu-demo")
    expected, found = (bits(model, run, model.mode(stride=32), 512, one_pass=True) for model in on_both(run))
    assert found == pytest.approx(expected, rel=RTOL)


def test_bf16(run_of: RunOf) -> None:  # noqa: F811
    run = run_of("cpu-demo")
    model = on_both(run)[0], on_both(run, precision="bf16")[1]
    scores = [bits(each, run, each.mode(stride=64)) for each in model]
    assert scores[1] == pytest.approx(scores[0], rel=0.02)


def test_ttt_leaves_the_weights_as_they_were(run_of: RunOf) -> None:  # noqa: F811
    _, model = on_both(run_of("cpu-demo"))
    before = {name: tensor.cpu().clone() for name, tensor in model.module.state_dict().items()}
    model.evaluate(run_of("cpu-demo").data, model.mode(ttt=TttConfig("sgd", sgd_lr=0.1)), limit=256)
    assert all(tensor.cpu().equal(before[name]) for name, tensor in model.module.state_dict().items())


def test_a_batch_of_windows_fits_whatever_their_number(run_of: RunOf, tmp_path: Path) -> None:  # noqa: F811
    _, model = on_both(run_of("cpu-demo"))
    one, many = (model.evaluate(run_of("cpu-demo").data, model.mode(batch=batch), limit=256).bpb for batch in (1, 4))
    assert one == pytest.approx(many, rel=RTOL)
