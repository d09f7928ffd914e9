"""S0's transformer as equations, and the stop-gradient that gradients by finite differences need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

NORM_EPS = 2.0**-23
"""ε of every RMS norm: fp32's machine epsilon (S0)."""


# --- stop-gradient: for gradients by finite differences -------------------------------------------------------------


class StopGradient:
    """sg(x): x itself, which differentiation takes for a constant.

    A finite difference evaluates a function at several points, so "constant" means: the value that x had at the point
    where the derivative is taken. The first evaluation records the values in order; after ``replay`` later evaluations
    get the recorded ones instead of their own. Boundaries are constants as well.
    """

    def __init__(self) -> None:
        self._recorded: list[Any] = []
        self._next: int | None = None

    def replay(self) -> None:
        """From now on (until called again: from the beginning again) give what was recorded."""
        self._next = 0

    def __call__(self, value: Any) -> Any:
        if self._next is None:
            self._recorded.append(value)
            return value
        self._next += 1
        return self._recorded[self._next - 1]


def straight_through(c: float, sg: StopGradient) -> float:
    """STE(c) of the paper: 1 forward, the gradient of c backward."""
    return c + sg(1 - c)  # type: ignore[no-any-return]


def scale_gradient(x: Vector, factor: float, sg: StopGradient) -> Vector:
    """x forward, ``factor`` times the gradient backward (S2's "LR diff")."""
    return factor * x + sg((1 - factor) * x)  # type: ignore[no-any-return]


# --- S0: the transformer --------------------------------------------------------------------------------------------


def rms_norm(x: Vector) -> Vector:
    """x / √(mean(x²) + ε), without a learned gain."""
    return x / np.sqrt(np.mean(x * x) + NORM_EPS)  # type: ignore[no-any-return]


def rotary_table(position: int, width: int, base: float) -> tuple[Vector, Vector]:
    """cos and sin of the angles position · base^(−2i/width) for i < width/2."""
    angles = np.array([position * base ** (-2 * i / width) for i in range(width // 2)])
    return np.cos(angles), np.sin(angles)


def rotate(x: Vector, cos: Vector, sin: Vector) -> Vector:
    """Rotary embedding of one head: its halves (u, v) become (u·cos + v·sin, v·cos − u·sin)."""
    u, v = np.split(x, 2)
    return np.concatenate((u * cos + v * sin, v * cos - u * sin))


def softmax(x: Vector) -> Vector:
    """exp(x) / Σ exp(x)."""
    e = np.exp(x - x.max())
    return e / e.sum()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Block:
    """The parameters of one transformer block; H query heads, G key/value heads, K = D/H."""

    w_q: Matrix  # (H·K, D)
    w_k: Matrix  # (G·K, D)
    w_v: Matrix  # (G·K, D)
    w_o: Matrix  # (D, H·K)
    q_gain: Vector  # (H,)
    w_1: Matrix  # (hidden, D)
    w_2: Matrix  # (D, hidden)
    mix: Matrix  # (2, D): of the stream and of the stack's input
    attention_scale: Vector  # (D,)
    mlp_scale: Vector  # (D,)


@dataclass(frozen=True)
class Stack:
    """Blocks of one resolution."""

    blocks: list[Block]
    skip_weights: Matrix  # (⌊blocks/2⌋, D)
    heads: int
    kv_heads: int
    window: int
    """positions that a query sees, itself included; 0 = all"""
    rope_base: float
    norms_input: bool = True
    """False for the first stack behind the soft chunker (S1)"""
    rotary_table: Callable[[int, int, float], tuple[Vector, Vector]] = rotary_table


def run_block(stack: Stack, block: Block, x: list[Vector], x0: list[Vector], document: Sequence[int]) -> list[Vector]:
    """One block over a sequence; position t sees the keys j ≤ t of its own document within the window."""
    heads, groups = stack.heads, stack.kv_heads
    width = len(block.w_q) // heads
    keys: list[list[Vector]] = []  # of every position so far, a key per group: the cache of step-wise inference
    values: list[list[Vector]] = []
    out = []
    for t in range(len(x)):
        stream = block.mix[0] * x[t] + block.mix[1] * x0[t]

        u = rms_norm(stream)
        cos, sin = stack.rotary_table(t, width, stack.rope_base)
        queries = [rotate(rms_norm(q), cos, sin) for q in np.split(block.w_q @ u, heads)]
        keys.append([rotate(rms_norm(k), cos, sin) for k in np.split(block.w_k @ u, groups)])
        values.append(np.split(block.w_v @ u, groups))
        seen = [j for j in range(t + 1) if document[j] == document[t] and (stack.window == 0 or t - j < stack.window)]
        mixed = []
        for h in range(heads):
            g = h // (heads // groups)  # consecutive query heads share a key/value head
            scores = np.array([block.q_gain[h] * (queries[h] @ keys[j][g]) / math.sqrt(width) for j in seen])
            mixed.append(sum(a * values[j][g] for a, j in zip(softmax(scores), seen, strict=True)))
        stream = stream + block.attention_scale * (block.w_o @ np.concatenate(mixed))

        hidden = np.maximum(block.w_1 @ rms_norm(stream), 0) ** 2
        out.append(stream + block.mlp_scale * (block.w_2 @ hidden))
    return out


def run_stack(stack: Stack, x: list[Vector], document: Sequence[int]) -> list[Vector]:
    """RMSNorm, blocks, RMSNorm; the first half pushes its outputs, the second half pops and adds them (U-net)."""
    x0 = [rms_norm(v) for v in x] if stack.norms_input else x
    pushed: list[Vector] = []
    stream, half = x0, len(stack.blocks) // 2
    for i, block in enumerate(stack.blocks):
        if i >= half and pushed:
            skip = pushed.pop()
            stream = [s + stack.skip_weights[i - half] * k for s, k in zip(stream, skip, strict=True)]
        stream = run_block(stack, block, stream, x0, document)
        if i < half:
            pushed.append(stream)  # type: ignore[arg-type]
    return [rms_norm(v) for v in stream]
