"""The package's Muon, Adam and learning rates against the specification."""

from __future__ import annotations

from typing import Any

import adapter
import numpy as np
import pytest
import specified_training as spec
import torch
from test_specification import batch_of_ids

BF16 = 2.0**-8
"""The relative error of a number rounded to bf16, as updates are."""


@pytest.mark.parametrize("splits", [(12,), (8, 3, 3), (40,)])
def test_muon(splits: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed matrices (q, k, v) are orthogonalised one by one."""
    monkeypatch.setattr(*adapter.FP32_ITERATIONS)
    random, rows = np.random.default_rng(0), sum(splits)
    weight = random.normal(size=(rows, 10))
    run = adapter.MuonRun(weight, splits)
    parts = np.split(weight, np.cumsum(splits)[:-1])
    momenta = [np.zeros_like(part) for part in parts]
    for step in range(3):
        gradient = random.normal(size=weight.shape)
        mu = spec.muon_momentum(step * 200)
        before = parts
        for i, g in enumerate(np.split(gradient, np.cumsum(splits)[:-1])):
            parts[i], momenta[i] = spec.muon_step(before[i], momenta[i], g, lr=0.04, mu=mu, decay=0.1)
        got, wanted = run.step(gradient, 0.04, mu, 0.1), np.concatenate(parts)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=0.04 * 2 * BF16 * (step + 1))


@pytest.mark.parametrize("what", ["coefficients", "no Nesterov", "no scale", "one matrix"])
def test_another_muon_fails(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*adapter.FP32_ITERATIONS)
    random = np.random.default_rng(0)
    weight, first, second = random.normal(size=(3, 40, 10))
    run = adapter.MuonRun(weight, (20, 20) if what == "one matrix" else (40,))
    got = [run.step(gradient, 0.04, 0.9, 0.0) for gradient in (first, second)][-1]
    if what == "coefficients":
        monkeypatch.setattr(spec, "NEWTON_SCHULZ", (3.0, -3.2, 1.2))
    wanted, momentum = weight, np.zeros_like(weight)
    for gradient in (first, second):
        if what == "no Nesterov":
            momentum = 0.9 * momentum + gradient
            wanted = wanted - 0.04 * 2 * spec.orthogonalize(momentum, 5)
        elif what == "no scale":
            after, momentum = spec.muon_step(wanted, momentum, gradient, 0.04, 0.9)
            wanted = wanted + (after - wanted) / 2
        else:
            wanted, momentum = spec.muon_step(wanted, momentum, gradient, 0.04, 0.9)
    assert np.abs(got - wanted).max() > 0.04 * 8 * BF16


def test_the_optimizer_gives_each_parameter_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of S1: Muon on matrices, Adam at one rate on the tied embedding and at another on the rest.

    With parameters in fp64 only Newton–Schulz rounds: its bf16 inputs, which fp32 parameters get, would hide much.
    """
    monkeypatch.setattr(*adapter.FP32_ITERATIONS)
    model, batch = adapter.build("S1", parameters=torch.float64), batch_of_ids()
    optimizer = adapter.build_optimizer(model)
    weights = adapter.weights_of(model)
    momenta: dict[str, list[Any]] = {}
    adam: dict[str, spec.AdamState] = {}
    factor = 0.5
    for step in (0, 1, 2):
        gradients = adapter.train_step(model, optimizer, batch, factor, step)
        mu, got = spec.muon_momentum(step), adapter.weights_of(model)
        for name, g in gradients.items():
            old = weights[name]
            if g.ndim == 1 or name.endswith(("resid_mix", "skip_weights", "embedding.weight")):
                state = adam.setdefault(name, spec.AdamState(np.zeros_like(g), np.zeros_like(g)))
                lr = factor * (0.05 if name == "embedding.weight" else 0.04)
                wanted = spec.adam_step(old, state, g, lr, 0.9, 0.95, 1e-8)
                tolerance = 1e-9
            else:
                # q, k and v of a block are packed, and are three matrices
                rows = np.cumsum((16, 8)) if "qkv" in name else []  # type: ignore[var-annotated]
                parts, slopes = np.split(old, rows), np.split(g, rows)
                moved = momenta.setdefault(name, [np.zeros_like(part) for part in parts])
                for i, slope in enumerate(slopes):
                    parts[i], moved[i] = spec.muon_step(parts[i], moved[i], slope, factor * 0.04, mu)
                wanted, tolerance = np.concatenate(parts), factor * 0.04 * 2 * BF16
            np.testing.assert_allclose(got[name], wanted, rtol=0, atol=tolerance, err_msg=name)
            assert np.abs(got[name] - old).max() > 10 * tolerance, name
        weights = got


@pytest.mark.parametrize("step", [0, 1, 5, 59, 60, 61, 80, 99, 100])
def test_rate_in_steps(step: int) -> None:
    got = adapter.rate(step, 0.0, max_steps=100, decay_fraction=0.4, lr_warmup_steps=4)
    assert got == pytest.approx(min(spec.warmup(step, 4), spec.decay_over_share(step / 100, 0.4)))


@pytest.mark.parametrize(
    ("step", "seconds"), [(0, 0.0), (10, 30.0), (250, 500.0), (400, 560.0), (500, 599.0), (1, 601.0)]
)
def test_rate_in_time(step: int, seconds: float) -> None:
    """S0's warmdown, and a share of the time."""
    got = adapter.rate(step, seconds, max_seconds=600, decay_steps=120)
    assert got == pytest.approx(spec.warmdown(step, seconds, 600, 120))
    got = adapter.rate(step, seconds, max_seconds=600, decay_fraction=0.25)
    assert got == pytest.approx(spec.decay_over_share(seconds / 600, 0.25))
