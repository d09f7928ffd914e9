"""Muon: momentum whose update is orthogonalised, for matrices (S0).

Legend: n matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor, nn

from bytegolf.model import native

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Float[Tensor, "n R C"], steps: int) -> BFloat16[Tensor, "n R C"]:
    """Move every singular value of each matrix towards 1, by Newton–Schulz iterations in bf16 (Muon; S0).

    The quintic's coefficients trade exactness for speed: the values end in about [0.7, 1.2].
    """
    a, b, c = NS_COEFFICIENTS
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    for _ in range(steps):
        gram = x.mT @ x if tall else x @ x.mT  # the smaller of the two
        powers = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, powers, beta=a) if tall else torch.baddbmm(x, powers, x, beta=a)
    return x


@dataclass(frozen=True)
class _Piece:
    """A matrix that Muon treats as one: some rows of a parameter (packed q, k, v share one)."""

    index: int
    first: int
    rows: int
    factor: float

    def of(self, tensors: list[Tensor]) -> Tensor:
        return tensors[self.index].narrow(0, self.first, self.rows)


class Muon:
    """Nesterov momentum, orthogonalised, on matrices; those of one shape are orthogonalised as one batch.

    An update is scaled by √max(1, R/C) (S0); each parameter has a learning-rate multiplier of its own.
    """

    def __init__(
        self, parameters: list[nn.Parameter], splits: list[tuple[int, ...]], multipliers: list[float], ns_steps: int
    ) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.multipliers, self.ns_steps = multipliers, ns_steps
        self.momenta = [torch.zeros_like(parameter) for parameter in parameters]
        self._pieces: dict[tuple[int, int], list[_Piece]] = defaultdict(list)
        for index, (parameter, rows) in enumerate(zip(parameters, splits, strict=True)):
            columns, first = parameter.shape[1], 0
            for count in rows:
                factor = max(1.0, count / columns) ** 0.5
                self._pieces[count, columns].append(_Piece(index, first, count, factor))
                first += count

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """One update with the gradients that the parameters hold."""
        if not self.parameters:
            return
        grads = [_gradient(parameter) for parameter in self.parameters]
        tensors = (*self.parameters, *grads)
        fused = all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors) and native.usable(*tensors)
        stacks = (self._gather_fused if fused else self._gather)(grads, momentum)
        for pieces, stack in zip(self._pieces.values(), stacks, strict=True):
            for piece, update in zip(pieces, orthogonalize(stack, self.ns_steps), strict=True):
                weight = piece.of(self.parameters)
                rate = lr * self.multipliers[piece.index]
                shrink = 1 - rate * weight_decay
                rate *= piece.factor
                if fused:
                    native.call("muon_apply", weight, weight, update, weight.numel(), rate, shrink)
                else:
                    if weight_decay:
                        weight.mul_(shrink)
                    weight.sub_(update, alpha=rate)

    def _gather(self, grads: list[Tensor], momentum: float) -> list[Tensor]:
        """Move the momenta on; the updates before their orthogonalisation, (n, R, C) for each shape."""
        torch._foreach_mul_(self.momenta, momentum)
        torch._foreach_add_(self.momenta, grads)
        updates = list(torch._foreach_add(grads, self.momenta, alpha=momentum))
        return [torch.stack([piece.of(updates) for piece in pieces]) for pieces in self._pieces.values()]

    def _gather_fused(self, grads: list[Tensor], momentum: float) -> list[Tensor]:
        """The same in bf16, by one pass over each matrix."""
        stacks = []
        for (rows, columns), pieces in self._pieces.items():
            stack = torch.empty(len(pieces), rows, columns, dtype=torch.bfloat16)
            for piece, out in zip(pieces, stack, strict=True):
                old, grad = piece.of(self.momenta), piece.of(grads)
                native.call("muon_gather", old, old, grad, out, out.numel(), momentum)
            stacks.append(stack)
        return stacks


def _gradient(parameter: Tensor) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
