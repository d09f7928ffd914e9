"""A model's probabilities for an entropy coder, and the range coder by which `verify` codes over any alphabet.

An entropy coder needs the very same distribution on both sides: a difference of 10⁻⁶ in one probability ruins all that
follows. So probabilities become integers that sum to ``TOTAL`` and are all above 0, and only those reach the coder.

Legend: R rows, V ids of the model, A symbols of the alphabet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import constriction
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.ops import native


def probabilities(logits: Float[Tensor, "R V"], first: int = 0) -> Float[np.ndarray, "R A"]:
    """The softmax over the ids from ``first`` on, in float64."""
    if logits.dtype == torch.float32 and native.usable(logits):
        # (why) no library's exponential, whose last bit may change; and torch would start threads for 256 numbers
        p = np.empty((len(logits), logits.shape[1] - first))
        native.call("exact_softmax", logits, logits.contiguous(), *logits.shape, first, torch.from_numpy(p))
        return p
    return torch.softmax(logits[:, first:].double(), -1).cpu().numpy()


class Coder(ABC):
    """One side of the code."""

    @abstractmethod
    def code(self, frequencies: Int[np.ndarray, "R A"], symbols: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
        """The next R symbols, one of each distribution; an encoder is told them, a decoder finds them."""


_FAMILY = constriction.stream.model.Categorical(perfect=False)


def _weights(frequencies: Int[np.ndarray, "R A"]) -> Float[np.ndarray, "R A"]:
    """What makes constriction's fast categorical model have exactly these ``frequencies``.

    It reserves 1 for each of A symbols and shares out TOTAL − A in proportion to the weights, by rounding sums of them
    scaled to TOTAL − A. Weights of frequency − 1 sum to that already, so the scale is 1 and nothing is rounded.
    """
    return (frequencies - 1).astype(np.float64)


class Encoder(Coder):
    """A range coder's writing side."""

    def __init__(self) -> None:
        self._coder: Any = constriction.stream.queue.RangeEncoder()

    def code(self, frequencies: Int[np.ndarray, "R A"], symbols: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
        """Write ``symbols``, which are given back."""
        self._coder.encode(symbols.astype(np.int32), _FAMILY, _weights(frequencies))
        return symbols

    def payload(self) -> bytes:
        """What was written."""
        return self._coder.get_compressed().astype("<u4").tobytes()  # type: ignore[no-any-return]  # constriction has no types


class Decoder(Coder):
    """A range coder's reading side.

    Altered data decode to other symbols rather than to an error: whoever decodes compares checksums.
    """

    def __init__(self, payload: bytes) -> None:
        self._coder: Any = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))

    def code(self, frequencies: Int[np.ndarray, "R A"], symbols: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
        """Read the next symbols; ``symbols`` are ignored."""
        found = self._coder.decode(_FAMILY, _weights(frequencies))
        return found.astype(np.int64)  # type: ignore[no-any-return]  # constriction has no types
