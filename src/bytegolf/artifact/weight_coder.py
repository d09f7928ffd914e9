"""The ``range`` coder of an artifact: the contexts in which weights are coded (``artifact.range_coder``).

A code's distribution is nearly that of its magnitude alone, and that is nearly a product: some rows are spiky, so that
their scale leaves them small codes; some columns are weak altogether. So each code is coded in the context of the mean
magnitude to expect of it,

    mean of its row so far · mean of its column so far / mean of all so far,

in steps of a quarter of an octave (``LEVELS``). What to expect of a row before its first code is learned from rows
whose scale had the same exponent. How codes lie about an expected magnitude is counted, starting from a two-sided
geometric distribution, once for all matrices of as many bits: it hardly depends on the matrix. Scales, fp16 and fp32
values are coded byte by byte, the sign and exponent first.

docs/formats/artifact.md specifies it exactly.

Legend: R rows, K codes of a row, n rows worked on at a time, k of the columns, S scales, N numbers of W bytes,
C contexts, A symbols of the alphabet.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, Int8, UInt8

from bytegolf.artifact.range_coder import SEEN, Decoder, Frequencies, Integers, Writer

UNIT = 256
"""Mean magnitudes are integers in units of 1/256."""

MOST_ROWS = 256
VALUES_AT_ONCE = 256


def _levels() -> list[int]:
    bounds = [8]
    while bounds[-1] < 128 * UNIT:
        bounds.append(bounds[-1] * 1189 // 1000 + 1)
    return bounds


LEVELS = np.array(_levels(), np.int64)
"""The upper bounds of the contexts but the last, in ``UNIT``: from 1/32, a quarter of an octave apart."""


class _Contexts:
    """The contexts of a matrix's codes, of a batch of rows at a time, whose rows learn nothing from each other.

    In units of 1/256, with 4 earlier rows of 2 columns whose magnitudes sum to 12 and 4: the mean of all is
    N ≈ 256 · 16 / 8 = 512, so 2. Column 0 has C₀ = (256 · 12 + 4 · 512) / (4 + 4) = 640, that is 2.5: its own mean 3,
    drawn towards 2 as if four more rows had been average. A new row of which 2 is expected has the context of
    512 · 640 / 512 = 640 in column 0; if a 6 comes there, (256 · 6 + 4 · 512) / (1 + 4) = 716 replaces the row's 512 in
    column 1.
    """

    def __init__(self, rows: int, length: int, most: int, top: int, scales: Int[np.ndarray, " S"]) -> None:
        self._rows, self._length, self._at_once = rows, length, rows_at_once(rows, most)
        self._columns = np.zeros(length, np.int64)  # sums of magnitudes
        self._total = top // 4 + 1
        # by the upper byte of a row's scale without the sign, which is its exponent and two bits more
        self._alike, self._seen = np.zeros((2, 128), np.int64)  # sums and numbers of magnitudes
        shared = len(scales) and rows % len(scales) == 0
        self._kinds = (scales >> 8 & 127).repeat(rows // len(scales)) if shared else np.zeros(rows, np.int64)

    def batches(self) -> Iterator[slice]:
        """The rows in batches, few enough that many come after each other: what was learned of columns is of use."""
        for start in range(0, self._rows, self._at_once):
            kinds = self._kinds[start : start + self._at_once]
            mean = UNIT * self._total // (start * self._length + 1) + 1
            self._expected = (UNIT * self._alike[kinds] + 8 * mean) // (self._seen[kinds] + 8)
            self._column_means = (UNIT * self._columns + 4 * mean) // (start + 4)
            self._mean, self._now = mean, kinds
            yield slice(start, start + len(kinds))

    def at(self, sums: Int[np.ndarray, "n k"], columns: slice) -> Int[np.ndarray, "n k"]:
        """The contexts at some columns of the batch; ``sums`` are of the magnitudes of each row before them."""
        seen = np.arange(self._length)[columns]
        row_means = (UNIT * sums + 4 * self._expected[:, None]) // (seen + 4)
        found: Integers = LEVELS.searchsorted(row_means * self._column_means[columns] // self._mean)
        return found

    def learn(self, magnitudes: Int[np.ndarray, "n K"]) -> None:
        """Take in the batch."""
        rows = magnitudes.sum(1)
        self._columns += magnitudes.sum(0)
        self._total += int(rows.sum())
        np.add.at(self._alike, self._now, rows)
        np.add.at(self._seen, self._now, self._length)


def most_rows(payload_bytes: int) -> int:
    """How many rows of any matrix are coded at a time in a file: in a small one less time is saved than bytes lost."""
    return max(1, min(MOST_ROWS, payload_bytes // 16_384))


def rows_at_once(rows: int, most: int) -> int:
    """How many rows of one matrix are coded at a time."""
    return max(1, min(most, rows // 16))


def count_steps(rows: int, length: int, most: int) -> int:
    """How many steps a matrix takes, each of which costs about as much as any other."""
    return -(-rows // rows_at_once(rows, most)) * length


def _geometric(top: int) -> Int[np.ndarray, "C A"]:
    """Prior counts of −top…top for each level: about 128 symbols seen."""
    rows = []
    for mean in [4, *LEVELS.tolist()]:
        side = [1 << 32]
        for _ in range(top):
            side.append(side[-1] * mean // (mean + UNIT))
        whole = 2 * sum(side) - side[0]
        rows.append([128 * SEEN * side[abs(code)] // whole for code in range(-top, top + 1)])
    return np.array(rows, np.int64)


class _Tables:
    """The frequencies of one file."""

    def __init__(self) -> None:
        self.codes = functools.cache(lambda top: Frequencies(_geometric(top)))
        """those of codes −top…top"""
        self.bytes = functools.cache(lambda width, place: Frequencies(np.full((2, 256), SEEN // 4, np.int64)))
        """those of the bytes at a place in numbers of so many bytes"""


class TensorWriter:
    """Writes matrices of codes and runs of numbers, one after the other."""

    def __init__(self, out: Writer, most: int = MOST_ROWS) -> None:
        """``most``: see ``most_rows``."""
        self._out = out
        self._most = most
        self._tables = _Tables()

    def matrix(self, codes: Int8[np.ndarray, "R K"], top: int, scales: Int[np.ndarray, " S"]) -> None:
        """Write codes −top…top, whose scales the reader knows by then: ``scales`` are their fp16 as words."""
        if not codes.size:
            return
        contexts, by = _Contexts(codes.shape[0], codes.shape[1], self._most, top, scales), self._tables.codes(top)
        for batch in contexts.batches():
            part = codes[batch].astype(np.int64)
            magnitudes = np.abs(part)
            found = contexts.at(magnitudes.cumsum(1) - magnitudes, slice(None))
            for context, symbols in zip(found.T, part.T + top, strict=True):
                self._out.write(by, context, symbols)
            contexts.learn(magnitudes)

    def values(self, data: UInt8[np.ndarray, "N W"]) -> None:
        """Write N little-endian numbers of W bytes, the last byte of all numbers first.

        A byte's context is whether all above it were 0.
        """
        number, width = data.shape
        above = np.zeros(number, np.int64)  # whether all bytes above are 0; for the highest, 0
        for place in reversed(range(width)):
            symbols, by = data[:, place].astype(np.int64), self._tables.bytes(width, place)
            for start in range(0, number, VALUES_AT_ONCE):
                part = slice(start, start + VALUES_AT_ONCE)
                self._out.write(by, above[part], symbols[part])
            above = (data[:, place:] == 0).all(1).astype(np.int64)


class TensorReader:
    """Reads what a ``TensorWriter`` wrote, by calls in the same order."""

    def __init__(self, decoder: Decoder, most: int = MOST_ROWS) -> None:
        """``most``: the writer's."""
        self._decoder = decoder
        self._most = most
        self._tables = _Tables()

    def matrix(self, rows: int, length: int, top: int, scales: Int[np.ndarray, " S"]) -> Int8[np.ndarray, "R K"]:
        """The next codes."""
        codes = np.zeros((rows, length), np.int8)
        if not codes.size:
            return codes
        contexts, by = _Contexts(rows, length, self._most, top, scales), self._tables.codes(top)
        for batch in contexts.batches():
            part = codes[batch]
            sums = np.zeros((len(part), 1), np.int64)
            for column in range(length):
                context = contexts.at(sums, slice(column, column + 1))[:, 0]
                found = self._decoder.read(by, context) - top
                part[:, column] = found
                sums[:, 0] += np.abs(found)
            contexts.learn(np.abs(part.astype(np.int64)))
        return codes

    def values(self, number: int, width: int) -> UInt8[np.ndarray, "N W"]:
        """The next numbers."""
        data = np.zeros((number, width), np.uint8)
        above = np.zeros(number, np.int64)
        for place in reversed(range(width)):
            by = self._tables.bytes(width, place)
            for start in range(0, number, VALUES_AT_ONCE):
                part = slice(start, start + VALUES_AT_ONCE)
                data[part, place] = self._decoder.read(by, above[part])
            above = (data[:, place:] == 0).all(1).astype(np.int64)
        return data
