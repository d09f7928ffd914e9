"""GPTQ: codes that keep a linear map's *output*, given what its inputs look like (Frantar et al., arXiv 2210.17323).

Columns are rounded one after the other, and the error of each is made good in the columns that are still to come, as
far as the inputs correlate. Scales, rounding and pruning are the export's own (``artifact.quantize``); what is rounded
changes. A row for which that does not pay keeps its plain codes, so that no map gets worse on the inputs looked at.

Legend: O outputs (rows of a weight), I inputs (columns).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor

from bytegolf.artifact.plan import Plan
from bytegolf.artifact.quantize import (
    ROW_BITS,
    QuantizedTensor,
    checked,
    dequantize_rows,
    pruned,
    quantize_rows,
    round_rows,
)
from bytegolf.errors import BytegolfError

BLOCK = 128
"""Columns whose errors are carried on to the later ones together."""

MAX_DAMPING = 1e3
"""Beyond so much no Hessian is usable."""


def quantize_state(
    state: Mapping[str, Tensor], plan: Plan, hessians: Mapping[str, Tensor], damping: float
) -> dict[str, Tensor | QuantizedTensor]:
    """``state`` with the weights that have a Hessian quantised as ``plan`` says; what ``write_artifact`` takes."""
    found: dict[str, Tensor | QuantizedTensor] = dict(state)
    for name, hessian in hessians.items():
        weight, storage = checked(name, state[name]), plan[name]
        bits = ROW_BITS[storage.scheme]
        codes, scale = solve(weight.to(hessian.device), hessian, bits, storage.prune, damping)
        if bool(torch.isfinite(scale).all()):  # otherwise the export says what is wrong with the weight
            found[name] = QuantizedTensor(name, storage.scheme, tuple(weight.shape), codes.cpu(), scale.cpu())
    return found


def solve(
    weight: Float[Tensor, "O I"], hessian: Float[Tensor, "I I"], bits: int, prune: float = 0.0, damping: float = 0.01
) -> tuple[Int8[Tensor, "O I"], Float16[Tensor, " O"]]:
    """Codes and scales of ``weight`` for inputs x with Σ x·xᵀ = ``hessian``.

    ``damping`` is added to its diagonal, times the diagonal's mean; ten times as much as long as that does not make it
    positive definite. Raises BytegolfError if nothing does: it is not finite.
    """
    plain, scale = quantize_rows(weight, bits, prune)
    exact = weight.to(torch.float64)
    gone = (pruned(weight, prune) == 0) & (weight != 0)
    order = hessian.diagonal().argsort(descending=True)  # what matters most is rounded first, with the most to amend it
    inverse = _inverse_factor(hessian.to(torch.float64)[order][:, order], damping)
    codes = torch.empty_like(plain)
    codes[:, order] = _rounded(exact[:, order], gone[:, order], scale, inverse, bits)
    better = output_error(weight, codes, scale, hessian) < output_error(weight, plain, scale, hessian)
    return torch.where(better.unsqueeze(1), codes, plain), scale


def output_error(weight: Tensor, codes: Tensor, scale: Tensor, hessian: Tensor) -> Float[Tensor, " O"]:
    """Σ over the inputs of the squared error of each output."""
    error = (dequantize_rows(codes, scale) - weight).to(torch.float64)
    return ((error @ hessian.to(torch.float64)) * error).sum(1)


def _rounded(
    weight: Float[Tensor, "O I"], gone: Tensor, scale: Tensor, inverse: Float[Tensor, "I I"], bits: int
) -> Int8[Tensor, "O I"]:
    """The codes, column by column; ``inverse`` is what ``_inverse_factor`` gives. ``weight`` is used up."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        errors = torch.empty_like(weight[:, start:end])
        for column in range(start, end):
            now = weight[:, column : column + 1]
            rounded = round_rows(now.to(torch.float32), scale, bits).masked_fill(gone[:, column : column + 1], 0)
            error = (now - dequantize_rows(rounded, scale)) / inverse[column, column]
            weight[:, column:end] -= error * inverse[column, column:end]
            codes[:, column], errors[:, column - start] = rounded[:, 0], error[:, 0]
        weight[:, end:] -= errors @ inverse[start:end, end:]
    return codes


def _inverse_factor(hessian: Float[Tensor, "I I"], damping: float) -> Float[Tensor, "I I"]:
    """The upper Cholesky factor of the damped Hessian's inverse: row c says how an error in column c is made good."""
    mean = hessian.diagonal().mean()
    eye = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    if not bool(mean > 0):  # inputs that are always zero, or a Hessian that is not finite
        mean = torch.ones_like(mean)
    while damping <= MAX_DAMPING:
        factor, failed = torch.linalg.cholesky_ex(hessian + damping * mean * eye)
        if not failed:
            upper: Tensor = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True).L
            if bool(upper.isfinite().all() & (upper.diagonal() > 0).all()):
                return upper
        damping = max(10 * damping, 1e-6)
    raise BytegolfError("GPTQ's second moments are not finite: training diverged, so export an earlier checkpoint")
