"""What routers did: the record that a forward pass or a step leaves, level by level.

Legend: B batch, L positions, R rows of an extension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RouterTrace:
    """What a level's router did in one forward pass."""

    p: Float[Tensor, "B L"]
    """probability of a boundary, fp32, with its gradient"""
    boundary: Bool[Tensor, "B L"]
    """where chunks start; False at padding"""
    proposed: Bool[Tensor, "B L"]
    """where the router wanted them to; more than ``boundary`` only beyond a fixed capacity"""
    valid: Bool[Tensor, "B L"] | None
    """which positions are there (None: all), as inner levels see padded sequences of chunks"""
    loss: Float[Tensor, ""]
    """the level's weighted ratio loss"""

    def rate(self) -> Tensor:
        """Boundaries a position, as the router proposes them."""
        positions = self.valid.sum() if self.valid is not None else self.proposed.numel()
        return self.proposed.sum() / positions

    def truncated(self) -> Int[Tensor, " B"]:
        """Boundaries of each sequence that there was no room for."""
        if self.proposed is self.boundary:
            return torch.zeros(self.boundary.shape[0], dtype=torch.long, device=self.boundary.device)
        return self.proposed.sum(1) - self.boundary.sum(1)

    def figures(self) -> Float[Tensor, " 3"]:
        """What training reports: the rate, and per sequence the truncated boundaries and whether there were any."""
        truncated = self.truncated()
        return torch.stack((self.rate(), truncated.float().mean(), (truncated > 0).float().mean()))


@dataclass(frozen=True)
class SoftTrace:
    """What a layer of soft chunking did in one forward pass."""

    p: Float[Tensor, "B L"]
    """σ(w·[x_{t−1}; x_t] + c), in at least fp32, with its gradient; 1 where a document begins"""
    b: Float[Tensor, "B L"]
    """the share of its own that each position kept: p, or 0 or 1 where boundaries are hard"""
    first: Bool[Tensor, "B L"]
    """where b was 1 by construction, since a document begins"""

    def figures(self) -> Float[Tensor, " 2"]:
        """What training reports: the mean of b and of b² over the positions where it was free."""
        free = ~self.first
        count = free.sum().clamp(min=1)
        kept = self.b.detach() * free
        return torch.stack((kept.sum() / count, kept.square().sum() / count))


@dataclass(frozen=True)
class StepTrace:
    """What a level's router did in one step or extension, for the sequences ``rows`` that reached it."""

    rows: Int[np.ndarray, " R"]
    counts: Int[np.ndarray, " R"]
    """how many of the L positions are there, rather than padding"""
    p: Float[Tensor, "R L"]
    boundary: Bool[Tensor, "R L"]
    """whether a chunk started: the router wanted it to, and there was room; False at padding"""
