"""Causal attention from the packed projection to the merged heads: normalise and rotate q and k, score, softmax, sum.

Four forms of one operation: blocks of batched products (the reference, and the eager form on a CPU), one native kernel
on a CPU, flash and FlexAttention on a GPU (``flex_attention.py``). The native kernel never writes scores to memory, in
either pass: its backward pass makes them anew from the projection and the logarithm of each softmax's total.

Legend: B batch, L positions, H query heads, G key/value heads, K head width, P packed width (H + 2G)·K, W window,
N some queries, T keys.
Activations are in the compute dtype (bf16 or fp32) of the input; parameters stay fp32.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, wide
from bytegolf.ops.flex_attention import LEAST_WIDTH, flex_attention
from bytegolf.ops.rms_norm import NORM_EPS, rms_norm
from bytegolf.ops.rotary import rotary, rotary_angles

DENSE_LENGTH = 512
"""Up to this length full attention on a CPU is two batched products: its fused kernel's backward is several times
slower there (docs/log/2026-11.md, 2026-11-22)."""


@dataclass(frozen=True)
class AttentionShape:
    """What an attention is, besides its parameters."""

    heads: int
    groups: int
    width: int
    window: int
    """positions a query sees, itself included; 0 = all"""
    base: float
    """of the rotary frequencies"""
    rotated: int = -1
    """dimensions of a head that are rotated, its first ones; -1 = all"""
    normed: bool = True
    """whether q and k are RMS-normalised"""
    clockwise: bool = True
    """the direction of the rotation (S0); S4's is the other one"""

    @property
    def turned(self) -> int:
        """How many dimensions are rotated."""
        return self.width if self.rotated < 0 else self.rotated

    def angles(
        self, positions: Int[Tensor, " P"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "P half"], Float[Tensor, "P half"]]:
        """cos and sin at ``positions``, as ``rotary`` takes them: a turn the other way is one by the negative angle."""
        cos, sin = rotary_angles(positions, self.turned, self.base, dtype)
        return cos, sin if self.clockwise else -sin


def attention(
    packed: Float[Tensor, "B L P"],
    q_gain: Float[Tensor, " H"] | None,
    documents: Int[Tensor, "B L"] | None,
    shape: AttentionShape,
) -> Float[Tensor, "B L HK"]:
    """Attention from packed queries, keys and values to the merged heads.

    A query's scores carry its head's ``q_gain``·K^−½ (None: K^−½); none sees a key of another of the ``documents``.
    """
    if native.usable(packed):
        return _native(packed, q_gain, documents, shape)
    return attention_reference(packed, q_gain, documents, shape)


def attention_reference(
    packed: Float[Tensor, "B L P"],
    q_gain: Float[Tensor, " H"] | None,
    documents: Int[Tensor, "B L"] | None,
    shape: AttentionShape,
) -> Float[Tensor, "B L HK"]:
    """The same in PyTorch's operations."""
    length = packed.shape[1]
    q, k, v = project(packed, q_gain, *angles(length, shape, packed.device, packed.dtype), shape)
    if 0 < shape.window < length:
        out = local_attention(q, k, v, shape.window, documents)
    else:
        out = full_attention(q, k, v, documents)
    return out.flatten(-2)


def angles(
    length: int, shape: AttentionShape, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "L 1 half"], Float[Tensor, "L 1 half"]]:
    """cos and sin for the positions 0 … L − 1, as ``project`` takes them."""
    cos, sin = shape.angles(torch.arange(length, device=device), dtype)
    return cos.unsqueeze(-2), sin.unsqueeze(-2)


def project(
    packed: Float[Tensor, "*B P"], q_gain: Float[Tensor, " H"] | None, cos: Tensor, sin: Tensor, shape: AttentionShape
) -> tuple[Float[Tensor, "*B H K"], Float[Tensor, "*B G K"], Float[Tensor, "*B G K"]]:
    """q (with gain and the 1/√K of the scores), k and v of the projection; q and k normalised and rotated, as far as
    ``shape`` has them so.
    """
    packed = torch.unflatten(packed, -1, (-1, shape.width))
    # (why) q and k lie side by side, and norm and rotation treat heads alike: one operation each for both
    both = shape.heads + shape.groups
    qk = packed.narrow(-2, 0, both)
    qk = _rotated(rms_norm(qk) if shape.normed else qk, cos, sin, shape)
    q = qk.narrow(-2, 0, shape.heads)
    if q_gain is None:
        q = q * shape.width**-0.5
    else:
        q = q * (q_gain.to(wide(packed.dtype)) * shape.width**-0.5).to(packed.dtype).unsqueeze(-1)
    return q, qk.narrow(-2, shape.heads, shape.groups), packed.narrow(-2, both, shape.groups)


def _rotated(qk: Float[Tensor, "*B H K"], cos: Tensor, sin: Tensor, shape: AttentionShape) -> Float[Tensor, "*B H K"]:
    """The first ``shape.turned`` dimensions of each head rotated by position, the others as they are."""
    if shape.turned == shape.width:
        return rotary(qk, cos, sin)
    if not shape.turned:
        return qk
    turned = rotary(qk.narrow(-1, 0, shape.turned), cos, sin)
    return torch.cat((turned, qk.narrow(-1, shape.turned, shape.width - shape.turned)), -1)


def as_bias(seen: Bool[Tensor, "*S"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*S"]:
    """0 where a query may see a key, −∞ elsewhere: what is added to the scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def causal(length: int, device: torch.device, documents: Int[Tensor, "B L"] | None) -> Bool[Tensor, "_ 1 L L"]:
    """Whether a query (row) may see a key: one at or before it, of its own document."""
    seen = torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
    if documents is not None:
        seen = seen & (documents.unsqueeze(2) == documents.unsqueeze(1))
    return seen.unsqueeze(1)


def _block_bias(
    blocks: int, window: int, device: torch.device, documents: Tensor | None, short: int
) -> Float[Tensor, "_ n W X"]:
    """0 where a query of a block may see a key of the block before it or its own (X = 2W), −∞ elsewhere.

    Query i of a block stands at column W + i of the 2W keys, so it sees the columns i + 1 … i + W. For W = 3 (x seen):

        keys of       the block before | its own
        query 0             . x x      |  x . .
        query 1             . . x      |  x x .
        query 2             . . .      |  x x x
    """
    query = torch.arange(window, device=device).unsqueeze(1)
    key = torch.arange(2 * window, device=device)
    seen = ((key > query) & (key <= query + window)).repeat(blocks, 1, 1)
    seen[0] &= key >= window  # nothing stands before the first block
    seen = seen.unsqueeze(0)
    if documents is not None:
        padded = F.pad(documents, (0, short), value=-1)
        same = torch.unflatten(padded, 1, (blocks, -1)).unsqueeze(3) == _with_previous(padded, blocks).unsqueeze(2)
        seen = seen & same
        # a padded query sees itself, so that no softmax is over nothing
    return as_bias(seen)


def few_queries(
    q: Float[Tensor, "B N H K"],
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T K"],
    bias: Float[Tensor, "_ 1 N T"] | None,
) -> Float[Tensor, "B N H K"]:
    """Attention of a few queries to many keys, in two products; q carries the scale already."""
    batch, queries, heads, width = q.shape
    groups = k.shape[1]
    # (why) the H/G query heads that share keys become rows of one matrix, so that keys are read once and not H/G times
    q = q.view(batch, queries, groups, -1, width).permute(0, 2, 3, 1, 4).reshape(batch, groups, -1, width)
    scores = q @ k.mT
    if bias is not None:
        scores = (scores.view(batch, heads, queries, -1) + bias).view(scores.shape)
    out = (torch.softmax(scores, -1) @ v).view(batch, heads, queries, width)
    return out.transpose(1, 2)


def full_attention(
    q: Float[Tensor, "B L H K"],
    k: Float[Tensor, "B L G K"],
    v: Float[Tensor, "B L G K"],
    documents: Int[Tensor, "B L"] | None,
) -> Float[Tensor, "B L H K"]:
    """Causal attention to all earlier positions; q carries the scale already."""
    if q.device.type == "cuda" and (documents is None or q.shape[3] >= LEAST_WIDTH):
        return flex_attention(q, k, v, documents=documents)
    if q.device.type == "cpu" and q.shape[1] <= DENSE_LENGTH:
        bias = as_bias(causal(q.shape[1], q.device, documents))
        return _in_blocks(q, k.unsqueeze(1), v.unsqueeze(1), bias)
    # (why) the CPU kernel's backward is more than twice as slow with enable_gqa as with repeated keys (2026-11-22)
    repeats = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(repeats, 2), v.repeat_interleave(repeats, 2)
    mask = causal(q.shape[1], q.device, documents) if documents is not None else None
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=1.0,
    )
    return out.transpose(1, 2)


def local_attention(
    q: Float[Tensor, "B L H K"],
    k: Float[Tensor, "B L G K"],
    v: Float[Tensor, "B L G K"],
    window: int,
    documents: Int[Tensor, "B L"] | None,
) -> Float[Tensor, "B L H K"]:
    """Causal attention to the last ``window`` positions, in blocks of that size that see themselves and the last.

    Time and memory are linear in L: ⌈L/W⌉ blocks of W × 2W scores, half of which the mask takes away.
    """
    if q.device.type == "cuda" and q.shape[3] >= LEAST_WIDTH:
        return flex_attention(q, k, v, window, documents)
    length = q.shape[1]
    blocks = math.ceil(length / window)
    short = blocks * window - length
    if short:
        q, k, v = (F.pad(t, (0, 0, 0, 0, 0, short)) for t in (q, k, v))
    bias = _block_bias(blocks, window, q.device, documents, short)
    return _in_blocks(q, _with_previous(k, blocks), _with_previous(v, blocks), bias)[:, :length]


def _with_previous(x: Tensor, blocks: int) -> Tensor:
    """(B, n·W, ...) → (B, n, 2W, ...): each block behind the one before it (zeros before the first)."""
    x = torch.unflatten(x, 1, (blocks, -1))
    before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
    return torch.cat((before, x), 2)


def _in_blocks(
    q: Float[Tensor, "B M H K"],
    k: Float[Tensor, "B n S G K"],
    v: Float[Tensor, "B n S G K"],
    bias: Float[Tensor, "_ n T S"],
) -> Float[Tensor, "B M H K"]:
    """Attention of n blocks of T queries (M = n·T) to S keys each, as one batched product a step.

    One matrix per block and key/value head: the query heads that share the keys stand below each other in it.
    """
    batch, length, heads, width = q.shape
    blocks, keys, groups = k.shape[1:4]
    size = length // blocks
    q = q.view(batch, blocks, size, groups, heads // groups, width).permute(0, 1, 3, 4, 2, 5)
    q = q.reshape(batch * blocks * groups, -1, width)
    k = k.permute(0, 1, 3, 4, 2).reshape(batch * blocks * groups, width, keys)
    v = v.transpose(2, 3).reshape(batch * blocks * groups, keys, width)
    scores = torch.bmm(q, k).view(batch, blocks, groups, -1, size, keys) + bias[:, :, None, None].to(q.dtype)
    out = torch.bmm(torch.softmax(scores, -1).view(q.shape[0], -1, keys), v)
    out = out.view(batch, blocks, groups, -1, size, width).permute(0, 1, 4, 2, 3, 5)
    return out.reshape(batch, length, heads, width)


@functools.lru_cache(maxsize=16)
def _table(length: int, shape: AttentionShape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos, sin = shape.angles(torch.arange(length), dtype)
    return cos.to(dtype), sin.to(dtype)


def _problem(packed: Tensor, gain: Tensor, documents: Tensor | None, shape: AttentionShape) -> list[Any]:
    """What both kernels take first.

    (why) The angles of L positions come from a table for the next power of two, so that the lengths 1000 and 1024 share
    one; a main stack sees another length in every batch.
    """
    batch, length, _ = packed.shape
    cos, sin = _table(1 << (length - 1).bit_length(), shape, gain.dtype)
    sizes = (batch, length, shape.heads, shape.groups, shape.width, shape.window, shape.turned, int(shape.normed))
    return [packed, cos, sin, gain, documents, *sizes, NORM_EPS]


def _native_forward(
    packed: Tensor, q_gain: Tensor | None, documents: Tensor | None, shape: AttentionShape
) -> tuple[Tensor, Saved, tuple[AttentionShape, bool]]:
    batch, length, _ = packed.shape
    gain = packed.new_ones(shape.heads, dtype=wide(packed.dtype))
    if q_gain is not None:
        gain = q_gain.detach().to(gain.dtype)
    ids = None if documents is None else documents.to(torch.int32).contiguous()
    packed = packed.contiguous()
    out = packed.new_empty(batch, length, shape.heads * shape.width)
    log_total = gain.new_empty(batch, shape.heads, length)
    native.call("attention_forward", packed, *_problem(packed, gain, ids, shape), out, log_total)
    return out, (packed, gain, ids, out, log_total), (shape, q_gain is not None)


def _native_backward(
    g: Tensor,
    packed: Tensor,
    gain: Tensor,
    ids: Tensor | None,
    out: Tensor,
    log_total: Tensor,
    shape: AttentionShape,
    gained: bool,
) -> tuple[Tensor, Tensor | None]:
    d_packed = torch.empty_like(packed)
    d_gain = gain.new_empty(packed.shape[0], shape.heads)  # (why) one row per sequence: threads share no sum
    results = (out, g.contiguous(), log_total, d_packed, d_gain)
    native.call("attention_backward", packed, *_problem(packed, gain, ids, shape), *results)
    return d_packed, d_gain.sum(0) if gained else None


_native = differentiable(_native_forward, _native_backward)
