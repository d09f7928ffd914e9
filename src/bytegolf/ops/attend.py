"""Causal attention as one native kernel: normalise, rotate, score, softmax and sum, from the packed projection.

The plain form is ``Attention._attend`` in ``attention.py``. Here scores never reach memory, in either pass: the
backward pass makes them anew from the projection and the logarithm of each softmax's total.

Legend: B batch, L positions, H query heads, G key/value heads, K head width, P packed width (H + 2G)·K.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from bytegolf.ops import native
from bytegolf.ops.functions import NORM_EPS, apply, first_order, wide


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


def rotary_angles(
    positions: Int[Tensor, "*P"], width: int, base: float
) -> tuple[Float[Tensor, "*P half"], Float[Tensor, "*P half"]]:
    """cos and sin of position × base^(−2i/width), fp32, for i below half the head width."""
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = positions.unsqueeze(-1).float() * base**-exponents
    return angles.cos(), angles.sin()


@functools.lru_cache(maxsize=16)
def _table(length: int, width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos, sin = rotary_angles(torch.arange(length), width, base)
    return cos.to(dtype), sin.to(dtype)


def _problem(packed: Tensor, gain: Tensor, documents: Tensor | None, heads: AttentionShape) -> list[Any]:
    """What both kernels take first; lengths share a table up to the next power of two."""
    batch, length, _ = packed.shape
    cos, sin = _table(1 << (length - 1).bit_length(), heads.width, heads.base, gain.dtype)
    sizes = (batch, length, heads.heads, heads.groups, heads.width, heads.window)
    return [packed, cos, sin, gain, documents, *sizes, NORM_EPS]


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, q_gain: Tensor, documents: Tensor | None, heads: AttentionShape) -> Tensor:
        batch, length, _ = packed.shape
        gain = q_gain.detach().to(wide(packed.dtype))
        ids = None if documents is None else documents.to(torch.int32).contiguous()
        packed = packed.contiguous()
        out = packed.new_empty(batch, length, heads.heads * heads.width)
        log_total = gain.new_empty(batch, heads.heads, length)
        native.call("attention_forward", packed, *_problem(packed, gain, ids, heads), out, log_total)
        ctx.save_for_backward(packed, gain, ids, out, log_total)
        ctx.heads, ctx.gain_dtype = heads, q_gain.dtype
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        packed, gain, ids, out, log_total = ctx.saved_tensors
        d_packed = torch.empty_like(packed)
        d_gain = gain.new_empty(packed.shape[0], ctx.heads.heads)
        results = (out, grads[0].contiguous(), log_total, d_packed, d_gain)
        native.call("attention_backward", packed, *_problem(packed, gain, ids, ctx.heads), *results)
        return d_packed, d_gain.sum(0).to(ctx.gain_dtype), None, None


def attend(
    packed: Float[Tensor, "B L P"],
    q_gain: Float[Tensor, " H"],
    documents: Int[Tensor, "B L"] | None,
    heads: AttentionShape,
) -> Float[Tensor, "B L HK"]:
    """Attention from packed queries, keys and values to the merged heads, where ``native.usable(packed)``.

    A query's scores carry its head's ``q_gain``·K^−½; none sees a key of another of the ``documents``.
    """
    return apply(_Attend, packed, q_gain, documents, heads)
