"""Our coder of quantised weights: adaptive frequencies in the contexts that weights have, over lanes of rANS.

A code's distribution is nearly that of its magnitude alone, and that is nearly a product: some rows are spiky, so that
their scale leaves them small codes, some columns are weak altogether. So each code is coded in the context of the mean
magnitude to expect of it,

    mean of its row so far · mean of its column so far / mean of all so far,

in steps of a quarter of an octave (``LEVELS``); what is to be expected of a row before its first code is learned from
rows whose scale was alike. How codes lie about an expected magnitude is counted, starting from a two-sided geometric
distribution, once for all matrices of as many bits: it hardly depends on the matrix. Floats are coded byte by byte, the
sign and exponent first.

Every number is an integer and every step is the same for writing and for reading: one function walks through a matrix,
and the coder (``artifact.rans``) says in which direction.

Legend: R rows, K codes of a row, n rows worked on at a time, A symbols, C contexts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bytegolf.artifact.rans import TOTAL, Coder, Integers

UNIT = 256
"""Mean magnitudes are integers in units of 1/256."""

_SEEN = 64
"""What one symbol adds to its count."""

_LIMIT = 1 << 20
"""A context's counts are halved beyond this sum, so that it follows what changes."""

_REFRESH = 1024
"""Frequencies are made of the counts every so many symbols."""


def _levels() -> list[int]:
    bounds = [8]
    while bounds[-1] < 128 * UNIT:
        bounds.append(bounds[-1] * 1189 // 1000 + 1)
    return bounds


LEVELS = np.array(_levels(), np.int64)
"""The upper bounds of the contexts but the last, in ``UNIT``: from 1/32, a quarter of an octave apart."""


class Frequencies:
    """Adaptive frequencies of A symbols in each of C contexts; ``slots`` is what a coder takes."""

    def __init__(self, prior: NDArray[np.int64]) -> None:
        self._counts = prior
        self._keys: list[Integers] = []
        self._waiting = 0
        self.slots = np.zeros((len(prior), prior.shape[1] + 1), np.int64)
        self._refresh()

    def code(self, coder: Coder, context: Integers, symbols: Integers | None) -> Integers:
        """Code symbols, (n,), and learn from them."""
        found = coder.code(self.slots, context, symbols)
        self._keys.append(context * self._counts.shape[1] + found)
        self._waiting += len(found)
        if self._waiting >= _REFRESH:
            seen = np.bincount(np.concatenate(self._keys), minlength=self._counts.size)
            self._counts += _SEEN * seen.reshape(self._counts.shape)
            self._counts[self._counts.sum(1) > _LIMIT] //= 2
            self._keys, self._waiting = [], 0
            self._refresh()
        return found

    def _refresh(self) -> None:
        """Every symbol gets one slot, and the rest is shared by counts."""
        symbols = self._counts.shape[1]
        total = np.maximum(self._counts.sum(1, keepdims=True), 1)
        self.slots[:, 1:] = self._counts.cumsum(1) * (TOTAL - symbols) // total + np.arange(1, symbols + 1)
        self.slots[:, -1] = TOTAL


def _geometric(top: int) -> NDArray[np.int64]:
    """Prior counts of −top…top for each level, (C, 2·top + 1): about 128 symbols seen."""
    means = [4, *LEVELS.tolist()]
    rows = []
    for mean in means:
        side = [1 << 32]
        for _ in range(top):
            side.append(side[-1] * mean // (mean + UNIT))
        whole = 2 * sum(side) - side[0]
        rows.append([128 * _SEEN * side[abs(code)] // whole for code in range(-top, top + 1)])
    return np.array(rows, np.int64)


def _rows_at_once(rows: int, lanes: int) -> int:
    """Few enough that many come after each other, and what was learned of the columns is of use."""
    return max(1, min(lanes, rows // 16))


def count_steps(rows: int, length: int, lanes: int) -> int:
    """How many steps a matrix takes."""
    return -(-rows // _rows_at_once(rows, lanes)) * length


class WeightCoder:
    """Codes matrices of integers and runs of floats in turn; the same calls in the same order read them back."""

    def __init__(self, coder: Coder, lanes: int) -> None:
        self._coder = coder
        self._lanes = lanes
        self._codes: dict[int, Frequencies] = {}
        self._bytes: dict[tuple[int, int], Frequencies] = {}

    def matrix(self, codes: NDArray[np.int8], top: int, scales: Integers, decode: bool) -> None:
        """Code a matrix of codes −top…top, (R, K), whose fp16 scales are known, as the words of S equal groups of rows.

        ``codes`` is read, or filled if ``decode``.
        """
        rows, length = codes.shape
        if not codes.size:
            return
        if top not in self._codes:
            self._codes[top] = Frequencies(_geometric(top))
        frequencies = self._codes[top]
        at_once = _rows_at_once(rows, self._lanes)
        column = np.zeros(length, np.int64)  # sums of magnitudes
        alike, seen = np.zeros((2, 128), np.int64)  # sums and numbers of magnitudes, by the scales' upper bits
        kind, group = scales >> 8 & 127, rows // len(scales)
        total = top // 4 + 1
        for start in range(0, rows, at_once):
            piece = codes[start : start + at_once]
            kinds = kind[np.arange(start, start + len(piece)) // group]
            mean = UNIT * total // (start * length + 1) + 1
            expected = (UNIT * alike[kinds] + 8 * mean) // (seen[kinds] + 8)
            columns = (UNIT * column + 4 * mean) // (start + 4)
            row = np.zeros(len(piece), np.int64)
            for at in range(length):
                guess = (UNIT * row + 4 * expected) // (at + 4) * columns[at] // mean
                symbols = None if decode else piece[:, at].astype(np.int64) + top
                found = frequencies.code(self._coder, np.searchsorted(LEVELS, guess), symbols) - top
                if decode:
                    piece[:, at] = found
                size = np.abs(found)
                row += size
                column[at] += size.sum()
            total += int(row.sum())
            np.add.at(alike, kinds, row)
            np.add.at(seen, kinds, length)

    def values(self, data: NDArray[np.uint8], decode: bool) -> None:
        """Code little-endian numbers as bytes, (number, bytes of each), the last byte first.

        ``data`` is read, or filled if ``decode``. A byte's context is whether all above it were 0.
        """
        number, width = data.shape
        for place in reversed(range(width)):
            if (width, place) not in self._bytes:
                self._bytes[width, place] = Frequencies(np.full((2, 256), _SEEN // 4, np.int64))
            frequencies = self._bytes[width, place]
            zero = (
                (data[:, place + 1 :] == 0).all(1).astype(np.int64) if place + 1 < width else np.zeros(number, np.int64)
            )
            for start in range(0, number, self._lanes):
                part = slice(start, start + self._lanes)
                symbols = None if decode else data[part, place].astype(np.int64)
                found = frequencies.code(self._coder, zero[part], symbols)
                if decode:
                    data[part, place] = found
