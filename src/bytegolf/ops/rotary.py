"""Rotary position embedding (RoPE; arXiv 2104.09864), by halves.

A head's first half u and second half v hold K/2 pairs (u_i, v_i). At position t pair i turns by the angle t·ω_i with
ω_i = base^(−2i/K), so that the product of a query at t and a key at s depends on t − s only.

Legend: *P positions, H heads, K head width, half K/2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.ops.autograd import Saved, differentiable, wide


def rotary_angles(
    positions: Int[Tensor, "*P"], width: int, base: float, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "*P half"], Float[Tensor, "*P half"]]:
    """cos and sin of position × base^(−2i/width), in at least fp32, for i below half the head width."""
    # (why) not bf16: it has 8 bits, so the positions 1000 and 1001 would be one and the same
    kind = wide(dtype)
    angles = positions.unsqueeze(-1).to(kind) * rotary_frequencies(width, base, positions.device, kind)
    return angles.cos(), angles.sin()


def rotary_frequencies(
    width: int, base: float, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, " half"]:
    """ω_i = base^(−2i/width), in ``dtype``, for i below half the head width."""
    return base ** -(torch.arange(0, width, 2, device=device, dtype=dtype) / width)


def rotary(
    x: Float[Tensor, "*B H K"], cos: Float[Tensor, "*P 1 half"], sin: Float[Tensor, "*P 1 half"]
) -> Float[Tensor, "*B H K"]:
    """Rotate the halves (u, v) of each head to (u·cos + v·sin, v·cos − u·sin); *P broadcasts to *B."""
    if torch.compiler.is_compiling():
        return rotary_reference(x, cos, sin)
    return _rotary(x, cos, sin)


def rotary_reference(
    x: Float[Tensor, "*B H K"], cos: Float[Tensor, "*P 1 half"], sin: Float[Tensor, "*P 1 half"]
) -> Float[Tensor, "*B H K"]:
    """The formula."""
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    out = torch.empty_like(x)
    # (why) written into the halves of the result: a concatenation would pass over everything once more
    turned_first, turned_second = out.chunk(2, -1)
    torch.mul(first, cos, out=turned_first).addcmul_(second, sin)
    torch.mul(second, cos, out=turned_second).addcmul_(first, sin, value=-1)
    return out


def _forward(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Saved, tuple[()]]:
    return _rotate(x, cos.to(x.dtype), sin.to(x.dtype)), (cos, sin), ()


def _backward(g: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor]:
    # (why) a rotation's transpose is the rotation back by the same angle: cos(−a) = cos a, sin(−a) = −sin a
    return (_rotate(g, cos.to(g.dtype), -sin.to(g.dtype)),)


_rotary = differentiable(_forward, _backward)
