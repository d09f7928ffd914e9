"""Chunks of one length: the cheapest control.

Legend: B batch, L positions, M width of a memory (1: the position's number).
"""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from bytegolf.model.routers.base import FixedRouter, Marks, Tokens, positions
from bytegolf.registry import register_router


@register_router("stride")
class StrideRouter(FixedRouter):
    """A chunk every N positions of a document; if N is no integer, wherever ⌊position / N⌋ rises."""

    _GRAIN = 1 << 10
    """N counts in units of 1/1024, so that the rule is one of integers."""

    def scan(self, tokens: Tokens, first: Marks, memory: Int[Tensor, "B M"]) -> tuple[Marks, Int[Tensor, "B L M"]]:
        position = positions(first, memory)
        size = round(self.config.target * self._GRAIN)
        boundary = (position * self._GRAIN) % size < self._GRAIN
        return boundary, (position + 1).unsqueeze(-1)
