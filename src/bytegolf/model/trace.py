"""What routers did: the record that a forward pass or a step leaves, level by level.

Legend: B batch, L positions, R rows of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LevelTrace:
    """What a level's router did in one forward pass."""

    p: Float[Tensor, "B L"]
    """probability of a boundary, fp32, with its gradient"""
    boundary: Bool[Tensor, "B L"]
    """where chunks start; False at padding"""
    valid: Bool[Tensor, "B L"] | None
    """which positions are there (None: all), as inner levels see padded sequences of chunks"""
    loss: Float[Tensor, ""]
    """the level's weighted ratio loss"""

    def rate(self) -> Tensor:
        """Boundaries a position."""
        positions = self.valid.sum() if self.valid is not None else self.boundary.numel()
        return self.boundary.sum() / positions


@dataclass(frozen=True)
class StepTrace:
    """What a level's router did in one step, for the sequences ``rows`` that reached it."""

    rows: Int[Tensor, " R"]
    p: Float[Tensor, " R"]
    boundary: Bool[Tensor, " R"]
