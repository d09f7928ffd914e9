"""The ``range`` coder of an artifact: adaptive range coding over constriction, in contexts made for weights.

Everything is integers, so every machine reads what any machine wrote. docs/formats/artifact.md specifies the
stream exactly; what the contexts are is up to ``artifact.weight_coder``.

A code's distribution is nearly that of its magnitude alone, and that is nearly a product: some rows are spiky, so that
their scale leaves them small codes; some columns are weak altogether. So each code is coded in the context of the mean
magnitude to expect of it,

    mean of its row so far · mean of its column so far / mean of all so far,

in steps of a quarter of an octave (``LEVELS``). What to expect of a row before its first code is learned from rows
whose scale had the same exponent. How codes lie about an expected magnitude is counted, starting from a two-sided
geometric distribution, once for all matrices of as many bits: it hardly depends on the matrix. Scales, fp16 and fp32
values are coded byte by byte, the sign and exponent first.

docs/formats/artifact.md specifies it exactly.

Legend: C contexts, A symbols of the alphabet, n symbols of a step, R rows, K codes of a row, k of the columns, S
scales, N numbers of W bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int, Int8, UInt8
from numpy.typing import NDArray

# ------------------------------------------------------------------------------------------------ adaptive range coding


PRECISION = 24
"""log₂ of what the frequencies of one context sum to, which is constriction's own."""

LEAST = 64
"""The frequency of a symbol that was never seen, which then takes 18 bits."""

SEEN = 64
"""What one symbol adds to its count."""

_LIMIT = 1 << 20
"""A context's counts are halved beyond this sum, so that it follows what changes."""

_REFRESH = 1024
"""Frequencies are made of the counts every so many symbols."""

Integers = NDArray[np.int64]


class BrokenStreamError(Exception):
    """A stream that no writer made."""


class Frequencies:
    """Adaptive frequencies of A symbols in each of C contexts.

    Counts change with every ``_REFRESH`` symbols and not with each: making frequencies of them costs more than coding
    one symbol. Only the contexts that occurred are made anew.
    """

    def __init__(self, prior: Int[np.ndarray, "C A"]) -> None:
        self._counts = prior
        self._weights = np.zeros(prior.shape)
        self._models: dict[int, Any] = {}
        self._waiting: list[tuple[Integers, Integers]] = []
        self._waiting_symbols = 0
        self._make(np.arange(len(prior)))

    def model(self, context: int) -> Any:
        """What constriction codes the symbols of a context with."""
        if context not in self._models:
            import constriction  # a megabyte, which a model that is not coded by it has no use for

            self._models[context] = constriction.stream.model.Categorical(self._weights[context], perfect=False)
        return self._models[context]

    def bits(self, context: Int[np.ndarray, " n"], symbols: Int[np.ndarray, " n"]) -> float:
        """What symbols take as the frequencies are now."""
        return float((PRECISION - np.log2(self._weights[context, symbols] + 1)).sum())

    def learn(self, context: Int[np.ndarray, " n"], symbols: Int[np.ndarray, " n"]) -> None:
        """Take in symbols that were coded."""
        self._waiting.append((context, symbols))
        self._waiting_symbols += len(symbols)
        if self._waiting_symbols < _REFRESH:
            return
        contexts, found = map(np.concatenate, zip(*self._waiting, strict=True))
        cells = contexts * self._counts.shape[1] + found
        seen = np.bincount(cells, minlength=self._counts.size).reshape(self._counts.shape)
        self._waiting, self._waiting_symbols = [], 0
        changed = np.flatnonzero(seen.any(1))
        counts = self._counts[changed] + SEEN * seen[changed]
        counts[counts.sum(1) > _LIMIT] //= 2
        self._counts[changed] = counts
        self._make(changed)

    def _make(self, contexts: Int[np.ndarray, " c"]) -> None:
        """Make the frequencies of some contexts: each symbol gets ``LEAST`` of 2²⁴, and counts share out the rest.

        With counts (64, 128, 64) of 3 symbols the rest is 2²⁴ − 192 = 16,777,024, which the differences of
        ⌊16,777,024 · (64, 192, 256) / 256⌋ share out as 4,194,256, 8,388,512 and 4,194,256.

        constriction does the like with the weights that it is given: 1 for each of A symbols, and 2²⁴ − A in proportion
        to the weights, by rounding sums of weights that are scaled to that. Ours are integers that sum to exactly that:
        the scale is 1, and nothing is left to round.
        """
        counts = self._counts[contexts]
        rest = (1 << PRECISION) - LEAST * counts.shape[1]
        sums = counts.cumsum(1)
        shares = sums * rest // sums[:, -1:]
        shares[:, 1:] -= shares[:, :-1].copy()
        self._weights[contexts] = shares + (LEAST - 1)
        for context in contexts.tolist():
            self._models.pop(context, None)


class Encoder:
    """Writes symbols into a stream."""

    def __init__(self) -> None:
        import constriction

        self._coder: Any = constriction.stream.queue.RangeEncoder()

    def write(self, by: Frequencies, context: Int[np.ndarray, " n"], symbols: Int[np.ndarray, " n"]) -> None:
        """Write n symbols, ordered by their contexts."""
        order, runs = _runs(context)
        ordered = symbols[order].astype(np.int32)
        for start, end, number in runs:
            self._coder.encode(ordered[start:end], by.model(number))
        by.learn(context, symbols)

    def finish(self) -> bytes:
        """The stream: words of 4 bytes, little-endian."""
        return self._coder.get_compressed().astype("<u4").tobytes()  # type: ignore[no-any-return]  # it has no types


class BitCounter:
    """Counts what an ``Encoder`` would write, in ``bits``."""

    def __init__(self) -> None:
        self.bits = 0.0

    def write(self, by: Frequencies, context: Int[np.ndarray, " n"], symbols: Int[np.ndarray, " n"]) -> None:
        """Count n symbols."""
        self.bits += by.bits(context, symbols)
        by.learn(context, symbols)


Writer = Encoder | BitCounter
"""What takes symbols."""


class Decoder:
    """Reads what an ``Encoder`` wrote, by the same frequencies and contexts.

    With ``counting``, ``bits`` is how much of the stream the symbols so far took.

    Raises BrokenStreamError: from any of its calls, if no encoder wrote the stream. An altered one mostly decodes to
    other symbols instead: the file's hash tells that.
    """

    def __init__(self, stream: bytes | memoryview, counting: bool = False) -> None:
        import constriction

        if len(stream) % 4:
            raise BrokenStreamError("its payload is no whole number of words")
        self._words = np.frombuffer(stream, "<u4").astype(np.uint32)
        self._coder: Any = constriction.stream.queue.RangeDecoder(self._words)
        self._again: Any = constriction.stream.queue.RangeEncoder()
        self._counting = counting
        self.bits = 0.0

    def read(self, by: Frequencies, context: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The next n symbols."""
        order, runs = _runs(context)
        ordered, found = np.empty((2, len(context)), np.int64)
        try:
            for start, end, number in runs:
                model = by.model(number)
                symbols = self._coder.decode(model, end - start)
                self._again.encode(symbols, model)
                ordered[start:end] = symbols
        except AssertionError as error:  # which is what constriction raises
            raise BrokenStreamError("its payload is no stream of the range coder") from error
        found[order] = ordered
        if self._counting:
            self.bits += by.bits(context, found)
        by.learn(context, found)
        return found

    def close(self) -> None:
        """Check that the stream ends here.

        A range decoder gives symbols for any bytes, and reads zeros behind the last. So the symbols are encoded again
        on the way, a fifth more work, and what an encoder would not have written is refused: a file has one form.
        """
        if not np.array_equal(self._again.get_compressed(), self._words):
            raise BrokenStreamError("its payload does not end where its tensors do")


def _runs(context: Int[np.ndarray, " n"]) -> tuple[Integers, list[tuple[int, int, int]]]:
    """The order of symbols by context, and where each context's run begins and ends in it: one call codes a run.

    >>> _runs(np.array([7, 5, 7]))
    (array([1, 0, 2]), [(0, 1, 5), (1, 3, 7)])
    """
    order = context.argsort(kind="stable")
    ordered = context[order]
    starts = [0, *((ordered[1:] != ordered[:-1]).nonzero()[0] + 1).tolist()]
    return order, list(zip(starts, [*starts[1:], len(context)], ordered[starts].tolist(), strict=True))


# -------------------------------------------------------------------------------------------------- contexts of weights


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
