"""From a model's logits to the integer frequencies of an entropy coder, and the coder itself.

An entropy coder needs the very same distribution on both sides: a difference of 10⁻⁶ in one probability ruins all that
follows. So probabilities become integers that sum to ``TOTAL`` and are all above 0, and only those reach the coder.

What a model finds unlikely may still be common in *this* file. Each stream therefore mixes the model with the uniform
distribution, and shifts its trust to whichever of them foretold the last symbols better (fixed share: Herbster and
Warmuth, "Tracking the best expert", 1998). A stream of noise then costs 8 bits per byte, and text 0.0004 more
than under the model alone.

Legend: R streams, V ids of the model, A symbols of the alphabet.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import constriction
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.mixing.frequencies import PRECISION, quantised
from bytegolf.ops import native

SHARE = 2.0**-12
"""How much trust moves to the other of model and uniform with each symbol: changing sides costs 12 bits, and
staying 0.00035 bits a symbol."""


class Mixture:
    """What each stream trusts the uniform distribution, from ``SHARE`` to 1 − ``SHARE``."""

    def __init__(self, streams: int) -> None:
        self.uniform = np.full(streams, SHARE)

    def frequencies(self, p: Float[np.ndarray, "R A"], rows: Int[np.ndarray, " R"]) -> Int[np.ndarray, "R A"]:
        """The frequencies of ``rows``' next symbols, which the model gives the probabilities ``p``."""
        trust = self.uniform[rows, None]
        return quantised((1 - trust) * p + trust / p.shape[1])

    def learn(self, p: Float[np.ndarray, " R"], symbols: int, rows: Int[np.ndarray, " R"]) -> None:
        """Take in what the model gave the symbols that came, out of an alphabet of ``symbols``.

        Products, sums and quotients of float64 only, which IEEE 754 makes the same everywhere.
        """
        by_uniform = self.uniform[rows] / symbols
        by_model = (1 - self.uniform[rows]) * p
        posterior = by_uniform / (by_uniform + by_model)
        self.uniform[rows] = SHARE + (1 - 2 * SHARE) * posterior


def probabilities(logits: Float[Tensor, "R V"], first: int = 0) -> Float[np.ndarray, "R A"]:
    """The softmax over the ids from ``first`` on, in float64."""
    if logits.dtype == torch.float32 and native.usable(logits):
        # (why) no library's exponential, whose last bit may change; and torch would start threads for 256 numbers
        p = np.empty((len(logits), logits.shape[1] - first))
        native.call("exact_softmax", logits, logits.contiguous(), *logits.shape, first, torch.from_numpy(p))
        return p
    return torch.softmax(logits[:, first:].double(), -1).cpu().numpy()


def bits(frequencies: Int[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    """The ideal cost of symbols of these frequencies."""
    return PRECISION - np.log2(frequencies)  # type: ignore[no-any-return]  # to mypy, shaped arrays are Any


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
        self.ideal_bits = 0.0
        """what the symbols so far should cost"""

    def code(self, frequencies: Int[np.ndarray, "R A"], symbols: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
        """Write ``symbols``, which are given back."""
        self._coder.encode(symbols.astype(np.int32), _FAMILY, _weights(frequencies))
        self.ideal_bits += math.fsum(bits(frequencies[np.arange(len(symbols)), symbols]))
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
