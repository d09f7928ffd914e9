"""The chunks of a batch: how many there is room for, and where they lie; ``ops/chunking.py`` goes there and back.

The one representation of a ragged batch is ``Chunks``: sequences of chunks padded at the end to a common capacity.
Causal networks never look at padding from a chunk before it, and ``expand`` never reads it, so it needs no mask.
``Capacity`` is the rule for the length to which they are padded:

- exact: the most chunks that a sequence of the batch has. Little is computed in vain, and every batch has its own
  shape.
- bucketed: the next of a few sizes, the ladder. What ``exact`` computes, in few shapes, for which compiled graphs and
  allocators are ready.
- fixed: a share of the level's own length, and always that (S3, PR #1305). Boundaries beyond it are dropped, and
  what they would have begun belongs to the last chunk. Which ones is decided by the past alone: the first are kept.

For instance, two sequences of 12 positions, with chunks of 3 3 2 2 2 and of 6 6 positions (5 and 2 chunks):

    exact                       room for 5: the second sequence has 3 chunks of padding
    bucketed, ladder 4 6 8 12   room for 6: the least size that holds 5
    fixed, divisor 4            room for 12 / 4 = 3: the first sequence's last two boundaries are dropped, so that its
                                chunks are 3 3 6; the second one has 1 chunk of padding

Legend: B batch, L positions, C chunks that there is room for, D width.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.config import CapacityMode, RouterConfig
from bytegolf.ops.chunking import dechunk, select

GRAIN = 16
"""The sizes of a ladder are multiples of it, but for the length itself."""


@dataclass(frozen=True)
class Capacity:
    """A rule for the room for chunks; its fields are those of RouterConfig."""

    mode: CapacityMode
    divisor: float = 4.0
    target: float = 2.0
    buckets: int = 8

    @staticmethod
    def of(router: RouterConfig) -> Capacity:
        """The rule that a router is configured with."""
        return Capacity(router.capacity, router.capacity_divisor, router.target, router.capacity_buckets)

    def changed(self, mode: CapacityMode | Literal[""], divisor: float) -> Capacity:
        """The same with another mode and divisor; "" and 0 leave them."""
        return dataclasses.replace(self, mode=mode or self.mode, divisor=divisor or self.divisor)

    def limit(self, length: int | None) -> int | None:
        """The most chunks that a sequence of ``length`` positions may have; None: as many as it wants.

        >>> Capacity("fixed", 6).limit(2048)
        341
        """
        if self.mode != "fixed":
            return None
        assert length is not None, "LanguageModel.start asks for it, and HNetConfig for a fixed level around"
        return max(1, math.floor(length / self.divisor))

    def room(self, length: int, needed: int) -> int:
        """The room for up to ``needed`` chunks per sequence, out of ``length`` positions; nothing is dropped."""
        if self.mode == "exact":
            return needed
        return next(size for size in self.ladder(length) if size >= needed)

    def ladder(self, length: int) -> list[int]:
        """The sizes for a level of ``length`` positions: from half of what the target rate asks for to all.

        >>> Capacity("bucketed", target=6, buckets=6).ladder(1024)
        [96, 144, 240, 384, 624, 1024]
        """
        least = length / (2 * self.target)
        steps = [least * (length / least) ** (step / (self.buckets - 1)) for step in range(self.buckets - 1)]
        return sorted({length, *(min(length, GRAIN * math.ceil(size / GRAIN)) for size in steps)})


EXACT = Capacity("exact")


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
        """The same for one value per position, (B, L) → (B, C)."""
        return x.gather(1, self.starts)

    def dechunk(
        self,
        z: Float[Tensor, "B C D"],
        p: Float[Tensor, "B L"],
        residual: Float[Tensor, "B L D"],
        first: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The residual plus each position's smoothed chunk; ``first``: where documents start."""
        return dechunk(z, p, residual, self.starts, self.chunk_of, self.boundary, first)
