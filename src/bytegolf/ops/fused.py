"""The native forms of ``ops.py`` and of the residual stream: each one pass over the activations, forward and backward.

They take what ``native.usable`` allows; callers fall back on the plain forms. Statistics, parameters and sums over rows
are in fp32 (fp64 for fp64).

Legend: N rows (all leading axes), D width, B batch, L positions, V alphabet.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from bytegolf.ops import native
from bytegolf.ops.functions import NORM_EPS, apply, first_order, run, wide

COSINE_EPS = 1e-8
"""Shorter vectors count as this long in a cosine (``torch.cosine_similarity``'s default)."""

Branch = tuple[Tensor, Tensor]
"""(y, scale): scale·y is to be added, scale (D,) per channel."""


def _ready(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What a kernel can read: contiguous, in ``dtype``."""
    return None if tensor is None else tensor.to(dtype).contiguous()


def _size(x: Tensor) -> tuple[int, int]:
    return x.numel() // max(x.shape[-1], 1), x.shape[-1]


class _Read(Function):
    """u = mix₀·(x + s₁·y₁ + s₂·y₂) + mix₁·x0 and its norm; absent parts are None; u only if ``keep``."""

    @staticmethod
    def forward(
        ctx: Any,
        keep: bool,
        x: Tensor,
        y1: Tensor | None,
        s1: Tensor | None,
        y2: Tensor | None,
        s2: Tensor | None,
        x0: Tensor | None,
        mix: Tensor | None,
    ) -> tuple[Tensor | None, Tensor]:
        parameters = [None if t is None else t.dtype for t in (s1, s2, mix)]
        x, y1, y2, x0 = (_ready(t, x.dtype) for t in (x, y1, y2, x0))  # type: ignore[assignment]
        s1, s2, mix = (_ready(t, wide(x.dtype)) for t in (s1, s2, mix))
        summed = torch.empty_like(x) if keep else None
        normed = torch.empty_like(x)
        scale = x.new_empty(x.shape[:-1], dtype=wide(x.dtype))
        inputs = (x, y1, s1, y2, s2, x0, mix)
        native.call("residual_forward", x, *inputs, summed, normed, scale, *_size(x), NORM_EPS)
        needed = x if mix is not None else None  # only the gradient of a mix asks for x itself
        ctx.save_for_backward(normed, scale, needed, *inputs[1:])
        ctx.parameters = parameters
        ctx.set_materialize_grads(False)
        return summed, normed

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        normed, scale, *inputs = ctx.saved_tensors
        _, y1, _, y2, _, x0, mix = inputs
        outer, inner = (_ready(g, normed.dtype) for g in grads)
        if outer is None and inner is None:
            return (None,) * 8
        dx = torch.empty_like(normed)
        dy1, dy2, dx0 = (None if t is None else torch.empty_like(t) for t in (y1, y2, x0))
        sums = scale.new_empty(4, normed.shape[-1])
        given = (outer, inner, normed, scale, inputs[0] if mix is not None else normed, *inputs[1:])
        native.call("residual_backward", normed, *given, dx, dy1, dy2, dx0, sums, *_size(normed))
        total = (sums[0], sums[1], sums[2:])
        ds1, ds2, d_mix = (None if d is None else t.to(d) for t, d in zip(total, ctx.parameters, strict=True))
        return None, dx, dy1, ds1, dy2, ds2, dx0, d_mix


def read(
    x: Float[Tensor, "*B D"],
    branches: tuple[Branch, ...],
    x0: Float[Tensor, "*B D"] | None = None,
    mix: Float[Tensor, "2 D"] | None = None,
    keep: bool = True,
) -> tuple[Float[Tensor, "*B D"] | None, Float[Tensor, "*B D"]]:
    """The sum of x and at most two branches, mixed with x0 if there is one, and its RMS norm.

    Without ``keep`` the sum itself is not written, and None.
    """
    (y1, s1), (y2, s2) = (*branches, (None, None), (None, None))[:2]
    return cast("tuple[Tensor | None, Tensor]", run(_Read)(keep, x, y1, s1, y2, s2, x0, mix))


def rms_norm(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """``ops.rms_norm``."""
    return read(x, (), keep=False)[1]


class _ReluSquared(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        native.call("relu_squared_forward", x, x, y, x.numel())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        dx = torch.empty_like(y)
        native.call("relu_squared_backward", y, grads[0].contiguous(), y, dx, y.numel())
        return dx


def relu_squared(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """``ops.relu_squared``; the next product's input is all that is kept for the backward pass."""
    return apply(_ReluSquared, x)


class _SoftcapCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, cap: float) -> Tensor:
        logits, targets = logits.contiguous(), targets.long().contiguous()
        _check_range(targets, logits.shape[1], "target")
        losses = logits.new_empty(logits.shape[0], dtype=wide(logits.dtype))
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        native.call("cross_entropy_forward", logits, logits, targets, losses, grad, *logits.shape, float(cap))
        ctx.save_for_backward(grad)
        return losses

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        out = torch.empty_like(grad)
        native.call("cross_entropy_backward", grad, grad, grads[0].contiguous(), out, *grad.shape)
        return out, None, None


def softcap_cross_entropy(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], cap: float) -> Float[Tensor, " N"]:
    """``ops.softcap_cross_entropy``."""
    return apply(_SoftcapCrossEntropy, logits, targets, cap)


def _check_range(ids: Tensor, size: int, what: str) -> None:
    """Kernels write where ids say, so they must be in range."""
    if ids.numel():
        low, high = (int(t) for t in ids.aminmax())
        if low < 0 or high >= size:
            raise IndexError(f"{what} {low if low < 0 else high} is out of range for an alphabet of {size}")


class _NormedEmbedding(Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ids = ids.long().contiguous()
        _check_range(ids, weight.shape[0], "id")
        ctx.weight_dtype = weight.dtype
        weight = weight.to(wide(dtype)).contiguous()
        table, scale = torch.empty_like(weight), weight.new_empty(weight.shape[0])
        # a norm a row of the table, of which there are fewer than positions
        nothing = (None,) * 6
        native.call("residual_forward", weight, weight, *nothing, None, table, scale, *weight.shape, NORM_EPS)
        ctx.save_for_backward(ids, table, scale)
        return F.embedding(ids, table.to(dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        ids, table, scale = ctx.saved_tensors
        g = grads[0].contiguous()
        total, out = torch.empty_like(table), torch.empty_like(table)
        native.call("embedding_backward", g, g, ids, total, ids.numel(), *table.shape)
        sums = scale.new_empty(4, table.shape[1])
        nothing = (None,) * 6
        given = (None, total, table, scale, table, *nothing, out, None, None, None, sums)
        native.call("residual_backward", table, *given, *table.shape)
        return None, out.to(ctx.weight_dtype), None


def normed_embedding(ids: Int[Tensor, "*B"], weight: Float[Tensor, "V D"], dtype: torch.dtype) -> Float[Tensor, "*B D"]:
    """``ops.normed_embedding``; the gradient is summed in at least fp32."""
    return apply(_NormedEmbedding, ids, weight, dtype)


class _BoundaryProbability(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        q, k = q.contiguous(), k.contiguous()
        p = q.new_empty(q.shape[:2], dtype=wide(q.dtype))
        native.call("boundary_forward", q, q, k, p, p.numel(), *q.shape[1:], COSINE_EPS)
        ctx.save_for_backward(q, k)
        return p

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        q, k = ctx.saved_tensors
        dq, dk = torch.empty_like(q), torch.empty_like(k)
        g = grads[0].contiguous()
        native.call("boundary_backward", q, g, q, k, dq, dk, g.numel(), *q.shape[1:], COSINE_EPS)
        return dq, dk


def boundary_probability(q: Float[Tensor, "B L D"], k: Float[Tensor, "B L D"]) -> Float[Tensor, "B L"]:
    """``router.boundary_probability``."""
    return apply(_BoundaryProbability, q, k)
