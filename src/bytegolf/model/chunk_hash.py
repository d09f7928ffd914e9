"""A learned chunk_hash: each chunk's vector also looks up the chunk that ended before it, as a whole.

A chunk's start sees the bytes behind it through n-grams of a few fixed lengths, which begin anywhere and which a longer
chunk outruns. Where boundaries fall in the same places of the same text, as a learned router's do, chunks recur, and a
table of them is a vocabulary that nobody had to write down. (Hash embeddings after BLT, arXiv 2412.09871, whose n-grams
know nothing of patches; the chunk_hash over chunks is ours.)

Legend: B batch, L positions, C chunks, D width of the main network.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.config import ChunkHashConfig
from bytegolf.model.embed import BASE, RowTable, hashed
from bytegolf.model.layers import Linear

_WRAP = 1 << 64
_INVERSE = pow(BASE, -1, _WRAP)
"""What undoes a product with the hash's base, modulo 2⁶⁴."""


class ChunkHashEmbedding(RowTable):
    """A learned map of ``table[hash(the last whole chunk)]``."""

    def __init__(self, config: ChunkHashConfig, dim: int) -> None:
        super().__init__(1 << config.bits, config.dim)
        self.config = config
        self.proj = Linear(config.dim, dim)

    def follow(
        self,
        tokens: Int[Tensor, "B L"],
        boundary: Bool[Tensor, "B L"],
        first: Bool[Tensor, "B L"] | None = None,
        before: Int[Tensor, " B"] | None = None,
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """The hashes of the chunks that would have ended before each position, and of those so far with it.

        ``before`` is the hash of what came earlier, and 0 that of nothing (None: nothing did). Nothing ended before the
        ``first`` positions of documents (None: the sequences are one document each).
        """
        if before is None:
            before = tokens.new_zeros(len(tokens))
        keys = self._keys(tokens, boundary, before)
        ended = torch.cat((before.unsqueeze(1), keys[:, :-1]), 1)
        return ended if first is None else ended.masked_fill(first, 0), keys

    def _keys(
        self, tokens: Int[Tensor, "B L"], boundary: Bool[Tensor, "B L"], before: Int[Tensor, " B"]
    ) -> Int[Tensor, "B L"]:
        """Σ (id_i + 1)·base^(t−i) over the positions i ≤ t of the chunk of t, modulo 2⁶⁴."""
        ids, carried = tokens + 1, before.unsqueeze(1) * BASE
        if tokens.shape[1] == 1:
            return torch.where(boundary, ids, ids + carried)
        # with the powers of an odd base, which have inverses, it is a difference of prefix sums
        up, down = (_powers(base, tokens.shape[1], tokens.device) for base in (BASE, _INVERSE))
        sums = (ids * down).cumsum(1)
        index = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        start = torch.where(boundary, index, -1).cummax(1).values
        earlier = torch.where(start > 0, sums.gather(1, (start - 1).clamp(min=0)), 0)
        return (sums - earlier + torch.where(start < 0, carried, 0)) * up

    def forward(self, ended: Int[Tensor, "B C"], precision: torch.dtype) -> Float[Tensor, "B C D"]:
        """What is added to the vectors of chunks before which those of the hashes ``ended`` lie."""
        return self.proj(self.look_up(hashed(ended, self.config.bits)).to(precision))


def _powers(base: int, length: int, device: torch.device) -> Int[Tensor, " L"]:
    """base⁰ … base^(length−1) modulo 2⁶⁴."""
    factors = torch.full((length,), base - _WRAP if base >= _WRAP // 2 else base, device=device)
    factors[:1] = 1
    return factors.cumprod(0)
