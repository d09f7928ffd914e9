"""y = x·Wᵀ for activations wider than the weights: imported bf16 weights, computed with in fp32.

The matrix never becomes fp32 as a whole, which would write and read twice its own size at every use. Few rows of x, as
in steps and short prompts, go through a kernel that reads bf16 and multiplies in fp32 (``kernels/exact_rows.cpp``).
Many rows are products of PyTorch's with a piece of the matrix at a time, which stays in the cache.

Legend: R rows of x, I inputs, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops import native

FEW_ROWS = 48
"""Up to so many rows the kernel is faster: it reads weights once, and multiplies at two thirds of PyTorch's pace."""

PIECE = 1 << 18
"""Weights that are widened at a time: 1 MiB in fp32."""


def linear(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None) -> Tensor:
    """x·Wᵀ + b in the dtype of x, whatever that of the parameters."""
    bias = None if bias is None else bias.to(x.dtype)
    if weight.dtype == x.dtype or not _inference(x, weight):
        return F.linear(x, weight.to(x.dtype), bias)
    y = half_product(x.reshape(-1, x.shape[-1]), weight)
    y = y if bias is None else y.add_(bias)
    return y.view(*x.shape[:-1], len(weight))


def _inference(x: Tensor, weight: Tensor) -> bool:
    """Whether W may be taken apart: on a CPU, narrower than x, and nothing is recorded for a backward pass."""
    if x.device.type != "cpu" or weight.dtype.itemsize >= x.dtype.itemsize or torch.compiler.is_compiling():
        return False
    recorded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return not recorded and not native.is_fake(x) and not native.is_fake(weight)


def half_product(x: Float[Tensor, "R I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "R O"]:
    """x·Wᵀ in the dtype of x, which is the wider one."""
    few = len(x) <= FEW_ROWS and weight.dtype == torch.bfloat16 and weight.is_contiguous()
    if few and x.dtype == torch.float32 and native.usable(x):
        y = x.new_empty(len(x), len(weight))
        native.call("exact_half_product", x, weight.detach(), *weight.shape, x.contiguous(), len(x), y)
        return y
    return half_product_reference(x, weight)


def half_product_reference(x: Float[Tensor, "R I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "R O"]:
    """The same in PyTorch's operations, a piece of W at a time."""
    rows = max(1, PIECE // max(1, weight.shape[1]))
    y = x.new_empty(len(x), len(weight))
    for piece, out in zip(weight.split(rows), y.split(rows, 1), strict=True):
        out.copy_(x @ piece.to(x.dtype).t())
    return y
