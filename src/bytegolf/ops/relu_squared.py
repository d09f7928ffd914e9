"""relu(x)², the activation of S0's MLP (Primer, arXiv 2109.08668).

With y = relu(x)², dx = 2·g·relu(x) = 2·g·√y. So one tensor serves both passes: the native form keeps y, which the next
matrix product keeps anyway, and takes the root; the eager form keeps relu(x), as a root costs PyTorch a pass.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable


def relu_squared(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """relu(x)²."""
    if torch.compiler.is_compiling():
        return relu_squared_reference(x)
    return _native(x) if native.usable(x) else _eager(x)


def relu_squared_reference(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """The formula."""
    return torch.relu(x).square()


def _forward(x: Tensor) -> tuple[Tensor, Saved, tuple[()]]:
    positive = torch.relu(x)
    return positive * positive, (positive,), ()


def _backward(g: Tensor, positive: Tensor) -> tuple[Tensor]:
    return ((g * positive).mul_(2),)


def _native_forward(x: Tensor) -> tuple[Tensor, Saved, tuple[()]]:
    x = x.contiguous()
    y = torch.empty_like(x)
    native.call("relu_squared_forward", x, x, y, x.numel())
    return y, (y,), ()


def _native_backward(g: Tensor, y: Tensor) -> tuple[Tensor]:
    dx = torch.empty_like(y)
    native.call("relu_squared_backward", y, g.contiguous(), y, dx, y.numel())
    return (dx,)


_eager = differentiable(_forward, _backward)
_native = differentiable(_native_forward, _native_backward)
