"""The package's gradients against finite differences of the specification's objective, at every kind of parameter.

What is not differentiated by its value is written with sg, a stop-gradient (``StopGradient``): the straight-through
confidence is c + sg(1 − c), a gradient scaled by λ is λx + sg((1 − λ)x), boundaries are sg(p ≥ ½). The difference
quotient keeps what sg got at the middle, so it is the derivative of the surrogate that these formulas define.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import adapter
import numpy as np
import pytest
import specification as spec
import specified_transformer
import torch
from numpy.typing import NDArray
from test_specification import batch_of_ids

STEP = 1e-5


def slopes(
    objective: Callable[[dict[str, NDArray[np.float64]]], float],
    weights: dict[str, NDArray[np.float64]],
    name: str,
    direction: NDArray[np.float64],
) -> float:
    """The central difference quotient along ``direction`` of one parameter."""
    up, down = (objective(weights | {name: weights[name] + sign * STEP * direction}) for sign in (1, -1))
    return (up - down) / (2 * STEP)


def wrong_parameters(
    name: str, reset: bool, replays: bool = True, only: Sequence[str] = ("",)
) -> tuple[list[str], list[str]]:
    """The parameters whose gradient is not the specification's, and all that were compared: those named ``…only…``.

    Two directions each: one entry, and random signs at all entries, in which a single wrong one shows.
    """
    model = adapter.build(name, reset, parameters=torch.float64)
    batch, random = batch_of_ids()[1:, :13], np.random.default_rng(0)
    weights, found = adapter.weights_of(model), adapter.gradients(model, batch)
    sg = specified_transformer.StopGradient()
    ids = batch.tolist()
    spec.objective(adapter.specified(model, weights, exact_tables=False), ids, sg)  # records

    def objective(changed: dict[str, NDArray[np.float64]]) -> float:
        if replays:
            sg.replay()
            return spec.objective(adapter.specified(model, changed, exact_tables=False), ids, sg)
        return spec.objective(adapter.specified(model, changed, exact_tables=False), ids)

    wrong = []
    compared = [parameter for parameter in found if any(part in parameter for part in only)]
    for parameter in compared:
        gradient = found[parameter]
        # the entry with the largest gradient: most rows of a table have none
        one = np.zeros(gradient.size)
        one[np.abs(gradient).argmax()] = 1
        signs = random.choice([-1.0, 1.0], gradient.shape)
        for direction in (one.reshape(gradient.shape), signs):
            slope = slopes(objective, weights, parameter, direction)
            if abs(slope - float((gradient * direction).sum())) > 1e-6 * max(1, abs(slope)):
                wrong.append(parameter)
    return sorted(set(wrong)), compared


@pytest.mark.parametrize(
    ("name", "reset"),
    [
        ("S0", False),
        ("S0-local", True),
        ("S1-wide", True),
        ("S2", True),
        ("S3", False),
        ("two-levels", False),
        ("hashes", True),
    ],
)
def test_gradients_are_those_of_the_surrogate(name: str, reset: bool) -> None:
    wrong, compared = wrong_parameters(name, reset)
    assert wrong == []
    model = adapter.build(name, reset)
    # all but the skip weights of stacks too short for skips
    assert set(compared) == {each for each, parameter in model.named_parameters() if parameter.requires_grad}


def test_without_the_stop_gradients_they_are_others() -> None:
    """The objective's own derivative lacks the confidence's gradient, which reaches all in front of the router."""
    parts = ("embedding", "router", "residual", "decoder.blocks.0")
    wrong, compared = wrong_parameters("S2", reset=False, replays=False, only=parts)
    assert {name for name in compared if "decoder" not in name} == set(wrong) | {"network.residual.weight"}
    assert any("decoder" in name for name in compared)


def test_the_straight_through_estimator_by_hand() -> None:
    """d/dp of 3·STE(1 − p) + λ-scaled 2p at λ = ¾: −3 + 1.5."""
    sg = specified_transformer.StopGradient()

    def f(p: float) -> float:
        scaled = specified_transformer.scale_gradient(np.array([2 * p]), 0.75, sg)
        return 3 * specified_transformer.straight_through(1 - p, sg) + float(scaled[0])

    assert f(0.2) == pytest.approx(3 + 0.4)
    sides = []
    for p in (0.2 + STEP, 0.2 - STEP):
        sg.replay()
        sides.append(f(p))
    assert (sides[0] - sides[1]) / (2 * STEP) == pytest.approx(-3 + 1.5)
