"""y = x·Wᵀ for weights as they are stored, narrower than the activations: imported bf16, or an artifact's codes.

The matrix never becomes fp32 as a whole, which would write and read a multiple of its own size at every use. Few rows
of x, as in steps and short prompts, go through a kernel that reads what is stored and multiplies in fp32
(``kernels/exact_rows.cpp``). Many rows are products of PyTorch's with a piece of the matrix at a time, which stays in
the cache.

W is bf16, or int8 codes with one scale per output: W[o, i] = scale[o] · codes[o, i] (``artifact.quantize``). A code has
7 bits and a scale comes from fp16, so this product is exact in fp32: the weights are those that dequantising gives.

Legend: R rows of x, I inputs, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from bytegolf.ops import native

FEW_ROWS = 48
"""Up to so many rows the kernel is faster: it reads weights once, and multiplies at two thirds of PyTorch's pace."""

PIECE = 1 << 18
"""Weights that are widened at a time: 1 MiB in fp32."""


def linear(
    x: Float[Tensor, "*B I"],
    weight: Shaped[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
    scale: Float[Tensor, " O"] | None = None,
) -> Float[Tensor, "*B O"]:
    """x·Wᵀ + b in the dtype of x, whatever that of the parameters; ``scale`` (fp32) where ``weight`` holds codes."""
    bias = None if bias is None else bias.to(x.dtype)
    if (weight.dtype == x.dtype and scale is None) or not _inference(x, weight):
        return F.linear(x, widened(weight, scale, x.dtype), bias)
    y = stored_product(x.reshape(-1, x.shape[-1]), weight, scale)
    y = y if bias is None else y.add_(bias)
    return y.view(*x.shape[:-1], len(weight))


def widened(weight: Shaped[Tensor, "O I"], scale: Float[Tensor, " O"] | None, dtype: torch.dtype) -> Tensor:
    """W in ``dtype``."""
    return weight.to(dtype) if scale is None else (weight.to(scale.dtype) * scale.unsqueeze(1)).to(dtype)


def _inference(x: Tensor, weight: Tensor) -> bool:
    """Whether W may be taken apart: on a CPU, narrower than x, and nothing is recorded for a backward pass."""
    if x.device.type != "cpu" or weight.dtype.itemsize >= x.dtype.itemsize or torch.compiler.is_compiling():
        return False
    recorded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return not recorded and not native.is_fake(x) and not native.is_fake(weight)


def stored_product(
    x: Float[Tensor, "R I"], weight: Shaped[Tensor, "O I"], scale: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "R O"]:
    """x·Wᵀ in the dtype of x, which is wider than that of ``weight``."""
    kind = torch.bfloat16 if scale is None else torch.int8
    few = len(x) <= FEW_ROWS and weight.dtype == kind and weight.is_contiguous()
    if few and x.dtype == torch.float32 and native.usable(x):
        y = x.new_empty(len(x), len(weight))
        native.call("exact_stored_product", x, weight.detach(), scale, *weight.shape, x.contiguous(), len(x), y)
        return y
    return stored_product_reference(x, weight, scale)


def stored_product_reference(
    x: Float[Tensor, "R I"], weight: Shaped[Tensor, "O I"], scale: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "R O"]:
    """The same in PyTorch's operations, a piece of W at a time."""
    rows = max(1, PIECE // max(1, weight.shape[1]))
    y = x.new_empty(len(x), len(weight))
    scales = [None] * -(-len(weight) // rows) if scale is None else scale.split(rows)
    for piece, its, out in zip(weight.split(rows), scales, y.split(rows, 1), strict=True):
        out.copy_(x @ widened(piece, its, x.dtype).t())
    return y
