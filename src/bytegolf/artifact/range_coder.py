"""Adaptive range coding of symbols in contexts, over constriction.

Everything is integers, so every machine reads what any machine wrote. docs/formats/artifact.md specifies the
stream exactly; what the contexts are is up to ``artifact.weight_coder``.

Legend: C contexts, A symbols of the alphabet, n symbols of a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

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
