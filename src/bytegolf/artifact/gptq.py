"""GPTQ: codes that keep a linear map's *output*, given what its inputs look like (Frantar et al., arXiv 2210.17323).

Columns are rounded one after the other, and the error of each is made good in the columns that are still to come, as
far as the inputs correlate. Scales, rounding and pruning are the quantiser's own (``artifact.quantize``); what is
rounded changes. A row for which that does not pay keeps its plain codes, so that no map gets worse on the inputs looked
at.

One row of two weights, (0.4, 0.4) in steps of 1, for two inputs that are always equal: plainly both become 0, and the
output is off by 0.8 x. GPTQ rounds the first to 0, sees that its error of 0.4 can be made good by the second, which
becomes 0.8, and rounds that to 1: the output is off by 0.2 x.

Legend: O outputs (rows of a weight), I inputs (columns), N windows of M tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float, Float16, Int, Int8
from torch import Tensor

from bytegolf.artifact.quantize import Plan, QuantizedTensor, Quantizer, Storage, checked, pruned, quantizer
from bytegolf.data.dataset import TokenStream
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import Linear
from bytegolf.model.lm import LanguageModel

BLOCK = 128
"""Columns whose errors are carried on to the later ones together."""

MAX_DAMPING = 1e3
"""Beyond so much no Hessian is usable."""


def sample_windows(stream: TokenStream, length: int, tokens: int) -> Int[Tensor, "N M"]:
    """Windows of ``length`` + 1 tokens, evenly spaced over a stream; ``tokens`` of them in all, a window at least.

    Of a stream of 11, the windows of 2 + 1 tokens for 6 tokens in all begin at 0, 4 and 8: from the first to the last
    place at which one fits.
    """
    count = max(1, min(-(-tokens // length), (len(stream) - 1) // length))
    last = len(stream) - length - 1
    starts = [index * last // max(1, count - 1) for index in range(count)]
    return torch.stack([torch.from_numpy(stream.slice(at, at + length + 1).astype("int64")) for at in starts])


@torch.no_grad()
def second_moments(
    model: LanguageModel, windows: Int[Tensor, "N M"], names: Collection[str]
) -> dict[str, Float[Tensor, "I I"]]:
    """Σ x·xᵀ over the inputs x of each linear map whose weight is among ``names``, in fp32.

    The windows are run one by one with room for exactly their own chunks: padding never counts.
    """
    found: dict[str, Tensor] = {}

    def add(name: str, module: Linear, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).to(torch.float32)
        found[name] = found[name].addmm_(x.mT, x) if name in found else x.mT @ x

    watched = {f"{path}.weight": module for path, module in model.named_modules() if isinstance(module, Linear)}
    hooks = [
        module.register_forward_pre_hook(functools.partial(add, name))
        for name, module in watched.items()
        if name in names
    ]
    try:
        with model.capacity("exact"):
            for window in windows:
                model(window[None, :-1].to(model.embedding.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def with_gptq(plan: Plan) -> set[str]:
    """The tensors of a plan whose quantiser GPTQ can work for, if they are the weights of linear maps."""
    return {name for name, how in plan.items() if quantizer(how.quantizer).gptq and how.group == 1}


def quantize_state(
    state: Mapping[str, Tensor], plan: Plan, hessians: Mapping[str, Tensor], damping: float
) -> dict[str, Tensor | QuantizedTensor]:
    """``state`` with the weights that have a Hessian quantised as ``plan`` says; what ``write_artifact`` takes."""
    found: dict[str, Tensor | QuantizedTensor] = dict(state)
    for name, hessian in hessians.items():
        weight = checked(name, state[name])
        codes, scale = solve(weight.to(hessian.device), hessian, plan[name], damping)
        if bool(torch.isfinite(scale).all()):  # otherwise the export says what is wrong with the weight
            found[name] = QuantizedTensor(name, plan[name].quantizer, codes.cpu(), scale.cpu())
    return found


def solve(
    weight: Float[Tensor, "O I"], hessian: Float[Tensor, "I I"], storage: Storage, damping: float = 0.01
) -> tuple[Int8[Tensor, "O I"], Float16[Tensor, " S"]]:
    """Codes and scales of ``weight`` for inputs x with Σ x·xᵀ = ``hessian``.

    ``damping`` is added to its diagonal, times the diagonal's mean; ten times as much as long as that does not make it
    positive definite. Raises BytegolfError if nothing does: it is not finite.
    """
    by = quantizer(storage.quantizer)
    plain, scale = by.quantize(weight, storage)
    assert scale is not None, f"{storage.quantizer} says that GPTQ can work for it, and has no scales"
    exact = weight.to(torch.float64)
    gone = (pruned(weight, storage.prune) == 0) & (weight != 0)  # stays 0, whatever errors are carried there
    order = hessian.diagonal().argsort(descending=True)  # what matters most is rounded first, with the most to amend it
    inverse = _inverse_factor(hessian.to(torch.float64)[order][:, order], damping)
    codes = torch.empty_like(plain)
    codes[:, order] = _rounded(exact[:, order], gone[:, order], order, by, scale, inverse)
    # column by column is greedy: a row that ends up worse than by plain rounding keeps its plain codes
    better = output_error(by, weight, codes, scale, hessian) < output_error(by, weight, plain, scale, hessian)
    return torch.where(better.unsqueeze(1), codes, plain), scale


def output_error(by: Quantizer, weight: Tensor, codes: Tensor, scale: Tensor, hessian: Tensor) -> Float[Tensor, " O"]:
    """Σ over the inputs of the squared error of each output."""
    error = (by.dequantize(codes, scale) - weight).to(torch.float64)
    return ((error @ hessian.to(torch.float64)) * error).sum(1)


def _rounded(
    weight: Float[Tensor, "O I"],
    gone: Tensor,
    order: Int[Tensor, " I"],
    by: Quantizer,
    scale: Tensor,
    inverse: Float[Tensor, "I I"],
) -> Int8[Tensor, "O I"]:
    """The codes, column by column, in an order in which column c was ``order[c]``. ``weight`` is used up.

    ``inverse`` is U of ``_inverse_factor``. With e = (w_c − rounded) / U[c, c], subtracting e · U[c, c:] from the
    columns c and later makes the output's squared error as small as it can still be; at c itself it takes away exactly
    the error. Within a block of ``BLOCK`` columns that is done at once; the later columns get the errors of a whole
    block in one product, which is the same sum in another order.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    places = order.tolist()
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        errors = torch.empty_like(weight[:, start:end])
        for column in range(start, end):
            now, place = weight[:, column : column + 1], places[column]
            rounded = by.round_column(now.to(torch.float32), scale, place)
            rounded = rounded.masked_fill(gone[:, column : column + 1], 0)
            error = (now - by.column_values(rounded, scale, place)) / inverse[column, column]
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
            # H⁻¹ = UᵀU by way of H = LLᵀ; fp64, as H's condition is the square of the inputs'
            upper: Tensor = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True).L
            if bool(upper.isfinite().all() & (upper.diagonal() > 0).all()):
                return upper
        damping = max(10 * damping, 1e-6)
    raise BytegolfError("GPTQ's second moments are not finite: training diverged, so export an earlier checkpoint")
