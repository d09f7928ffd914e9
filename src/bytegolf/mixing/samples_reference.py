"""Samples in plain Python and NumPy: what ``ops/kernels/exact_samples.h`` computes, to the last bit.

fp64 is Python's or NumPy's element by element, in the kernel's order; right shifts of negative numbers round down in
both.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bytegolf.mixing.arithmetic import MASK, mixed
from bytegolf.mixing.state import MOST_GIVEN

PREDICTORS, CLASSES, UNIT = 3, 48, 64
PICTURE, TABLE = 1, 3
_KIND, _CHANNELS, _WIDTH, _ROW, _MASK, _EXPERTS, _POSITION, _PARTIAL, _CLASS = range(9)


class Arrays(Protocol):
    """The arrays of ``samples.Samples``."""

    numbers: NDArray[np.int64]
    values: NDArray[np.int32]
    near: NDArray[np.int64]
    nears: NDArray[np.int64]
    rules: NDArray[np.float64]
    products: NDArray[np.float64]
    sums: NDArray[np.float64]
    weights: NDArray[np.float64]
    traces: NDArray[np.int64]
    scales: NDArray[np.int64]
    rate: NDArray[np.int32]
    shapes: NDArray[np.int64]
    spread: NDArray[np.int32]
    predicted: NDArray[np.int64]
    frequencies: NDArray[np.uint32]

    @property
    def given(self) -> NDArray[np.uint64]: ...


class SampleReference:
    """``foresee`` says what the next byte may be, ``learn`` which one came."""

    def __init__(self, arrays: Arrays) -> None:
        self._a = arrays
        numbers = arrays.numbers.tolist()
        self._kind, self._channels, self._width, self._row, self._mask, self._experts = map(int, numbers[:6])
        self._middle: int = 1 << 8 * self._width - 1

    def foresee(self) -> None:
        """Fill in the experts' frequencies of the next byte, and its contexts."""
        position = int(self._a.numbers[_POSITION])
        if position < 0:
            self._a.frequencies[:] = 1
            return
        at = position // self._width
        c = self._channel(at)
        if self._experts:
            if position % self._width == 0:
                self._predict(at, c)
            self._distribute(c)
        self._look(at, c)

    def learn(self, byte: int) -> None:
        """The next byte."""
        a, numbers = self._a, self._a.numbers
        position = int(numbers[_POSITION])
        numbers[_POSITION] += 1
        if position < 0:
            return
        numbers[_PARTIAL] = int(numbers[_PARTIAL]) << 8 | byte
        if (position + 1) % self._width:
            return
        at = position // self._width
        c, value = self._channel(at), int(numbers[_PARTIAL]) - self._middle
        numbers[_PARTIAL] = 0
        predicted = a.predicted.tolist()
        for p in range(PREDICTORS if self._experts else 0):
            scale, seen = a.scales[c, p, int(numbers[_CLASS])].tolist()
            off = abs(value * UNIT - predicted[p]) << 8
            scale += (off - scale) * int(a.rate[seen]) >> 16
            a.scales[c, p, int(numbers[_CLASS])] = scale, min(seen + 1, 255)
            if a.nears[c, p]:
                self._fit(at, c, p, float(value))
        _, fast, slow, count = a.traces[c].tolist()
        size = abs(value * UNIT - predicted[0]) >> 2
        fast, slow = fast + (size - fast >> 3), slow + (size - slow >> 6)
        a.traces[c] = value - (predicted[0] + UNIT // 2 >> 6), fast, slow, count + 1
        a.values[at & self._mask] = value

    # ------------------------------------------------------------------------------------------------ prediction

    def _back(self, at: int, distance: int) -> int:
        return int(self._a.values[at - distance & self._mask])

    def _channel(self, at: int) -> int:
        return (at % self._row if self._row else at) % self._channels

    def _around(self, at: int, d: int = 0) -> tuple[int, int, int, int]:
        """West, north, north-west and north-east of a sample, or of the one ``d`` before it."""
        west, north = self._channels, self._row
        w, n, nw, ne = (self._back(at, i + d) for i in (west, north, north + west, north - west))
        return w, n, nw, ne

    def _plane(self, at: int, c: int) -> int:
        w, n, nw, _ = self._around(at)
        if not c:
            return sorted((w, n, w + n - nw))[1]
        before = self._around(at, 1)
        w, n, nw = w - before[0], n - before[1], nw - before[2]
        return self._back(at, 1) + sorted((w, n, w + n - nw))[1]

    def _predict(self, at: int, c: int) -> None:
        a, most = self._a, self._middle * UNIT
        for p in range(PREDICTORS):
            count = int(a.nears[c, p])
            if count:
                total = 0.0
                for distance, weight in zip(a.near[c, p, :count].tolist(), a.weights[c, p].tolist(), strict=False):
                    total = total + float(self._back(at, distance)) * weight
                found = int(np.rint(min(max(total * float(UNIT), float(-most)), float(most))))
            else:
                found = self._plane(at, c) * UNIT
            a.predicted[p] = min(max(found, -most), most - UNIT)
        error, fast, slow, _ = a.traces[c].tolist()
        size = fast + slow >> 2
        if self._kind == PICTURE:
            w, n, nw, ne = self._around(at)
            size = abs(w - nw) + abs(n - nw) + abs(n - ne) + 2 * abs(error)
            if c:
                size += 2 * abs(int(a.traces[c - 1, 0]))
        a.numbers[_CLASS] = min(grade(size), CLASSES - 1)

    def _distribute(self, c: int) -> None:
        a = self._a
        position, partial, place = (int(a.numbers[i]) for i in (_POSITION, _PARTIAL, _CLASS))
        step = 1 << 8 * (self._width - 1 - position % self._width)
        edges = (partial * 256 * step - self._middle + np.arange(257) * step) * UNIT - UNIT // 2
        for e, (p, wide) in enumerate(a.shapes.tolist()):
            scale = int(a.scales[c, p, place, 0])
            inverse = (1 << 32) // max(2, (scale >> 8) * wide >> 6)
            z = np.clip(((edges - int(a.predicted[p])) * inverse >> 16) + (12 << 16), 0, (24 << 16) - 1)
            low, high = a.spread[z >> 10].astype(np.int64), a.spread[(z >> 10) + 1].astype(np.int64)
            a.frequencies[e] = np.diff(low + ((high - low) * (z & 1023) >> 10)) + 1

    # ------------------------------------------------------------------------------------------------ contexts

    def _look(self, at: int, c: int) -> None:
        numbers = self._a.numbers
        partial, which = int(numbers[_PARTIAL]), int(numbers[_POSITION]) % self._width
        part = (partial << 4 | which) << 4 | c
        place = which * 4 + min(c, 3)
        predicted = self._a.predicted.tolist()
        found: list[int]
        if self._kind == TABLE:
            found, sets = self._table(at, part)
        else:
            found = self._picture(at, c, part) if self._kind == PICTURE else self._sound(at, part)
            apart = predicted[0] - predicted[PREDICTORS - 1]
            apart = min(grade(abs(apart) >> 3), 15) * 2 + (apart < 0)
            quiet = int(numbers[_CLASS]) // (2 if self._width > 1 else 1)
            sets = place * 16 + min(quiet, 15), place * 32 + apart
        self._a.given[: len(found)] = found
        self._a.given[MOST_GIVEN:] = sets

    def _picture(self, at: int, c: int, part: int) -> list[int]:
        w, n, nw, ne = self._around(at)
        first, other = (predicted >> 6 for predicted in self._a.predicted[:2].tolist())
        near1 = self._back(at, 1) if self._channels > 1 else self._back(at, 2)
        near2 = self._back(at, 2) if self._channels > 2 else self._back(at, 2 * self._row)
        before = joined(part, *(self._back(at, i + 1) for i in range(self._channels)))
        above = joined(part, *(self._back(at, self._row + c - i) for i in range(self._channels)))
        found = [
            joined(part, int(self._a.predicted[0]) >> 5),
            joined(part, first, int(self._a.traces[c, 0]) >> 1),
            joined(part, w, n),
            joined(part, n, ne),
            joined(part, w, near1),
            joined(part, near1, near2),
            joined(part, w + n - nw, near1 - near2),
            joined(part, first >> 1, other >> 1),
            joined(before, n),
            joined(before, n, nw, ne),
            joined(above, w),
        ]
        if self._channels == 1:  # a pixel is its one channel: others in place of those that say the same
            ww, nn = near1, near2
            found[4:6] = joined(part, w, n, nw), joined(part, n)
            found[7:9] = joined(part, w, n, nw, ne, nn, ww), joined(part, w, n, ne)
            found[10] = joined(part, w, ww, n, nn)
        return found

    def _sound(self, at: int, part: int) -> list[int]:
        first, other, third = self._a.predicted.tolist()
        w, ww = self._back(at, self._channels), self._back(at, 2 * self._channels)
        return [
            joined(part, first >> 6),
            joined(part, first >> 9),
            joined(part, other >> 8),
            joined(part, w),
            joined(part, w >> 4, ww >> 4),
            joined(part, self._back(at, 1) >> 4, first >> 10),
            joined(part, w >> 8, ww >> 8),
            joined(part, third >> 8, first >> 8),
        ]

    def _table(self, at: int, part: int) -> tuple[list[int], tuple[int, int]]:
        row = self._row
        column, a, aa, w, nw = at % row, *(self._back(at, i) for i in (row, 2 * row, 1, row + 1))
        found = [
            joined(part, a, column),
            joined(part, a, w),
            joined(part, w, column),
            joined(part, a, aa),
            joined(part, column),
            joined(part, 2 * a - aa & 255, column),
            joined(part, a + w - nw & 255, column),
            joined(part, a, w, self._back(at, 2)),
        ]
        return found, (column * 256 // row, a + self._middle)

    # ------------------------------------------------------------------------------------------------ least squares

    def _fit(self, at: int, c: int, p: int, value: float) -> None:
        a, n = self._a, int(self._a.nears[c, p])
        x = np.array([float(self._back(at, distance)) for distance in a.near[c, p, :n].tolist()])
        products, sums = a.products[c, p, :n, :n], a.sums[c, p, :n]
        share, ridge, every = a.rules[p].tolist()
        lower = np.tri(n, dtype=bool)
        products[lower] = (products + (np.outer(x, x) - products) * share)[lower]
        sums[:] = sums + (x * value - sums) * share
        if (int(a.traces[c, 3]) + 1) % int(every) == 0:
            found = _solved(products, sums, ridge)
            if found is not None:
                a.weights[c, p, :n] = found


def _solved(products: NDArray[np.float64], sums: NDArray[np.float64], ridge: float) -> NDArray[np.float64] | None:
    """w of (products + ridge·I)·w = sums, by products + ridge·I = L·D·Lᵀ; None where that is not well determined."""
    n = len(sums)
    m, y, one = products + ridge * np.eye(n), sums.copy(), np.zeros(n)
    for j in range(n):
        if not m[j, j] > ridge * 0.5:
            return None
        one[j] = 1.0 / m[j, j]
        column = m[j + 1 :, j].copy()
        # the kernel takes L's element times the product's: l[k]·m[i], for i ≥ k
        m[j + 1 :, j + 1 :] = m[j + 1 :, j + 1 :] - np.outer(column, column * one[j])
        m[j + 1 :, j] = column * one[j]
    for j in range(n):
        y[j + 1 :] = y[j + 1 :] - m[j + 1 :, j] * y[j]
    w = np.zeros(n)
    for j in range(n - 1, -1, -1):
        total = float(y[j] * one[j])
        for i in range(j + 1, n):
            total = total - float(m[i, j]) * float(w[i])
        w[j] = total
    return w


def joined(start: int, *numbers: int) -> int:
    """A hash of numbers, one behind the other."""
    for number in numbers:
        start = mixed(start + number & MASK)
    return start


def grade(n: int) -> int:
    """A number's size as one of two classes per doubling: 0, 1, 2, 3, 4 (4 and 5), 5 (6 and 7), 6 (8 … 11), …"""
    return n if n < 2 else 2 * (n.bit_length() - 1) + (n >> n.bit_length() - 2 & 1)
