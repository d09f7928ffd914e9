"""Muon: momentum whose update is orthogonalised, for matrices (S0); each process does its share of them.

Legend: n matrices of one shape that a process has, R rows, C columns.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import BFloat16, Float
from torch import Tensor, nn

from bytegolf.device import has_bf16
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.ops.muon import apply_update, nesterov

Quintic = tuple[float, float, float]
"""a, b, c of p(s) = a·s + b·s³ + c·s⁵, which an iteration applies to every singular value s."""

NS_COEFFICIENTS: Quintic = (3.4445, -4.7750, 2.0315)
"""of each of the usual iterations (S0)"""

LEAST = 0.01
"""the singular value from which on ``minimax_quintics`` do their best"""


@functools.cache
def minimax_quintics(steps: int, least: float = LEAST) -> tuple[Quintic, ...]:
    """For each of ``steps`` iterations the quintic that is nearest to 1 on what the ones before make of [least, 1].

    Such a p has its largest error E at four points, −E, +E, −E, +E: the interval's ends and the two extrema between,
    which are found in turn with a, b, c and E (Remez). It then maps the interval [l, u] to [1 − E, 1 + E]; nearest at
    each iteration is nearest at the end (Polar Express, arXiv 2505.16932). With 3 steps 0.01 → 0.08 → 0.29 → 0.73, as
    with 4 of the usual ones, and all singular values end in [0.73, 1.27].
    """
    low, high = least, 1.0
    found: list[Quintic] = []
    for _ in range(steps):
        inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
        for _ in range(30):
            points = np.array([low, *inner, high])
            system = np.stack([points, points**3, points**5, [1, -1, 1, -1]], 1)
            a, b, c, error = (float(value) for value in np.linalg.solve(system, np.ones(4)))
            root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))  # p' = a + 3b·s² + 5c·s⁴
            inner = np.sqrt((-3 * b + np.array([-root, root])) / (10 * c))
        found.append((a, b, c))
        low, high = 1 - abs(error), 1 + abs(error)
    return tuple(found)


def orthogonalize(
    matrices: Float[Tensor, "n R C"], steps: int, quintics: Literal["same", "minimax"] = "same"
) -> BFloat16[Tensor, "n R C"]:
    """Move every singular value of each matrix towards 1, by Newton–Schulz iterations (Muon; S0).

    With X = U·S·Vᵀ, X·Xᵀ = U·S²·Uᵀ, so a·X + b·(X·Xᵀ)·X + c·(X·Xᵀ)²·X = U·p(S)·Vᵀ: products of matrices apply the
    quintic to singular values that nobody works out. The usual coefficients trade exactness for speed: p has a slope of
    3.4 at 0, so that small values grow fast, and all end in about [0.7, 1.2]: 0.01 → 0.034 → 0.12 → 0.40 → 1.09 → 0.70.

    bf16 is exact enough for the iterations, and for what is returned; a CPU without bf16 units would take fifty times
    as long over them.
    """
    chosen = (NS_COEFFICIENTS,) * steps if quintics == "same" else minimax_quintics(steps)
    x = matrices.to(torch.bfloat16 if has_bf16(matrices.device) else torch.float32)
    # no singular value is above the root of the sum of all squares, and p diverges above 1.26
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if x.dtype == torch.float32 and max(x.shape[1:]) >= 2 * min(x.shape[1:]):
        return _through_gram(x, chosen, tall).bfloat16()
    for a, b, c in chosen:
        gram = x.mT @ x if tall else x @ x.mT  # the smaller of the two
        powers = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, powers, beta=a) if tall else torch.baddbmm(x, powers, x, beta=a)
    return x.bfloat16()


def _through_gram(x: Float[Tensor, "n R C"], quintics: Sequence[Quintic], tall: bool) -> Float[Tensor, "n R C"]:
    """The same iterations on the smaller Gram matrix alone, for long matrices.

    One iteration is X ← q(G)·X with G = X·Xᵀ and q(G) = a + b·G + c·G². The next one's G is q(G)·G·q(G), which needs
    no X, and polynomials of one G commute. So G is iterated by itself, the factors q are multiplied up, and X is
    multiplied once at the end:

        G₁ = X·Xᵀ    G₂ = q(G₁)·G₁·q(G₁)    …    result = q(G₅)·…·q(G₂)·q(G₁)·X

    The long axis takes part in 2 products instead of 2 per iteration. For R × 4R and 5 iterations, in units of R³
    multiplications: 2·4 + 5 for the squares of G + 4·2 for the next G + 4 for the factors = 25, instead of
    5·(4 + 1 + 4) = 45.

    fp32 only: G holds squares of singular values, of which bf16 would lose all but the largest.
    """

    def polynomial(gram: Tensor, quintic: Quintic) -> Tensor:
        a, b, c = quintic
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        q.diagonal(dim1=1, dim2=2).add_(a)
        return q

    gram = x.mT @ x if tall else x @ x.mT
    whole = factor = polynomial(gram, quintics[0])
    for quintic in quintics[1:]:
        gram = factor @ (factor @ gram)
        factor = polynomial(gram, quintic)
        whole = factor @ whole
    return x @ whole if tall else whole @ x


@dataclass(frozen=True)
class _Piece:
    """A matrix that Muon treats as one: some rows of a parameter. A packed projection of q, k and v holds three, which
    share their input and are orthogonalised one by one, as if they were separate parameters.
    """

    index: int
    """of the parameter"""
    first: int
    """row"""
    rows: int
    factor: float
    """√max(1, R/C)"""

    def of(self, tensors: list[Tensor]) -> Tensor:
        """Its rows of its parameter, or of anything of that shape; a view."""
        return tensors[self.index].narrow(0, self.first, self.rows)


@dataclass(frozen=True)
class _Shape:
    """The matrices of one shape, and who works on which: the ranks take turns.

    The first turn is ``first_rank``'s, which goes on where the shape before ended. With 3 ranks, 4 matrices of one
    shape and 2 of the next: ranks 0 1 2 0, then 1 2. Were each shape to start at rank 0, it would always have most.
    """

    rows: int
    columns: int
    pieces: list[_Piece]
    first_rank: int

    def owned(self, world: DistributedContext) -> list[_Piece]:
        """Those of ``world``'s rank."""
        return self.pieces[(world.rank - self.first_rank) % world.size :: world.size]

    def in_order(self, gathered: Tensor) -> list[Tensor]:
        """The matrices (R, C) in the order of ``pieces``, from every rank's (ranks, slots, R, C).

        Piece number 3 of 3 ranks, first rank 1, is in the second slot of rank (1 + 3) % 3 = 1.
        """
        size = len(gathered)
        return [gathered[(self.first_rank + at) % size, at // size] for at in range(len(self.pieces))]


class Muon:
    """Nesterov momentum, orthogonalised, on matrices; those of one shape are orthogonalised as one batch.

    An update is scaled by √max(1, R/C) (S0); each parameter has a learning-rate multiplier of its own. Of several
    processes each keeps the momenta of its share of the matrices and orthogonalises those; all of them then get the
    updates (bf16) and apply every one, so that weights stay alike to the bit.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        splits: list[tuple[int, ...]],
        multipliers: list[float],
        ns_steps: int,
        world: DistributedContext = SINGLE_PROCESS,
        quintics: Literal["same", "minimax"] = "same",
    ) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.multipliers, self.ns_steps, self.world, self.quintics = multipliers, ns_steps, world, quintics
        found: dict[tuple[int, int], list[_Piece]] = defaultdict(list)
        # by shape, so that one batched product orthogonalises all of them: a few large ones instead of many small
        for index, (parameter, rows) in enumerate(zip(parameters, splits, strict=True)):
            columns, first = parameter.shape[1], 0
            for count in rows:
                factor = max(1.0, count / columns) ** 0.5
                found[count, columns].append(_Piece(index, first, count, factor))
                first += count
        self._shapes: list[_Shape] = []
        handed_out = 0
        for (height, width), pieces in found.items():
            self._shapes.append(_Shape(height, width, pieces, handed_out % world.size))
            handed_out += len(pieces)
        self.momenta = {
            piece: torch.zeros_like(piece.of(self.parameters)) for shape in self._shapes for piece in shape.owned(world)
        }

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """One update with the gradients that the parameters hold."""
        if not self.parameters:
            return
        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.parameters]
        # all shapes are sent before the first is waited for: one travels while the next is worked out
        updates = [
            self._share(shape, orthogonalize(self._gather(shape, grads, momentum), self.ns_steps, self.quintics))
            for shape in self._shapes
        ]
        for shape, arrive in zip(self._shapes, updates, strict=True):
            for piece, update in zip(shape.pieces, arrive(), strict=True):
                weight = piece.of(self.parameters)
                rate = lr * self.multipliers[piece.index]
                apply_update(weight, update, rate * piece.factor, shrink=1 - rate * weight_decay)

    def _gather(self, shape: _Shape, grads: list[Tensor], momentum: float) -> Float[Tensor, "n R C"]:
        """Move this rank's momenta of a shape on; its updates before their orthogonalisation."""
        pieces = shape.owned(self.world)
        if not pieces:
            return self.parameters[0].new_empty(0, shape.rows, shape.columns)
        return nesterov([self.momenta[piece] for piece in pieces], [piece.of(grads) for piece in pieces], momentum)

    def _share(self, shape: _Shape, own: Float[Tensor, "n R C"]) -> Callable[[], list[Tensor]]:
        """Send this rank's matrices of a shape to the others; what is returned waits for all of them, in order."""
        if self.world.size == 1:
            return lambda: list(own)
        # every rank has to send as many: one that has a matrix fewer than others sends zeros, which nobody reads
        slots = -(-len(shape.pieces) // self.world.size)
        padded = torch.cat((own, own.new_zeros(slots - len(own), *own.shape[1:])))
        arrive = self.world.gather(padded)
        return lambda: shape.in_order(arrive())

    def state(self) -> list[Tensor]:
        """The momentum of each parameter, on every rank: all of them have to ask."""
        whole = [torch.empty_like(parameter) for parameter in self.parameters]
        for shape in self._shapes:
            own = [self.momenta[piece] for piece in shape.owned(self.world)]
            stack = torch.stack(own) if own else self.parameters[0].new_empty(0, shape.rows, shape.columns)
            for piece, momentum in zip(shape.pieces, self._share(shape, stack)(), strict=True):
                piece.of(whole).copy_(momentum)
        return whole

    def load_state(self, momenta: list[Tensor]) -> None:
        """Take over what ``state`` gave, of as many processes as it may have been."""
        for piece, momentum in self.momenta.items():
            momentum.copy_(piece.of(momenta))
