"""Mamba-2's output norm: RMSNorm(y·silu(z))·w, the gate before the norm (arXiv 2405.21060).

Legend: I inner width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops.autograd import wide


def gated_norm(
    y: Float[Tensor, "*B I"], z: Float[Tensor, "*B I"], gain: Float[Tensor, " I"], eps: float
) -> Float[Tensor, "*B I"]:
    """u / sqrt(mean(u²) + ε) · gain with u = y·silu(z), in y's dtype; the mean in at least fp32."""
    return gated_norm_reference(y, z, gain, eps)


def gated_norm_reference(
    y: Float[Tensor, "*B I"], z: Float[Tensor, "*B I"], gain: Float[Tensor, " I"], eps: float
) -> Float[Tensor, "*B I"]:
    """The formula."""
    kind = wide(y.dtype)
    u = y.to(kind) * F.silu(z.to(kind))
    scale = torch.rsqrt(u.square().mean(-1, keepdim=True) + eps)
    return (u * scale * gain.to(kind)).to(y.dtype)
