"""The residual stream of a pre-norm block: add a branch, and take the RMS norm with a gain (S4).

Legend: D width; W the stream's dtype, fp32, or fp64 where activations are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def add_norm(
    stream: Float[Tensor, "*B D"],
    branch: Float[Tensor, "*B D"] | None,
    gain: Float[Tensor, " D"],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "*B D"], Float[Tensor, "*B D"]]:
    """r = stream + branch in the stream's dtype, and r / sqrt(mean(r²) + ε) · gain in ``dtype``."""
    return add_norm_reference(stream, branch, gain, eps, dtype)


def add_norm_reference(
    stream: Float[Tensor, "*B D"],
    branch: Float[Tensor, "*B D"] | None,
    gain: Float[Tensor, " D"],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "*B D"], Float[Tensor, "*B D"]]:
    """The formula."""
    total = stream if branch is None else stream + branch
    scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    return total, (total * scale * gain.to(total.dtype)).to(dtype)
