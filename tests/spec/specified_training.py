"""Training as equations: Muon, Adam, and the learning rate over a run (S0)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from specified_transformer import Matrix

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(g: Matrix, steps: int) -> Matrix:
    """Newton–Schulz: X ← aX + (bA + cA²)X with A = XXᵀ, from X = G/‖G‖; all singular values go to about 1."""
    a, b, c = NEWTON_SCHULZ
    x = g / (np.linalg.norm(g) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def muon_momentum(step: int, start: float = 0.85, end: float = 0.95, steps: int = 500) -> float:
    """μ at a step (from 0): rises linearly from start to end."""
    share = min(1.0, step / steps)
    return (1 - share) * start + share * end


def muon_step(
    weight: Matrix, momentum: Matrix, gradient: Matrix, lr: float, mu: float, ns_steps: int = 5, decay: float = 0.0
) -> tuple[Matrix, Matrix]:
    """The new weight and momentum: m ← μm + g; W ← (1 − lr·decay)·W − lr·√max(1, rows/columns)·NS(g + μm)."""
    momentum = mu * momentum + gradient
    update = orthogonalize(gradient + mu * momentum, ns_steps)
    rows, columns = weight.shape
    return (1 - lr * decay) * weight - lr * math.sqrt(max(1, rows / columns)) * update, momentum


@dataclass
class AdamState:
    """Moments of one tensor."""

    m: Matrix
    v: Matrix
    steps: int = 0


def adam_step(weight: Matrix, state: AdamState, g: Matrix, lr: float, b1: float, b2: float, eps: float) -> Matrix:
    """The new weight: W − lr·m̂/(√v̂ + ε); ``state`` moves on."""
    state.steps += 1
    state.m = b1 * state.m + (1 - b1) * g
    state.v = b2 * state.v + (1 - b2) * g * g
    m, v = state.m / (1 - b1**state.steps), state.v / (1 - b2**state.steps)
    return weight - lr * m / (np.sqrt(v) + eps)


def warmup(step: int, steps: int) -> float:
    """The linear rise: (step + 1)/steps, at most 1."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def decay_over_share(done: float, share: float) -> float:
    """Linear to 0 over the last ``share`` of the budget, of which ``done`` is used."""
    return min(1.0, max(0.0, 1 - done) / share)


def warmdown(step: int, seconds: float, max_seconds: float, steps: int) -> float:
    """S0's decay under a wall-clock cap: linear to 0 over the time that ``steps`` steps take at the mean pace."""
    if step == 0:
        return 1.0
    duration = steps * seconds / step
    return min(1.0, max(0.0, max_seconds - seconds) / duration)
