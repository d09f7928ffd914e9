"""FlexAttention on the pretended device: what the GPU kernel asks of its arguments is checked, the rest is dense.

Legend: B batch, L positions, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from pretend_cuda.tensors import CUDA

LEAST_WIDTH = 16
"""Of a head: Triton's ``tl.dot`` takes no narrower matrices, so inductor refuses them."""

MASK_TENSORS = (
    "kv_num_blocks",
    "kv_indices",
    "full_kv_num_blocks",
    "full_kv_indices",
    "q_num_blocks",
    "q_indices",
    "full_q_num_blocks",
    "full_q_indices",
)

calls: list[tuple[int, ...]] = []
"""The shape of q of every call."""


def flex_attention(q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, scale: float, enable_gqa: bool) -> Tensor:
    """What FlexAttention's kernel would give; AssertionError where it would refuse or misread its arguments."""
    calls.append(tuple(q.shape))
    batch, heads, length, width = q.shape
    groups = k.shape[1]
    assert k.shape == v.shape == (batch, groups, length, width), (q.shape, k.shape, v.shape)
    assert heads % groups == 0
    assert enable_gqa or heads == groups
    assert width >= LEAST_WIDTH, f"a head of {width} is narrower than {LEAST_WIDTH}"
    assert q.dtype == k.dtype == v.dtype in (torch.bfloat16, torch.float32)
    assert q.device == k.device == v.device == CUDA
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "the kernel reads rows of a head"
    assert scale == 1.0, "q carries the scale already"
    seen = _dense(block_mask, batch, length, learning=torch.is_grad_enabled() and q.requires_grad)
    k, v = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
    scores = (q @ k.mT).masked_fill(seen.logical_not(), float("-inf"))
    return torch.softmax(scores.float(), -1).to(q.dtype) @ v


def _dense(mask: BlockMask, batch: int, length: int, learning: bool) -> Tensor:
    """(1 or B, 1, L, L): whether a query (row) sees a key; it lies within the blocks that the kernel looks at."""
    assert mask.seq_lengths == (length, length), "a mask of another length"
    rows = mask.kv_num_blocks.shape[0]
    assert rows in (1, batch), "a mask of another batch"
    for name in MASK_TENSORS:
        tensor: Any = getattr(mask, name)
        if tensor is not None:
            assert tensor.device == CUDA, f"the mask's {name} is on {tensor.device}"
            assert not (learning and tensor.is_inference()), "made under inference mode, so no backward pass can use it"
    if mask not in _worked_out:
        seen: Tensor = create_mask(mask.mask_mod, rows, 1, length, length, device=str(CUDA))
        size = mask.BLOCK_SIZE[0]
        looked_at = mask.to_dense().bool().repeat_interleave(size, 2).repeat_interleave(size, 3)
        outside = seen.logical_and(looked_at[:, :, :length, :length].logical_not())
        assert not outside.any(), "the mask's blocks leave out keys that queries see"
        assert bool(seen.any(-1).all()), "a query that sees nothing gives NaN"
        _worked_out[mask] = seen
    return _worked_out[mask]


_worked_out: weakref.WeakKeyDictionary[BlockMask, Tensor] = weakref.WeakKeyDictionary()
