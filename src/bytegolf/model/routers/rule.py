"""What routers that follow a fixed rule share: the controls that a learned one must beat.

Their p is 1 where a chunk starts and 0 elsewhere, without a gradient.

Legend: B batch, or the rows of an extension, L positions, D width, M width of a memory.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bytegolf.model.routers.base import Marks, Probabilities, Router, Tokens, Vectors
from bytegolf.ops.autograd import wide


class FixedRouter(Router):
    """A rule over token ids and positions, the same for a whole sequence and for its continuation: ``scan``."""

    receptive_field = 0  # the rule looks at no vectors; whole windows are asked again, since it may count from a start
    width: int = 1
    """M: how many integers are remembered of what came before."""

    @abstractmethod
    def scan(self, tokens: Tokens, first: Marks, memory: Int[Tensor, "B M"]) -> tuple[Marks, Int[Tensor, "B L M"]]:
        """Where chunks start, and the memory behind each position, of positions that come after those of ``memory``.

        ``first`` marks where documents start: a chunk does too, and what came before counts for nothing.
        """

    def mark(self, tokens: Tokens, first: Marks) -> Marks:
        """Where chunks start in whole sequences."""
        first = first.clone()
        first[:, 0] = True
        return self.scan(tokens, first, self.start(first.shape[0], first.device, torch.int64))[0]

    def forward(self, x: Vectors, first: Marks | None = None, tokens: Tokens = None) -> tuple[Probabilities, Marks]:
        boundary = self.mark(
            tokens, torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if first is None else first
        )
        return boundary.to(wide(x.dtype)), boundary

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, self.width, dtype=torch.int64, device=device)

    def extend(
        self, x: Vectors, memory: Tensor, first: Bool[Tensor, " B"], tokens: Tokens = None
    ) -> tuple[Probabilities, Marks, Tensor]:
        starts = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        starts[:, 0] = first
        boundary, memories = self.scan(tokens, starts, memory)
        return boundary.to(wide(x.dtype)), boundary, memories


def positions(first: Marks, before: Int[Tensor, "B 1"]) -> Int[Tensor, "B L"]:
    """Each position's number in its document, the sequence having ``before`` positions of it already."""
    index = torch.arange(first.shape[1], device=first.device).expand(first.shape)
    latest = torch.where(first, index, -1).cummax(1).values
    return torch.where(latest >= 0, index - latest, before + index)


def mix(key: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """A hash of 64 bits that wraps around: SplitMix64's multiplier, twice, with the high bits folded in between."""
    for _ in range(2):
        key = key * -4_658_895_280_553_007_687
        key = key ^ ((key >> 31) & 0x1_FFFF_FFFF)
    return key
