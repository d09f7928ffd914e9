"""The residual stream read by a norm: branches added, mixed with the stack's input, normalised, in one pass each way.

    t = x + s₁·y₁ + s₂·y₂        (0 to 2 branches y with a scale s per channel)
    u = m₀·t + m₁·x0             (S0's residual mix; u = t without one)
    n = u / sqrt(mean(u²) + ε)   (what the next block reads)

PyTorch makes a pass over the activations of each +, · and norm. The native kernel makes one of all: it reads x, y₁, y₂
and x0 once and writes u and n once, and its backward pass likewise, sums for s and m included.

Legend: D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, rows_of, wide
from bytegolf.ops.rms_norm import NORM_EPS, rms_norm

Branch = tuple[Tensor, Tensor]
"""(y, scale): scale·y is to be added, scale (D,) per channel."""


def fused_add_rmsnorm(
    x: Float[Tensor, "*B D"],
    branches: tuple[Branch, ...] = (),
    x0: Float[Tensor, "*B D"] | None = None,
    mix: Float[Tensor, "2 D"] | None = None,
    keep_sum: bool = True,
) -> tuple[Float[Tensor, "*B D"] | None, Float[Tensor, "*B D"]]:
    """The sum of x and the scaled branches, mixed with x0 if there is a ``mix``, and its RMS norm.

    Without ``keep_sum`` the sum is None: nothing else reads it, so it need not be written.
    """
    if len(branches) <= 2 and native.usable(x, *(y for y, _ in branches)):
        (y1, s1), (y2, s2) = (*branches, (None, None), (None, None))[:2]
        return _native(x, y1, s1, y2, s2, x0 if mix is not None else None, mix, keep_sum)
    total = x
    for y, scale in branches:
        total = add_scaled(total, y, scale)
    if x0 is not None and mix is not None:
        total = mix_streams(total, x0, mix)
    return total if keep_sum else None, rms_norm(total)


def add_scaled(x: Float[Tensor, "*B D"], y: Float[Tensor, "*B D"], scale: Float[Tensor, " D"]) -> Float[Tensor, "*B D"]:
    """x + scale·y, per channel (S0's attention, MLP and skip scales)."""
    if torch.compiler.is_compiling():
        return add_scaled_reference(x, y, scale)
    return _add_scaled(x, y, scale)


def add_scaled_reference(
    x: Float[Tensor, "*B D"], y: Float[Tensor, "*B D"], scale: Float[Tensor, " D"]
) -> Float[Tensor, "*B D"]:
    """The formula."""
    return x + y * scale.to(x.dtype)


def _add_scaled_forward(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, Saved, tuple[()]]:
    return torch.addcmul(x, y, scale.to(x.dtype)), (y, scale), ()


def _add_scaled_backward(g: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return g, g * scale.to(g.dtype), _column_sums(g, y)


_add_scaled = differentiable(_add_scaled_forward, _add_scaled_backward)


def mix_streams(
    x: Float[Tensor, "*B D"], x0: Float[Tensor, "*B D"], weights: Float[Tensor, "2 D"]
) -> Float[Tensor, "*B D"]:
    """weights₀·x + weights₁·x0, per channel (S0's residual mix)."""
    if torch.compiler.is_compiling():
        return mix_streams_reference(x, x0, weights)
    return _mix(x, x0, weights)


def mix_streams_reference(
    x: Float[Tensor, "*B D"], x0: Float[Tensor, "*B D"], weights: Float[Tensor, "2 D"]
) -> Float[Tensor, "*B D"]:
    """The formula."""
    m0, m1 = weights.to(x.dtype).unbind()
    return x * m0 + x0 * m1


def _mix_forward(x: Tensor, x0: Tensor, mix: Tensor) -> tuple[Tensor, Saved, tuple[()]]:
    m0, m1 = mix.to(x.dtype).unbind()
    return torch.addcmul(x * m0, x0, m1), (x, x0, mix), ()


def _mix_backward(g: Tensor, x: Tensor, x0: Tensor, mix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m0, m1 = mix.to(g.dtype).unbind()
    d_mix = torch.stack((_column_sums(g, x), _column_sums(g, x0)))
    return g * m0, g * m1, d_mix


_mix = differentiable(_mix_forward, _mix_backward)


def _column_sums(a: Tensor, b: Tensor) -> Tensor:
    """Σ over rows of a·b, (D,): through a product with ones, which accumulates in fp32 and beats ``sum(0)``."""
    product = rows_of(a * b)
    return (product.new_ones(1, product.shape[0]) @ product).squeeze(0)


def _ready(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What a kernel can read: contiguous, in ``dtype``."""
    return None if tensor is None else tensor.to(dtype).contiguous()


def _native_forward(
    x: Tensor,
    y1: Tensor | None,
    s1: Tensor | None,
    y2: Tensor | None,
    s2: Tensor | None,
    x0: Tensor | None,
    mix: Tensor | None,
    keep_sum: bool,
) -> tuple[tuple[Tensor | None, Tensor], Saved, tuple[()]]:
    x, y1, y2, x0 = (_ready(t, x.dtype) for t in (x, y1, y2, x0))  # type: ignore[assignment]
    s1, s2, mix = (_ready(t, wide(x.dtype)) for t in (s1, s2, mix))
    summed = torch.empty_like(x) if keep_sum else None
    normed = torch.empty_like(x)
    scale = x.new_empty(x.shape[:-1], dtype=wide(x.dtype))
    sizes = (x.numel() // max(x.shape[-1], 1), x.shape[-1])
    native.call("residual_forward", x, x, y1, s1, y2, s2, x0, mix, summed, normed, scale, *sizes, NORM_EPS)
    # (why) only the gradient of a mix asks for x itself; everything else follows from n, its scale and the branches
    return (summed, normed), (normed, scale, x if mix is not None else None, y1, s1, y2, s2, x0, mix), ()


def _native_backward(
    d_summed: Tensor | None,
    d_normed: Tensor | None,
    normed: Tensor,
    scale: Tensor,
    x: Tensor | None,
    *others: Tensor | None,
) -> tuple[Tensor | None, ...]:
    y1, _, y2, _, x0, mix = others
    d_summed, d_normed = (_ready(g, normed.dtype) for g in (d_summed, d_normed))
    if d_summed is None and d_normed is None:
        return ()
    dx = torch.empty_like(normed)
    dy1, dy2, dx0 = (None if t is None else torch.empty_like(t) for t in (y1, y2, x0))
    sums = scale.new_empty(4, normed.shape[-1])  # gradients of s₁, s₂, m₀ and m₁
    given = (d_summed, d_normed, normed, scale, normed if x is None else x, *others)
    sizes = (normed.numel() // max(normed.shape[-1], 1), normed.shape[-1])
    native.call("residual_backward", normed, *given, dx, dy1, dy2, dx0, sums, *sizes)
    ds1, ds2 = sums[0] if y1 is not None else None, sums[1] if y2 is not None else None
    return dx, dy1, ds1, dy2, ds2, dx0, sums[2:] if mix is not None else None


# a block that reads the norm alone leaves the sum without a gradient: the kernel takes None for zeros
_native = differentiable(_native_forward, _native_backward, materialize_grads=False)
