"""Mamba-2's output norm: RMSNorm(y·silu(z))·w, the gate before the norm (arXiv 2405.21060).

Legend: B batch, L positions, I inner width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, wide


def gated_norm(
    y: Float[Tensor, "B L I"], z: Float[Tensor, "B L I"], gain: Float[Tensor, " I"], eps: float
) -> Float[Tensor, "B L I"]:
    """u / sqrt(mean(u²) + ε) · gain with u = y·silu(z), in y's dtype; the mean in at least fp32."""
    return (_native if native.usable(y, z) else gated_norm_reference)(y, z, gain, eps)


def gated_norm_reference(
    y: Float[Tensor, "B L I"], z: Float[Tensor, "B L I"], gain: Float[Tensor, " I"], eps: float
) -> Float[Tensor, "B L I"]:
    """The formula."""
    kind = wide(y.dtype)
    u = y.to(kind) * F.silu(z.to(kind))
    scale = torch.rsqrt(u.square().mean(-1, keepdim=True) + eps)
    return (u * scale * gain.to(kind)).to(y.dtype)


# ------------------------------------------------------------------------------------------------- native


def _native_forward(y: Tensor, z: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Saved, tuple[()]]:
    y, z, gain = y.contiguous(), native.spaced(z), gain.detach().to(wide(y.dtype)).contiguous()
    out, scale = torch.empty_like(y), gain.new_empty(y.shape[:2])
    sizes = (scale.numel(), y.shape[2])
    native.call("gated_norm_forward", y, y, z.data_ptr(), z.stride(1), gain, out, scale, *sizes, eps)
    return out, (y, z, gain, scale), ()


def _native_backward(g: Tensor, y: Tensor, z: Tensor, gain: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dy, dz, d_gain = torch.empty_like(y), torch.empty_like(y), torch.empty_like(gain)
    given = (g.contiguous(), y, z.data_ptr(), z.stride(1), gain, scale)
    native.call("gated_norm_backward", y, *given, dy, dz, d_gain, scale.numel(), y.shape[2])
    return dy, dz, d_gain


_native = differentiable(_native_forward, _native_backward)
