"""Readings as a page's script takes them: arrays of little-endian 16-bit numbers and of bytes, in base 64."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from bytegolf.analyze.incremental import LiveReading
from bytegolf.analyze.reading import Reading
from bytegolf.data.bpe_boundaries import token_starts
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer

NOTHING = 65535
"""Stands for a number that is not there."""


@dataclass(frozen=True)
class ShownText:
    """A text to be looked at, as one model read it."""

    live: LiveReading
    tokenizer: Tokenizer
    """the model's own"""
    reference: Bool[np.ndarray, " N"] | None
    """where the tokens of another tokenizer start, to be shown beside the chunks"""

    @staticmethod
    def of(live: LiveReading, tokenizer: Tokenizer, reference: SentencePieceTokenizer | None) -> ShownText:
        """With the starts of ``reference``'s tokens."""
        data = live.reading.data
        return ShownText(live, tokenizer, token_starts(reference, data) if reference and data else None)

    @property
    def bytewise(self) -> bool:
        """Whether the model's tokens are bytes."""
        return isinstance(self.tokenizer, ByteTokenizer)

    def packed(self, start: int = 0) -> dict[str, Any]:
        """What the script's ``opened`` takes, from the byte ``start`` on (0 unless the model's tokens are bytes)."""
        reading, expected = self.live.reading, self.live.expected
        ids, p = expected.ids[start:], expected.p[start:]
        pieces = {}
        if isinstance(self.tokenizer, SentencePieceTokenizer):
            before = int(np.flatnonzero(~self.tokenizer.boundary)[0])  # behind an ordinary token a leading space counts
            texts = {one: self.tokenizer.decode([one], before) for one in np.unique(ids).tolist()}
            pieces = {str(one): base64.b64encode(text).decode() for one, text in texts.items()}
        return {
            **packed_levels(reading, start),
            "tokens": None if self.bytewise else packed_flags(self.live.token_starts),
            "expected": {
                "k": ids.shape[1],
                "ids": packed_shorts(ids.ravel()),
                "p": packed_shares(p.ravel()),
                "pieces": pieces,
            },
            "reference": None if self.reference is None else packed_flags(self.reference),
            "windows": reading.windows.tolist(),
            "bpb": reading.bpb if np.isfinite(reading.bits).any() else None,
        }


def packed_levels(reading: Reading, start: int = 0) -> dict[str, Any]:
    """What the levels did from the byte ``start`` on, and surprisal in thousandths of a bit."""
    return {
        "bits": packed_shorts(reading.bits[start:] * 1000),
        "levels": [
            {"p": packed_shares(level.p[start:]), "boundary": packed_flags(level.boundary[start:])}
            for level in reading.levels
        ],
    }


def packed_shorts(values: NDArray[Any]) -> str:
    """Numbers of at least 0, rounded; what is too large becomes 65534, and NaN 65535."""
    whole = np.where(np.isfinite(values), np.clip(np.rint(np.nan_to_num(values)), 0, NOTHING - 1), NOTHING)
    return base64.b64encode(whole.astype("<u2").tobytes()).decode()


def packed_shares(values: NDArray[np.float32]) -> str:
    """Probabilities, in ten-thousandths."""
    return packed_shorts(values * 10000)


def packed_flags(values: NDArray[np.bool_]) -> str:
    """A byte each."""
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()
