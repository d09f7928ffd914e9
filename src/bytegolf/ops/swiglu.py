"""The gate of a SwiGLU MLP: silu(g)·v from packed values and gates [v, g] (arXiv 2002.05202; S4: values first).

Legend: H hidden width, P = 2H.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable


def swiglu(x: Float[Tensor, "*B P"]) -> Float[Tensor, "*B H"]:
    """silu(g)·v."""
    return (_native if native.usable(x) else swiglu_reference)(x)


def swiglu_reference(x: Float[Tensor, "*B P"]) -> Float[Tensor, "*B H"]:
    """The formula."""
    v, g = x.chunk(2, -1)
    return F.silu(g) * v


# ------------------------------------------------------------------------------------------------- native


def _native_forward(x: Tensor) -> tuple[Tensor, Saved, tuple[()]]:
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    native.call("swiglu_forward", x, x, y, y.numel() // max(y.shape[-1], 1), y.shape[-1])
    return y, (x,), ()


def _native_backward(g: Tensor, x: Tensor) -> tuple[Tensor]:
    dx = x.new_empty(x.shape)
    native.call("swiglu_backward", x, g.contiguous(), x, dx, g.numel() // max(g.shape[-1], 1), g.shape[-1])
    return (dx,)


_native = differentiable(_native_forward, _native_backward)
