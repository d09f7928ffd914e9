"""What the hand-written autograd functions share, plain and native."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

NORM_EPS = 1.1920929e-07
"""ε of every RMS norm: fp32's machine epsilon, as the public baseline's default (S0)."""

_Backward = TypeVar("_Backward", bound=Callable[..., Any])


class _Nowhere:
    """The context of a forward pass without a backward one: it keeps nothing."""

    needs_input_grad = (False,) * 16

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


def run(function: type[Function]) -> Callable[..., Any]:
    """``function.apply``, which torch leaves without types; where no gradient is wanted, the forward pass itself.

    The way through autograd costs a small step more than its arithmetic.
    """
    if torch.is_grad_enabled():
        return function.apply
    return functools.partial(function.forward, _Nowhere())


def apply(function: type[Function], *arguments: Any) -> Tensor:
    """``run`` for a function of one result."""
    return cast("Tensor", run(function)(*arguments))


def first_order(backward: _Backward) -> _Backward:
    """Mark a backward pass that has no derivative of its own: asking for one is an error, not silently zero."""
    return cast("_Backward", once_differentiable(backward))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype for statistics and sums of ``dtype``: fp32, or fp64 for fp64 (``Wide<T>`` in the kernels)."""
    return torch.promote_types(dtype, torch.float32)


def rows_of(x: Tensor) -> Tensor:
    """(..., D) → (N, D)."""
    return x.reshape(-1, x.shape[-1])
