"""RMSprop for embedding tables of which a step touches few rows: the other rows cost nothing.

Legend: M rows of a table, U rows that a step touches, E width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bytegolf.ops import native

EPS = 1e-12
"""Added to the root of the mean squared gradient; far below any gradient, so that the scale of a loss cancels."""


class SparseRMSprop:
    """RMSprop with Adam's bias correction, row by row: v ← β₂·v + (1 − β₂)·g², w ← w − lr·g / √(v / (1 − β₂ⁿ)).

    n counts the steps that touched the row, not all steps. There is no momentum, with which a row would go on moving
    long after it was seen.

    Example, β₂ = 0.99: a row is first touched in step 1,000, with g = 0.002. Then n = 1, v = 0.01·g², and
    v / (1 − β₂¹) = g²: each element moves by lr, as in Adam's first step. With n = 1,000 (all steps) the corrected v
    would be g²/100 and the row would jump by 10·lr.
    """

    def __init__(self, tables: dict[str, nn.Parameter], beta: float) -> None:
        self.tables, self.beta = tables, beta
        self._squares = {name: torch.zeros_like(table) for name, table in tables.items()}
        self._counts = {name: torch.zeros(len(table), device=table.device) for name, table in tables.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update with the gradients, sparse or dense, that the tables hold."""
        for name, table in self.tables.items():
            if table.grad is None:
                continue
            if table.grad.is_sparse and table.dtype == torch.float32 and native.usable(table):
                self._update_fused(name, table, table.grad, lr)
            else:
                self._update(name, table, *touched(table.grad), lr)

    def _update(
        self, name: str, table: Tensor, rows: Int[Tensor, " U"], gradient: Float[Tensor, "U E"], lr: float
    ) -> None:
        counts, squares = self._counts[name], self._squares[name]
        counts[rows] = count = counts[rows] + 1
        squares[rows] = square = torch.lerp(squares[rows], gradient.square(), 1 - self.beta)
        scale = (1 - self.beta**count).sqrt_().unsqueeze(-1)
        table.index_add_(0, rows, gradient * scale / (square.sqrt_() + EPS), alpha=-lr)

    def _update_fused(self, name: str, table: Tensor, gradient: Tensor, lr: float) -> None:
        """The same from a sparse gradient that may name a row often, in one pass over the rows."""
        rows, order = gradient._indices()[0].sort(stable=True)  # public only once coalesced, which is what takes long
        values = gradient._values().contiguous()
        state = (self._squares[name], self._counts[name])
        native.call("row_adam", table, table, *state, rows, order, values, *values.shape, lr, self.beta, EPS)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state by name, not copied."""
        squares = {f"row_square.{name}": square for name, square in self._squares.items()}
        return squares | {f"row_count.{name}": count for name, count in self._counts.items()}


def touched(gradient: Tensor) -> tuple[Int[Tensor, " U"], Float[Tensor, "U E"]]:
    """The rows of a table with a gradient, and theirs; ``gradient`` (M, E) is sparse in its rows, or dense."""
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    rows = gradient.any(1).nonzero()[:, 0]
    return rows, gradient[rows]
