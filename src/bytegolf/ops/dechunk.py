"""To chunks and back natively: ``Chunks.select`` and ``Chunks.dechunk``, each one pass forward and one backward.

The smoothing runs as the recurrence that it is, in fp32 and vectorised over channels.

Legend: B batch, L positions, C chunks that there is room for, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function

from bytegolf.ops import native
from bytegolf.ops.functions import apply, first_order, wide

_SLICE = 256
"""Channels that a thread takes at a time; ``chunk.cpp`` has the same."""


class _Select(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, starts: Tensor, chunk_of: Tensor, boundary: Tensor) -> Tensor:
        ctx.sizes = sizes = (*boundary.shape, starts.shape[1], x.shape[-1])
        ctx.save_for_backward(chunk_of, boundary)
        y = x.new_empty(*starts.shape, x.shape[-1])
        native.call("select_forward", x, x.contiguous(), starts.contiguous(), y, *sizes)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        chunk_of, boundary = (t.contiguous() for t in ctx.saved_tensors)
        g = grads[0].contiguous()
        dx = g.new_empty(*boundary.shape, g.shape[-1])
        native.call("select_backward", g, g, chunk_of, boundary, dx, *ctx.sizes)
        return dx, None, None, None


def select(
    x: Float[Tensor, "B L D"], starts: Int[Tensor, "B C"], chunk_of: Int[Tensor, "B L"], boundary: Bool[Tensor, "B L"]
) -> Float[Tensor, "B C D"]:
    """``ops.select_rows``."""
    return apply(_Select, x, starts, chunk_of, boundary)


class _Dechunk(Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, p: Tensor, residual: Tensor, boundary: Tensor, first: Tensor | None, least: float
    ) -> Tensor:
        z, boundary, residual = z.contiguous(), boundary.contiguous(), residual.contiguous()
        weights = p.to(wide(z.dtype)).contiguous()
        first = None if first is None else first.contiguous()
        smoothed = torch.empty_like(z, dtype=weights.dtype)
        out = torch.empty_like(residual)
        ctx.sizes = sizes = (*boundary.shape, z.shape[1], z.shape[2], least)
        native.call("dechunk_forward", z, z, weights, boundary, first, smoothed, *sizes, residual, out)
        ctx.save_for_backward(z, weights, boundary, first, smoothed)
        ctx.p_dtype = p.dtype
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        z, weights, boundary, first, smoothed = ctx.saved_tensors
        g = grads[0].contiguous()
        dz = torch.empty_like(z)
        dp = weights.new_empty(-(-z.shape[2] // _SLICE), *weights.shape)
        native.call("dechunk_backward", z, z, weights, boundary, first, smoothed, *ctx.sizes, g, dz, dp)
        return dz, dp.sum(0).to(ctx.p_dtype), g, None, None, None


def dechunk(
    z: Float[Tensor, "B C D"],
    p: Float[Tensor, "B L"],
    residual: Float[Tensor, "B L D"],
    boundary: Bool[Tensor, "B L"],
    first: Bool[Tensor, "B L"] | None,
    least: float,
) -> Float[Tensor, "B L D"]:
    """``Chunks.dechunk``; probabilities are clamped to [least, 1 − least] in the smoothing."""
    return apply(_Dechunk, z, p, residual, boundary, first, least)
