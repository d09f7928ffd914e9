"""The residual stream of a pre-norm block: add a branch, and take the RMS norm with a gain (S4).

Legend: D width; W the stream's dtype, fp32, or fp64 where activations are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, wide


def add_norm(
    stream: Float[Tensor, "*B D"],
    branch: Float[Tensor, "*B D"] | None,
    gain: Float[Tensor, " D"],
    eps: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "*B D"], Float[Tensor, "*B D"]]:
    """r = stream + branch in the stream's dtype, and r / sqrt(mean(r²) + ε) · gain in ``dtype``."""
    if native.usable(stream.new_empty(0, dtype=dtype)) and stream.dtype == wide(dtype):
        return _native(stream, branch, gain, eps, dtype)
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


# ------------------------------------------------------------------------------------------------- native


def _native_forward(
    stream: Tensor, branch: Tensor | None, gain: Tensor, eps: float, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], Saved, tuple[bool]]:
    stream, gain = stream.contiguous(), gain.detach().to(stream.dtype).contiguous()
    branch = None if branch is None else branch.to(dtype).contiguous()
    normed, scale = torch.empty_like(stream, dtype=dtype), stream.new_empty(stream.shape[:-1])
    total = stream if branch is None else torch.empty_like(stream)
    written = None if branch is None else total
    native.call("add_norm_forward", normed, stream, branch, gain, written, normed, scale, *_sizes(stream), eps)
    # (why) a result that is an input would be marked as changed in place: autograd asks for a view of it
    return (total.view_as(total), normed), (total, gain, scale, normed.new_empty(0)), (branch is not None,)


def _native_backward(
    g_total: Tensor | None,
    g_normed: Tensor | None,
    total: Tensor,
    gain: Tensor,
    scale: Tensor,
    like: Tensor,
    added: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if g_normed is None:
        return g_total, g_total if added else None, None
    g_normed = g_normed.to(like.dtype).contiguous()
    g_total = None if g_total is None else g_total.contiguous()
    dx, d_gain = torch.empty_like(total), torch.empty_like(gain)
    # the branch's gradient is the stream's, in the branch's dtype
    dh = torch.empty_like(total, dtype=like.dtype) if added and like.dtype != total.dtype else None
    given = (g_total, g_normed, total, gain, scale)
    native.call("add_norm_backward", like, *given, dx, dh, d_gain, *_sizes(total))
    return dx, (dx if dh is None else dh) if added else None, d_gain


def _sizes(stream: Tensor) -> tuple[int, int]:
    return stream.numel() // max(stream.shape[-1], 1), stream.shape[-1]


_native = differentiable(_native_forward, _native_backward, materialize_grads=False)
