"""The models S0 to S3 as equations: one sequence, one position after the other, fp64, plain Python and numpy.

It shares no code with the package and imports nothing of it. Its sources are the H-Net paper (arXiv 2507.07955), the
official baseline (S0), the soft chunker of PR #1191 (S1) and the two H-Net studies, PR #1104 (S2) and PR #1305 (S3).
``specified_transformer`` has S0's block, ``specified_hashes`` the hash embeddings.
It is slow and meant to be read. Every network here is causal by construction: each loop over positions t looks only at
what earlier rounds have left behind, so that the forward pass *is* the step-wise recurrence.

Vectors are arrays (D,), sequences of vectors are lists of L of them, a matrix W (O, I) maps x to W @ x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from specified_hashes import BOS, ChunkHash, Ngrams, chunk_embedding, ended_chunks, ngram_embedding
from specified_transformer import (
    Matrix,
    Stack,
    StopGradient,
    Vector,
    rms_norm,
    run_stack,
    scale_gradient,
    softmax,
    straight_through,
)

COSINE_EPS = 1e-8
"""The least length of a vector in the cosine."""
P_FLOOR = 1e-4
"""The smoothing clamps probabilities to [P_FLOOR, 1 − P_FLOOR] (S2)."""


# --- S1: the soft chunker -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SoftLayer:
    """One layer of soft chunking. With ``w_out`` the boundary has a hidden layer, S1's wide variant."""

    w: Matrix  # (1 or hidden, 2·D), for [x_{t−1}; x_t]
    c: Vector  # (1 or hidden,)
    w_out: Matrix | None  # (1, hidden)
    c_out: Vector | None  # (1,)
    w_mixer: Matrix  # (D, D)
    c_mixer: Vector  # (D,)


def run_soft_layer(layer: SoftLayer, x: list[Vector], starts: Sequence[bool]) -> tuple[list[Vector], list[float]]:
    """b_t = σ(w·[x_{t−1}; x_t] + c), blended_t = b_t·x_t + (1 − b_t)·x_{t−1}, out = W·blended + c′; and all b.

    b is 1 where a document starts: nothing comes before it.
    """
    out, b = [], []
    for t in range(len(x)):
        if starts[t]:
            b.append(1.0)
            blended = x[t]
        else:
            y = layer.w @ np.concatenate((x[t - 1], x[t])) + layer.c
            if layer.w_out is not None:
                y = layer.w_out @ np.maximum(y, 0) ** 2 + layer.c_out
            b.append(1 / (1 + math.exp(-y[0])))
            blended = b[t] * x[t] + (1 - b[t]) * x[t - 1]
        out.append(layer.w_mixer @ blended + layer.c_mixer)
    return out, b


# --- S2, S3: the H-Net ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HNet:
    """Encoder, router and decoder around a main network, which may be an H-Net itself."""

    encoder: Stack
    router_q: Matrix  # (D, D)
    router_k: Matrix  # (D, D)
    main: Stack | HNet
    residual: Matrix  # (D, D): W_r
    decoder: Stack
    target: float
    """N: wanted positions per chunk"""
    loss_weight: float
    grad_scale: float
    """λ of S2's "LR diff"; 1 = off"""
    capacity_divisor: float | None
    """S3: room for ⌊length/divisor⌋ chunks; None = for all"""
    pad: Vector | None
    """appended to each chunk's vector where the main network is wider (D_main − D,)"""
    chunk_hash: ChunkHash | None


@dataclass(frozen=True)
class Routing:
    """What one H-Net's router did with a sequence."""

    p: list[float]
    proposed: list[bool]
    """where p ≥ ½"""
    boundary: list[bool]
    """the same but for what a fixed capacity had no room for"""
    loss: float
    """the weighted ratio loss"""


def boundary_probability(q: Vector, k: Vector) -> float:
    """½(1 − cos(q, k)), in [0, 1]."""
    lengths = max(np.linalg.norm(q), COSINE_EPS) * max(np.linalg.norm(k), COSINE_EPS)  # type: ignore[operator]
    return float(np.clip(0.5 * (1 - q @ k / lengths), 0, 1))


def route(router_q: Matrix, router_k: Matrix, x: list[Vector], starts: Sequence[bool]) -> list[float]:
    """p_t = ½(1 − cos(W_q x_t, W_k x_{t−1})); 1 where a document starts. (S2; the paper swaps q and k.)"""
    return [1.0 if starts[t] else boundary_probability(router_q @ x[t], router_k @ x[t - 1]) for t in range(len(x))]


def ratio_loss(p: Sequence[float], proposed: Sequence[bool], target: float) -> float:
    """N/(N−1)·[(N−1)·F·G + (1−F)(1−G)]: F the share of boundaries, G the mean of p, of one sequence."""
    F, G, N = float(np.mean(proposed)), float(np.mean(p)), target
    return N / (N - 1) * ((N - 1) * F * G + (1 - F) * (1 - G))


def within_capacity(proposed: Sequence[bool], length: int, divisor: float | None) -> list[bool]:
    """S3: the first ⌊length/divisor⌋ boundaries, at least one; positions behind them belong to the last chunk."""
    room = len(proposed) if divisor is None else max(1, math.floor(length / divisor))
    kept: list[bool] = []
    for b in proposed:
        kept.append(b and sum(kept) < room)
    return kept


def smooth(z: list[Vector], p: Sequence[float], starts: Sequence[bool]) -> list[Vector]:
    """z̄_c = P_c·z_c + (1 − P_c)·z̄_{c−1} over chunks, P = clamp(p); z̄ = z where a document starts."""
    out: list[Vector] = []
    for c in range(len(z)):
        P = min(max(p[c], P_FLOOR), 1 - P_FLOOR)
        out.append(z[c] if starts[c] else P * z[c] + (1 - P) * out[c - 1])
    return out


def first_of_documents(document: Sequence[int]) -> list[bool]:
    """Where a document starts: at the first position, and where the document is not the one before."""
    return [t == 0 or document[t] != document[t - 1] for t in range(len(document))]


def run_network(
    network: Stack | HNet,
    x: list[Vector],
    document: Sequence[int],
    ids: Sequence[int] | None,
    length: int,
    sg: StopGradient,
    routings: list[Routing],
) -> list[Vector]:
    """A stack, or an H-Net, which adds its ``Routing`` to ``routings`` (outermost first).

    ``length`` is the length of which a fixed capacity is a share: at an inner H-Net the outer one's capacity, whether
    or not the sequence fills it. ``ids`` are the tokens, known to the outermost H-Net only.
    """
    if isinstance(network, Stack):
        return run_stack(network, x, document)
    net, L = network, len(x)
    starts = first_of_documents(document)

    # encode, route
    encoded = run_stack(net.encoder, x, document)
    p = route(net.router_q, net.router_k, encoded, starts)
    proposed = [sg(p_t >= 0.5) for p_t in p]
    boundary = within_capacity(proposed, length, net.capacity_divisor)
    # the loss counts what was proposed, not what there was room for
    routings.append(Routing(p, proposed, boundary, net.loss_weight * ratio_loss(p, proposed, net.target)))

    # select the vectors where chunks start, and widen them
    first = [t for t in range(L) if boundary[t]]  # the position at which each chunk starts
    z = [encoded[t] for t in first]
    if net.pad is not None:
        z = [np.concatenate((v, net.pad)) for v in z]
    if net.chunk_hash is not None:
        assert ids is not None
        keys = ended_chunks(ids, boundary, starts)
        z = [v + chunk_embedding(net.chunk_hash, keys[t]) for v, t in zip(z, first, strict=True)]
    z = [scale_gradient(v, 1 / net.grad_scale, sg) for v in z]

    # the main network over chunks
    inner = length if net.capacity_divisor is None else max(1, math.floor(length / net.capacity_divisor))
    z = run_network(net.main, z, [document[t] for t in first], None, inner, sg, routings)
    z = [v[: len(encoded[0])] for v in z]

    # dechunk: smooth over chunks, expand to positions, add the residual
    smoothed = smooth(z, [p[t] for t in first], [starts[t] for t in first])
    y, chunk = [], -1
    for t in range(L):
        chunk += boundary[t]
        confidence = p[t] if boundary[t] else 1 - p[t]
        y_t = straight_through(confidence, sg) * smoothed[chunk] + net.residual @ encoded[t]
        y.append(scale_gradient(y_t, net.grad_scale, sg))
    return run_stack(net.decoder, y, document)


# --- the language model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """Tied embedding, then n-grams, soft chunking and the network, then the tied head."""

    embedding: Matrix  # (V, D)
    network: Stack | HNet
    softcap: float
    reset_at_bos: bool = False
    """whether documents, which start at BOS, are independent of each other"""
    ngrams: Ngrams | None = None
    soft: list[SoftLayer] = field(default_factory=list)
    soft_regulariser: float = 0.0
    """weight of the mean of b in the loss (S1)"""


@dataclass(frozen=True)
class Result:
    """What a model makes of one sequence."""

    logits: list[Vector]
    """softcapped, of the token after each position"""
    routings: list[Routing]
    soft: list[list[float]]
    """b of every soft layer"""


def run_model(model: Model, ids: Sequence[int], sg: StopGradient | None = None) -> Result:
    """The model over one sequence of ids."""
    # positions before the first BOS, if any, are the document number 0
    document = [sum(i == BOS for i in ids[: t + 1]) if model.reset_at_bos else 0 for t in range(len(ids))]
    x = [rms_norm(model.embedding[i]) for i in ids]
    if model.ngrams is not None:
        x = [x[t] + ngram_embedding(model.ngrams, ids, t, model.reset_at_bos) for t in range(len(ids))]
    soft = []
    for layer in model.soft:
        x, b = run_soft_layer(layer, x, first_of_documents(document))
        soft.append(b)
    routings: list[Routing] = []
    x = run_network(model.network, x, document, ids, len(ids), sg or StopGradient(), routings)
    logits = [model.softcap * np.tanh(model.embedding @ v / model.softcap) for v in x]
    return Result(logits, routings, soft)


def cross_entropy(logits: Sequence[Vector], targets: Sequence[int]) -> list[float]:
    """−log softmax(logits)[target] at each position, in nats."""
    return [-math.log(softmax(z)[target]) for z, target in zip(logits, targets, strict=True)]


def objective(model: Model, batch: Sequence[Sequence[int]], sg: StopGradient | None = None) -> float:
    """What training minimises: the mean over sequences of L + 1 ids of cross-entropy, ratio losses and regulariser."""
    total, sg = 0.0, sg or StopGradient()
    for ids in batch:
        out = run_model(model, ids[:-1], sg)
        total += float(np.mean(cross_entropy(out.logits, ids[1:])))
        total += sum(routing.loss for routing in out.routings)
        total += sum(model.soft_regulariser * float(np.mean(b)) for b in out.soft)
    return total / len(batch)
