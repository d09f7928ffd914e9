"""An entropy coder of many lanes: interleaved rANS (Duda, arXiv 1311.2540), a step of all lanes as a few numpy calls.

Every lane is a coder of its own, and a step codes one symbol in each of the first n lanes, so that the work of Python
is a step's and not a symbol's. All arithmetic is on integers: what one machine writes, every other reads.

A lane's state is x in [2³¹, 2⁶³). Coding a symbol of frequency f and first slot c, of TOTAL slots, makes it
⌊x / f⌋·TOTAL + x mod f + c; before that, the low 32 bits go to the stream if x would leave the interval. Decoding does
the same backwards, which is why the encoder goes through the symbols from the last to the first, and why it has to know
them all. Decoding ends with every state at 2³¹ and no word left, which gives most
streams away that were cut or altered (the file's hash does so with all).

Legend: n lanes in use, C contexts, A symbols of the alphabet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRECISION = 18
"""Bits of a frequency: with 255 symbols of at least one slot each, the rarest keep 0.1 % of the slots."""

TOTAL = 1 << PRECISION
MAX_LANES = 256

_LOW = np.uint64(1 << 31)
_WORD = np.uint64(32)
_ROOM = np.uint64(31 - PRECISION + 32)
_BITS = np.uint64(PRECISION)

Integers = NDArray[np.int64]


class BrokenStreamError(Exception):
    """A stream that no encoder wrote."""


class Encoder:
    """Collects symbols; ``finish`` makes the stream of them. ``bits`` is how many those so far take."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.bits = 0.0
        self._first: list[NDArray[np.uint32]] = []
        self._width: list[NDArray[np.uint32]] = []

    def code(self, slots: NDArray[np.int64], context: Integers, symbols: Integers | None) -> Integers:
        """Code one symbol in each of the first n lanes.

        Args:
            slots: (C, A + 1), for each context the symbols' first slots and TOTAL, rising.
            context: (n,), the row of ``slots`` that each lane uses.
            symbols: (n,), 0…A − 1.

        Returns:
            The symbols, as a ``Decoder`` does.
        """
        assert symbols is not None
        first = slots[context, symbols]
        width = slots[context, symbols + 1] - first
        self.bits += float(PRECISION * len(width) - np.log2(width).sum())
        self._first.append(first.astype(np.uint32))
        self._width.append(width.astype(np.uint32))
        return symbols

    def finish(self) -> bytes:
        """The stream: the lanes' states, 8 bytes each, then words of 4 bytes; all little-endian."""
        states = np.full(self.lanes, _LOW, np.uint64)
        words: list[NDArray[np.uint32]] = []
        for first, narrow in zip(reversed(self._first), reversed(self._width), strict=True):
            x, width = states[: len(first)], narrow.astype(np.uint64)
            full = x >= width << _ROOM
            words.append(x[full].astype(np.uint32)[::-1])  # the low word of each
            x[full] >>= _WORD
            whole = x // width
            x += whole * (np.uint64(TOTAL) - width) + first  # = whole · TOTAL + x mod width + first
        stream = np.concatenate([np.empty(0, np.uint32), *words])[::-1]
        return states.astype("<u8").tobytes() + stream.astype("<u4").tobytes()


class Decoder:
    """Reads what an ``Encoder`` of as many lanes wrote, by the same calls.

    Raises:
        BrokenStreamError: from any of its calls, if the stream is not such a one.
    """

    def __init__(self, stream: bytes | memoryview, lanes: int) -> None:
        if len(stream) < 8 * lanes or len(stream) % 4:
            raise BrokenStreamError("it is cut short")
        self.bits = 0.0
        self._states = np.frombuffer(stream, "<u8", lanes).astype(np.uint64)
        self._words = np.frombuffer(stream, "<u4", offset=8 * lanes).astype(np.uint64)
        self._at = 0
        if lanes and (self._states.min() < _LOW or self._states.max() >= _LOW << _WORD):
            raise BrokenStreamError("it begins with an impossible state")

    def code(self, slots: NDArray[np.int64], context: Integers, symbols: Integers | None = None) -> Integers:
        """The next symbols, (n,); there are none to give."""
        x = self._states[: len(context)]
        slot = (x & np.uint64(TOTAL - 1)).astype(np.int64)
        found: Integers = (slots[context, 1:] <= slot[:, None]).sum(1)
        first = slots[context, found]
        width = slots[context, found + 1] - first
        self.bits += float(PRECISION * len(width) - np.log2(width).sum())
        x[:] = width.astype(np.uint64) * (x >> _BITS) + (slot - first).astype(np.uint64)
        empty = x < _LOW
        end = self._at + int(empty.sum())
        if end > len(self._words):
            raise BrokenStreamError("it ends too early")
        x[empty] = (x[empty] << _WORD) | self._words[self._at : end]
        self._at = end
        return found

    def close(self) -> None:
        """Check that the stream ends here."""
        if self._at != len(self._words) or (self._states != _LOW).any():
            raise BrokenStreamError("it does not end where its symbols do")


Coder = Encoder | Decoder
"""What the model of the symbols sees: the same calls write and read."""
