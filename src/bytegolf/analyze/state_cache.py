"""What was made of the beginnings of windows, with the model's state behind them: found again by hash.

Legend: T tokens, L tokens of a piece, V alphabet, K candidates.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Int64, UInt64

from bytegolf.evaluate.boundaries import LevelCuts
from bytegolf.model.lm import ModelState

CACHE_BYTES = 256_000_000

BASE = 0x9E37_79B9_7F4A_7C15
"""Of the hash: odd, so that no power of it is 0."""


@dataclass(frozen=True)
class Beginning:
    """What was made of the first tokens of a window, all of it or less."""

    tokens: Int64[np.ndarray, " L"]
    state: ModelState | None
    """behind the last of them; None after a plain pass"""
    cuts: list[LevelCuts]
    nats: Float32[np.ndarray, " M"]
    """of each token but the first, which nothing in this window predicts; M = L − 1"""
    ids: Int[np.ndarray, "L K"]
    p: Float32[np.ndarray, "L K"]
    last: Float32[np.ndarray, " V"]
    """log p of what comes behind the last one"""

    def followed_by(self, more: Beginning) -> Beginning:
        """With the tokens that come next in the window."""
        cuts = [
            LevelCuts(np.concatenate((one.p, two.p)), np.concatenate((one.boundary, two.boundary)))
            for one, two in zip(self.cuts, more.cuts, strict=True)
        ]
        return Beginning(
            np.concatenate((self.tokens, more.tokens)),
            more.state,
            cuts,
            np.concatenate((self.nats, -self.last[more.tokens[:1]], more.nats)),
            np.concatenate((self.ids, more.ids)),
            np.concatenate((self.p, more.p)),
            more.last,
        )

    @property
    def nbytes(self) -> int:
        """Of the arrays, without the state."""
        cuts = sum(cut.p.nbytes + cut.boundary.nbytes for cut in self.cuts)
        return cuts + sum(one.nbytes for one in (self.tokens, self.nats, self.ids, self.p, self.last))


class StateCache:
    """Beginnings of windows, found by hash; the one that was not asked for the longest goes first.

    The hash of the tokens x₀ … xₙ is Σ xᵢ·bⁱ mod 2⁶⁴, so that one pass gives those of all beginnings. Two sequences of
    one hash are easily made: what is found is compared.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        """``limit``: bytes of all of them together."""
        self.limit, self.used = limit, 0
        self._kept: OrderedDict[tuple[bytes, int, int], tuple[Beginning, int]] = OrderedDict()
        self._powers: UInt64[np.ndarray, " T"] = np.ones(1, np.uint64)

    def __len__(self) -> int:
        return len(self._kept)

    def longest(self, salt: bytes, tokens: Int64[np.ndarray, " T"]) -> Beginning | None:
        """The longest beginning of ``tokens`` that is known, which now is the one asked for last; one without a state
        only if it is all of them.
        """
        hashes = self._hashes(tokens).tolist()
        for end in range(len(tokens), 0, -1):
            found = self._kept.get((salt, end, hashes[end - 1]))
            if found and (found[0].state or end == len(tokens)) and np.array_equal(found[0].tokens, tokens[:end]):
                self._kept.move_to_end((salt, end, hashes[end - 1]))
                return found[0]
        return None

    def put(self, salt: bytes, beginning: Beginning, size: int) -> None:
        """Keep one of ``size`` bytes."""
        tokens = beginning.tokens
        key = (salt, len(tokens), int(self._hashes(tokens)[-1]))
        if key in self._kept:
            self.used -= self._kept.pop(key)[1]
        self._kept[key] = (beginning, size)
        self.used += size
        while self.used > self.limit and self._kept:
            self.used -= self._kept.popitem(last=False)[1][1]

    def _hashes(self, tokens: Int64[np.ndarray, " T"]) -> UInt64[np.ndarray, " T"]:
        """Of each beginning."""
        if len(self._powers) < len(tokens):
            powers = np.full(len(tokens) + 1, BASE, np.uint64)
            powers[0] = 1
            self._powers = np.cumprod(powers, dtype=np.uint64)
        return np.cumsum(tokens.astype(np.uint64) * self._powers[: len(tokens)], dtype=np.uint64)
