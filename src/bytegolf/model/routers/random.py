"""Chunks that begin by chance: the control for where boundaries lie at a given rate.

Legend: B batch, L positions, M width of a memory (1: the position's number).
"""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from bytegolf.model.routers.base import FixedRouter, Marks, Tokens, mix, positions
from bytegolf.registry import register_router


@register_router("random")
class RandomRouter(FixedRouter):
    """A chunk at each position with probability 1/N, drawn by a hash of the position's number and its token.

    The same text in the same place is cut the same way every time; in another place it is not.
    """

    def scan(self, tokens: Tokens, first: Marks, memory: Int[Tensor, "B M"]) -> tuple[Marks, Int[Tensor, "B L M"]]:
        assert tokens is not None
        position = positions(first, memory)
        key = mix(mix(position + 1) + tokens)
        drawn = (key >> 20) & 0xFFFFFF
        return first | (drawn < round((1 << 24) / self.config.target)), (position + 1).unsqueeze(-1)
