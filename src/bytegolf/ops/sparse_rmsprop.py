"""RMSprop's update of the rows of a table that have a gradient: the other rows cost nothing. No gradients flow here.

Legend: M rows of a table, U rows that a step touches, E width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.ops import native

EPS = 1e-12
"""Added to the root of the mean squared gradient; far below any gradient, so that the scale of a loss cancels."""


def update_rows(
    table: Float[Tensor, "M E"],
    squares: Float[Tensor, "M E"],
    counts: Float[Tensor, " M"],
    gradient: Tensor,
    lr: float,
    beta: float,
) -> None:
    """One step, in place: v ← β·v + (1 − β)·g², n ← n + 1, w ← w − lr·g / √(v / (1 − βⁿ)) for each touched row.

    ``squares`` are v and ``counts`` n; ``gradient`` (M, E) is dense, or sparse in its rows and may name a row often.
    """
    if gradient.is_sparse and table.dtype == torch.float32 and native.usable(table):
        # (why) The public way to a sparse gradient's parts is ``coalesce``, which copies them all and takes most of the
        # step. The kernel sorts the row numbers alone, and sums the gradients of a row as it meets them.
        rows, values = gradient._indices()[0].contiguous(), gradient._values().contiguous()
        native.call("row_adam", table, table, squares, counts, rows, values, *values.shape, lr, beta, EPS)
        return
    rows, values = touched(gradient)
    counts[rows] = count = counts[rows] + 1
    squares[rows] = square = torch.lerp(squares[rows], values.square(), 1 - beta)
    scale = (1 - beta**count).sqrt_().unsqueeze(-1)
    table.index_add_(0, rows, values * scale / (square.sqrt_() + EPS), alpha=-lr)


def touched(gradient: Float[Tensor, "M E"]) -> tuple[Int[Tensor, " U"], Float[Tensor, "U E"]]:
    """The rows of a table with a gradient, and theirs; ``gradient`` is sparse in its rows, or dense."""
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    rows = gradient.any(1).nonzero()[:, 0]
    return rows, gradient[rows]
