"""The causal depthwise convolution in front of Mamba-2's state, with its bias and silu (arXiv 2405.21060).

    y_t = silu(b + Σ_k w_k·x_{t−K+1+k}) per channel; the last tap is the current position's

Legend: B batch, L positions, X channels, K taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, wide


def causal_conv(
    x: Float[Tensor, "B L X"],
    taps: Float[Tensor, "K X"],
    bias: Float[Tensor, " X"],
    first: Bool[Tensor, "B L"] | None,
) -> Float[Tensor, "B L X"]:
    """The convolution of x; ``first`` marks positions that see nothing before them, as the first one does."""
    return (_native if native.usable(x) else causal_conv_reference)(x, taps, bias, first)


def causal_conv_reference(
    x: Float[Tensor, "B L X"],
    taps: Float[Tensor, "K X"],
    bias: Float[Tensor, " X"],
    first: Bool[Tensor, "B L"] | None,
) -> Float[Tensor, "B L X"]:
    """The formula."""
    count, length = taps.shape[0], x.shape[1]
    taps, document = taps.to(x.dtype), None if first is None else first.cumsum(1)
    total = bias.to(x.dtype).expand_as(x)
    for lag in range(min(count, length)):
        past = F.pad(x.narrow(1, 0, length - lag), (0, 0, lag, 0))
        if document is not None and lag:
            same = F.pad(document.narrow(1, 0, length - lag), (lag, 0), value=-1) == document
            past = past * same.unsqueeze(-1)
        total = torch.addcmul(total, past, taps.select(0, count - 1 - lag))
    return F.silu(total)


# ------------------------------------------------------------------------------------------------- native


def _native_forward(x: Tensor, taps: Tensor, bias: Tensor, first: Tensor | None) -> tuple[Tensor, Saved, tuple[()]]:
    taps, bias = (t.detach().to(wide(x.dtype)).contiguous() for t in (taps, bias))
    x = native.spaced(x)
    first = None if first is None else first.contiguous()
    y = x.new_empty(x.shape)
    native.call("conv_forward", x, *_problem(x, taps, bias, first), y)
    return y, (x, taps, bias, first), ()


def _native_backward(
    g: Tensor, x: Tensor, taps: Tensor, bias: Tensor, first: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape)
    d_taps, d_bias = taps.new_empty(len(x), *taps.shape), bias.new_empty(len(x), *bias.shape)
    native.call("conv_backward", x, *_problem(x, taps, bias, first), g.contiguous(), dx, d_taps, d_bias)
    return dx, d_taps.sum(0), d_bias.sum(0)


def _problem(x: Tensor, taps: Tensor, bias: Tensor, first: Tensor | None) -> tuple[Tensor | int | None, ...]:
    """What both kernels take first: x by its address, as its rows may lie apart."""
    return x.data_ptr(), taps, bias, first, *x.shape, taps.shape[0], x.stride(1)


_native = differentiable(_native_forward, _native_backward)
