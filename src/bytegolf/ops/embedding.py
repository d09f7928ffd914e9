"""The RMS norm of an embedding.

(why) The norm of a looked-up row is the looked-up norm of the row. A byte alphabet has 260 rows and a batch has
thousands of positions, so the native form normalises the table and looks up then; its backward pass adds the positions'
gradients up per row and takes one norm's gradient per row. With fewer positions than rows it is the other way round.

Legend: V alphabet, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, wide
from bytegolf.ops.rms_norm import native_norm, native_norm_gradient, rms_norm


def normed_embedding(ids: Int[Tensor, "*B"], weight: Float[Tensor, "V D"], dtype: torch.dtype) -> Float[Tensor, "*B D"]:
    """The RMS norm of weight[ids], in ``dtype`` (S0). Raises IndexError where an id is none of the alphabet's."""
    if ids.numel() >= weight.shape[0] and native.usable(weight.new_empty(0, dtype=dtype)):
        return _native(weight, ids, dtype)
    return rms_norm(F.embedding(ids, weight).to(dtype))


def _native_forward(weight: Tensor, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Saved, tuple[()]]:
    ids = ids.long().contiguous()
    native.check_range(ids, weight.shape[0], "id")
    table, scale = native_norm(weight.to(wide(dtype)).contiguous())
    return F.embedding(ids, table.to(dtype)), (ids, table, scale), ()


def _native_backward(g: Tensor, ids: Tensor, table: Tensor, scale: Tensor) -> tuple[Tensor]:
    g, total = g.contiguous(), torch.empty_like(table)
    native.call("embedding_backward", g, g, ids, total, ids.numel(), *table.shape)  # summed in at least fp32
    return (native_norm_gradient(total, table, scale),)


_native = differentiable(_native_forward, _native_backward)
