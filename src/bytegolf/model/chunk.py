"""Where the chunks of a batch lie; ``ops/chunking.py`` goes there and back.

The one representation of a ragged batch is ``Chunks``: sequences of chunks padded at the end to a common capacity.
Causal networks never look at padding from a chunk before it, and ``expand`` never reads it, so it needs no mask.

Legend: B batch, L positions, C chunks that there is room for, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.model.capacity import EXACT, Capacity
from bytegolf.ops.chunking import dechunk, expand, select


@dataclass(frozen=True)
class Chunks:
    """Where the chunks of a padded batch lie."""

    boundary: Bool[Tensor, "B L"]
    """positions at which a chunk starts: the boundaries that there was room for; padding positions are False"""
    chunk_of: Int[Tensor, "B L"]
    """the chunk that each position belongs to"""
    starts: Int[Tensor, "B C"]
    """the position at which each chunk starts; 0 for padding chunks"""
    counts: Int[Tensor, " B"]
    """chunks in each sequence"""

    @staticmethod
    def of(boundary: Bool[Tensor, "B L"], capacity: Capacity = EXACT) -> Chunks:
        """Lay out the chunks of ``boundary``, whose first column must be True, in the room that ``capacity`` makes.

        Under a fixed capacity the boundaries that come too late are dropped, so that the last chunk goes on to the
        end, and nothing here depends on the data but values: no shape, and no wait for an accelerator.

        For instance, boundaries 1 0 0 1 0 1 of L = 6 positions with room for C = 4: ``running`` is 1 1 1 2 2 3, so
        ``chunk_of`` is 0 0 0 1 1 2; the first positions at which it reaches 1 2 3 4 are 0 3 5 6, and 6, behind the
        end, becomes 0: ``starts`` is 0 3 5 0 and ``counts`` 3. Padding chunks so hold position 0's vector, which
        nothing reads.
        """
        batch, length = boundary.shape
        running = boundary.cumsum(1)
        room = capacity.limit(length)
        if room is None:
            room = capacity.room(length, int(running[:, -1].max()))
        else:
            boundary = boundary & (running <= room)
            running = running.clamp(max=room)
        numbers = torch.arange(1, room + 1, device=boundary.device).repeat(batch, 1)
        starts = torch.searchsorted(running, numbers)  # the first position at which so many chunks have begun
        starts = starts.masked_fill(starts == length, 0)
        return Chunks(boundary, running - 1, starts, running[:, -1])

    @property
    def valid(self) -> Bool[Tensor, "B C"]:
        """Which chunks are there, rather than padding."""
        return torch.arange(self.starts.shape[1], device=self.starts.device) < self.counts.unsqueeze(1)

    def select(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B C D"]:
        """The vector at each chunk's start (S2: downsampling keeps the boundary positions)."""
        return select(x, self.starts, self.chunk_of, self.boundary)

    def select_values(self, x: Tensor) -> Tensor:
        """The same for one value a position, (B, L) → (B, C)."""
        return x.gather(1, self.starts)

    def expand(self, z: Float[Tensor, "B C D"]) -> Float[Tensor, "B L D"]:
        """Each position takes the vector of its chunk."""
        return expand(z, self.chunk_of)

    def dechunk(
        self,
        z: Float[Tensor, "B C D"],
        p: Float[Tensor, "B L"],
        residual: Float[Tensor, "B L D"],
        first: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The residual plus each position's smoothed chunk; ``first``: where documents start."""
        return dechunk(z, p, residual, self.starts, self.chunk_of, self.boundary, first)
