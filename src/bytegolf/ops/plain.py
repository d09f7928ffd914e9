"""The plain forms of the primitives in ``ops``, for torch.compile, which fuses them and derives their backward itself.

It cannot trace the hand-written ones where a length is dynamic or a tensor is passed twice (torch 2.13).

Legend: N rows (all leading axes), D width, H heads, K head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops.functions import NORM_EPS, wide

P = ParamSpec("P")


def when_compiled(form: Callable[P, Tensor]) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Decorates a primitive so that torch.compile sees ``form`` in its place."""

    def decorate(primitive: Callable[P, Tensor]) -> Callable[P, Tensor]:
        @functools.wraps(primitive)
        def choose(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            return form(*args, **kwargs) if torch.compiler.is_compiling() else primitive(*args, **kwargs)

        return choose

    return decorate


def rms_norm(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """x / sqrt(mean(x²) + ε), the mean in at least fp32; ε is fp32's machine epsilon."""
    values = x.to(wide(x.dtype))
    scale = torch.rsqrt(values.square().mean(-1, keepdim=True) + NORM_EPS)
    return (values * scale).to(x.dtype)


def mix(x: Float[Tensor, "*B D"], x0: Float[Tensor, "*B D"], weights: Float[Tensor, "2 D"]) -> Float[Tensor, "*B D"]:
    """weights₀·x + weights₁·x0."""
    weights = weights.to(x.dtype)
    return x * weights[0] + x0 * weights[1]


def add_scaled(x: Float[Tensor, "*B D"], y: Float[Tensor, "*B D"], scale: Float[Tensor, " D"]) -> Float[Tensor, "*B D"]:
    """x + scale·y."""
    return x + y * scale.to(x.dtype)


def relu_squared(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """relu(x)²."""
    return torch.relu(x).square()


def rotary(
    x: Float[Tensor, "*B H K"], cos: Float[Tensor, "*P 1 half"], sin: Float[Tensor, "*P 1 half"]
) -> Float[Tensor, "*B H K"]:
    """The halves (u, v) of each head become (u·cos + v·sin, v·cos − u·sin)."""
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), -1)
