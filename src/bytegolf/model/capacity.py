"""How many chunks a level makes room for: the length to which the sequences of chunks of a batch are padded.

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
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from bytegolf.config import CapacityMode, RouterConfig

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
        """The room for at most ``needed`` chunks a sequence, out of ``length`` positions, where nothing is dropped."""
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
