"""Chunk boundaries that a model places in a text, and their statistics over a whole split."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bytegolf.analyze.reading import read_text
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.evaluate.boundaries import BoundaryStats
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import THRESHOLD


@dataclass(frozen=True)
class Segmentation:
    """A text and the chunks that a model cuts it into."""

    data: bytes
    """what the tokens stand for: the text, as far as the tokenizer keeps it"""
    boundaries: NDArray[np.bool_]
    """for each byte, whether it starts a chunk; the first one always does"""
    candidates: NDArray[np.bool_]
    """for each byte, whether the router could choose it: it starts a token, or for an inner level an outer chunk"""

    def offsets(self) -> list[int]:
        """The byte offsets at which chunks start."""
        return np.flatnonzero(self.boundaries).tolist()

    def chunks(self) -> list[bytes]:
        """The chunks, which joined are the text."""
        return [self.data[start:end] for start, end in itertools.pairwise([*self.offsets(), len(self.data)])]

    def stats(self) -> BoundaryStats:
        """The metrics of this text on its own."""
        stats = BoundaryStats()
        if self.data:
            window = np.frombuffer(self.data, np.uint8)
            stats.add(window, self.boundaries, candidates=self.candidates, whole=True)
        return stats


def segment(
    model: LanguageModel,
    tokenizer: Tokenizer,
    data: bytes,
    seq_len: int,
    where: str = "the text",
    level: int = 0,
    threshold: float = THRESHOLD,
) -> Segmentation:
    """Cut ``data`` into the chunks of a chunking ``level`` (0 = outermost), reading it in windows of ``seq_len``.

    The text is read as one document behind a BOS, whose own chunk is not counted: the first byte opens one. Without a
    router, a level is a layer of soft chunking, which is said to begin a chunk from a b of ``threshold`` on.

    Raises BytegolfError for an empty text, a flat model, or a level that the model does not have.
    """
    reading = read_text(model, tokenizer, data, seq_len, where, threshold)
    found = reading.level(level)
    return Segmentation(reading.data, found.boundary, found.candidates)
