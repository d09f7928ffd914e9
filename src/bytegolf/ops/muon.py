"""The two passes of a Muon step around its matrix products: momentum before, the weights' update after.

Natively each is one pass over a matrix, in fp32 with bf16 where the products take over. No gradients flow here.

Legend: n matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops import native


def nesterov(momenta: list[Tensor], gradients: list[Tensor], factor: float) -> Float[Tensor, "n R C"]:
    """Each momentum becomes μ·momentum + gradient in place; gradient + μ·momentum of each, stacked (Nesterov; S0).

    μ is ``factor``. The stack is in bf16 from the native kernel, in which the orthogonalisation goes on, else in fp32.
    """
    if not _fits(*momenta, *gradients):
        torch._foreach_mul_(momenta, factor)
        torch._foreach_add_(momenta, gradients)
        return torch.stack(list(torch._foreach_add(gradients, momenta, alpha=factor)))
    stack = torch.empty(len(momenta), *momenta[0].shape, dtype=torch.bfloat16)
    for momentum, gradient, out in zip(momenta, gradients, stack, strict=True):
        native.call("muon_gather", momentum, momentum, gradient, out, out.numel(), factor)
    return stack


def apply_update(weight: Float[Tensor, "R C"], update: Float[Tensor, "R C"], rate: float, shrink: float) -> None:
    """weight ← shrink·weight − rate·update, in place; shrink is 1 without weight decay."""
    if _fits(weight) and update.dtype == torch.bfloat16:
        native.call("muon_apply", weight, weight, update, weight.numel(), rate, shrink)
        return
    if shrink != 1:
        weight.mul_(shrink)
    weight.sub_(update, alpha=rate)


def _fits(*tensors: Tensor) -> bool:
    return all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors) and native.usable(*tensors)
