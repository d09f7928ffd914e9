"""RMS norm without a learned gain (arXiv 1910.07467; S0).

Legend: D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, wide

NORM_EPS = 1.1920929e-07
"""ε of every RMS norm: fp32's machine epsilon, as the public baseline's default (S0)."""

NO_BRANCHES = (None,) * 6
"""y₁, s₁, y₂, s₂, x0 and mix of the kernels in ``residual.cpp``, of which a norm alone is the simplest case."""


def rms_norm(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """x / sqrt(mean(x²) + ε) over the last axis, the mean in at least fp32."""
    if torch.compiler.is_compiling():
        return rms_norm_reference(x)
    return _native(x) if native.usable(x) else _eager(x)


def rms_norm_reference(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """The formula."""
    values = x.to(wide(x.dtype))
    scale = torch.rsqrt(values.square().mean(-1, keepdim=True) + NORM_EPS)
    return (values * scale).to(x.dtype)


# ------------------------------------------------------------------------------------------------- eager
#
# With s = (mean(x²) + ε)^−½ and y = s·x: dx = s·(g − y·mean(g·y)). The backward pass so needs y and s, and not x; y is
# the next product's input, which is kept anyway, so the norm costs no memory but s.


def _forward(x: Tensor) -> tuple[Tensor, Saved, tuple[()]]:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))  # one pass, and no x² in memory
    scale = torch.rsqrt_(norm.square_().div_(x.shape[-1]).add_(NORM_EPS)).to(x.dtype)
    y = x * scale
    return y, (y, scale), ()


def _backward(g: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor]:
    dot = (g * y).sum(-1, keepdim=True, dtype=wide(y.dtype)).div_(-y.shape[-1]).to(y.dtype)
    return (torch.addcmul(g, y, dot).mul_(scale),)


_eager = differentiable(_forward, _backward)


# ------------------------------------------------------------------------------------------------- native


def native_norm(x: Float[Tensor, "... D"]) -> tuple[Float[Tensor, "... D"], Float[Tensor, ...]]:
    """The norm of a contiguous x, and the scale of each row."""
    normed = torch.empty_like(x)
    scale = x.new_empty(x.shape[:-1], dtype=wide(x.dtype))
    sizes = (x.numel() // max(x.shape[-1], 1), x.shape[-1])
    native.call("residual_forward", x, x, *NO_BRANCHES, None, normed, scale, *sizes, NORM_EPS)
    return normed, scale


def native_norm_gradient(g: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x from that of its norm; all contiguous."""
    width = normed.shape[-1]
    dx, sums = torch.empty_like(normed), scale.new_empty(4, width)  # the kernel clears the sums, branches or none
    given = (None, g, normed, scale, normed, *NO_BRANCHES)
    sizes = (normed.numel() // max(width, 1), width)
    native.call("residual_backward", normed, *given, dx, None, None, None, sums, *sizes)
    return dx


def _native_forward(x: Tensor) -> tuple[Tensor, Saved, tuple[()]]:
    normed, scale = native_norm(x.contiguous())
    return normed, (normed, scale), ()


def _native_backward(g: Tensor, normed: Tensor, scale: Tensor) -> tuple[Tensor]:
    return (native_norm_gradient(g.to(normed.dtype).contiguous(), normed, scale),)


_native = differentiable(_native_forward, _native_backward)
