"""The paper's H-Net (S4, arXiv 2507.07955) as equations: NumPy in fp64, one position after the other, no torch.

It reads a configuration in the public files' keys and weights under the public checkpoints' names, so it shares neither
code nor conventions with the package. Vectors are rows: y = x @ W.T.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]

EPS = 1e-5
HEAD = 64


@dataclass
class Level:
    """What a router did with one sequence."""

    p: Array
    boundary: NDArray[np.bool_]


def silu(x: Array) -> Array:
    found: Array = x / (1 + np.exp(-x))
    return found


def rms_norm(x: Array, gain: Array) -> Array:
    found: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * gain
    return found


def mamba2(x: Array, weights: Weights, name: str, ssm: Mapping[str, int]) -> Array:
    """The mixer over one sequence (L, D), by its recurrence."""
    state_size, taps = ssm["d_state"], ssm["d_conv"]
    inner = ssm["expand"] * x.shape[1]
    heads = inner // HEAD
    packed = x @ weights[f"{name}.in_proj.weight"].T
    z, u, dt = np.split(packed, (inner, 2 * inner + 2 * state_size), 1)
    kernel, bias = weights[f"{name}.conv1d.weight"][:, 0], weights[f"{name}.conv1d.bias"]
    a = -np.exp(weights[f"{name}.A_log"])
    dt = np.log1p(np.exp(dt + weights[f"{name}.dt_bias"]))
    state = np.zeros((heads, HEAD, state_size))
    out = np.empty((len(x), inner))
    for t in range(len(x)):
        convolved = bias.copy()
        for tap in range(taps):
            at = t - (taps - 1) + tap
            if at >= 0:
                convolved += kernel[:, tap] * u[at]
        convolved = silu(convolved)
        values, b, c = np.split(convolved, (inner, inner + state_size))
        values = values.reshape(heads, HEAD)
        for head in range(heads):
            state[head] = np.exp(dt[t, head] * a[head]) * state[head] + dt[t, head] * np.outer(values[head], b)
            y = state[head] @ c + weights[f"{name}.D"][head] * values[head]
            out[t, head * HEAD : (head + 1) * HEAD] = y
    return rms_norm(out * silu(z), weights[f"{name}.norm.weight"]) @ weights[f"{name}.out_proj.weight"].T


def attention(x: Array, weights: Weights, name: str, heads: int, rotary: int, window: int) -> Array:
    """Causal attention over one sequence (L, D); ``window`` positions before its own are seen, -1: all."""
    length, dim = x.shape
    width = dim // heads
    q, k, v = (x @ weights[f"{name}.Wqkv.weight"].T).reshape(length, 3, heads, width).transpose(1, 2, 0, 3)
    frequencies = 10_000.0 ** (-np.arange(0, rotary, 2) / max(rotary, 1))

    def turned(head: Array) -> Array:
        angles = np.arange(length)[:, None] * frequencies
        first, second = head[:, : rotary // 2], head[:, rotary // 2 : rotary]
        return np.concatenate(
            (
                first * np.cos(angles) - second * np.sin(angles),
                second * np.cos(angles) + first * np.sin(angles),
                head[:, rotary:],
            ),
            1,
        )

    out = np.empty((length, heads, width))
    for head in range(heads):
        queries, keys = turned(q[head]), turned(k[head])
        for t in range(length):
            oldest = 0 if window < 0 else max(0, t - window)
            scores = keys[oldest : t + 1] @ queries[t] / np.sqrt(width)
            shares = np.exp(scores - scores.max())
            out[t, head] = shares / shares.sum() @ v[head, oldest : t + 1]
    return out.reshape(length, dim) @ weights[f"{name}.out_proj.weight"].T


def stack(x: Array, layout: str, weights: Weights, name: str, config: Mapping[str, Any], stage: int) -> Array:
    """A stack of blocks over one sequence."""
    letters = [letter for letter, count in re.findall(r"([mMtT])(\d+)", layout) for _ in range(int(count))]
    for number, letter in enumerate(letters):
        block = f"{name}.layers.{number}"
        normed = rms_norm(x, weights[f"{block}.norm1.weight"])
        if letter in "mM":
            x = x + mamba2(normed, weights, f"{block}.mixer", config["ssm_cfg"])
        else:
            own = (config["attn_cfg"][key][stage] for key in ("num_heads", "rotary_emb_dim", "window_size"))
            x = x + attention(normed, weights, f"{block}.mixer", *own)
        if letter in "MT":
            normed = rms_norm(x, weights[f"{block}.norm2.weight"])
            value, gate = np.split(normed @ weights[f"{block}.mlp.fc1.weight"].T, 2, 1)
            x = x + (silu(gate) * value) @ weights[f"{block}.mlp.fc2.weight"].T
    return rms_norm(x, weights[f"{name}.rmsnorm.weight"])


def cosine(x: Array, y: Array) -> float:
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def network(
    x: Array, arch: Any, weights: Weights, name: str, config: Mapping[str, Any], stage: int, levels: list[Level]
) -> Array:
    """A stage over one sequence, and all within it; what its routers do is appended to ``levels``, outermost first."""
    dim = x.shape[1]
    if f"{name}.pad_dimension" in weights:
        x = np.concatenate((x, np.tile(weights[f"{name}.pad_dimension"], (len(x), 1))), 1)
    if len(arch) == 1:
        return stack(x, arch[0], weights, f"{name}.main_network", config, stage)[:, :dim]
    encoded = stack(x, arch[0], weights, f"{name}.encoder", config, stage)
    query, key = (weights[f"{name}.routing_module.{which}_proj_layer.weight"] for which in "qk")
    p = np.ones(len(x))
    for t in range(1, len(x)):
        p[t] = min(1.0, max(0.0, (1 - cosine(query @ encoded[t - 1], key @ encoded[t])) / 2))
    boundary = p > 0.5
    levels.append(Level(p, boundary))
    chunks = network(encoded[boundary], arch[1], weights, f"{name}.main_network", config, stage + 1, levels)
    smoothed, chunk = np.zeros(encoded.shape[1]), 0
    y = encoded @ weights[f"{name}.residual_proj.weight"].T + weights[f"{name}.residual_proj.bias"]
    for t in range(len(x)):
        if boundary[t]:
            share = min(1 - 1e-4, max(1e-4, p[t]))
            smoothed = share * chunks[chunk] + (1 - share) * smoothed
            chunk += 1
        y[t] += smoothed  # the confidence is 1: only its gradient is another
    return stack(y, arch[2], weights, f"{name}.decoder", config, stage)[:, :dim]


def logits(config: Mapping[str, Any], weights: Weights, ids: NDArray[np.int64]) -> tuple[Array, list[Level]]:
    """The logits (L, 256) behind each of the ``ids`` of one sequence, and what its routers did."""
    levels: list[Level] = []
    embedding = weights["embeddings.weight"]
    x = network(embedding[ids], config["arch_layout"], weights, "backbone", config, 0, levels)
    return x @ weights.get("lm_head.weight", embedding).T, levels


def ratio_loss(sequences: list[Level], target: float) -> float:
    """The ratio loss of one level over the whole batch."""
    share = float(np.concatenate([level.boundary for level in sequences]).mean())
    mean = float(np.concatenate([level.p for level in sequences]).mean())
    return target / (target - 1) * ((target - 1) * share * mean + (1 - share) * (1 - mean))
