"""RMSprop for embedding tables of which a step touches few rows: the other rows cost nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bytegolf.ops.sparse_rmsprop import update_rows


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
            if table.grad is not None:
                update_rows(table, self._squares[name], self._counts[name], table.grad, lr, self.beta)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state by name, not copied."""
        squares = {f"row_square.{name}": square for name, square in self._squares.items()}
        return squares | {f"row_count.{name}": count for name, count in self._counts.items()}
