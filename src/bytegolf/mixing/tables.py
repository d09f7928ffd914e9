"""The functions of mixing as tables, so that they are the same on every machine.

A library's logarithm may differ by a last bit from another's: values are rounded to multiples of 2⁻²⁰ first, which such
a bit does not reach.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

FAR = 12
"""|x| of a logit stays below it: a probability between 6e-6 and 1 − 6e-6."""

PER_UNIT = 64
"""Entries of ``squash`` per 1 of its argument."""

SHARES = 1 << 16
"""What a bit's probability is counted in."""


def _rounded(values: Iterable[float]) -> NDArray[np.float32]:
    scale = 1 << 20
    return np.array([round(value * scale) / scale for value in values], np.float32)


@functools.cache
def squash() -> NDArray[np.float32]:
    """1/(1 + e^−x) at x = −12, −12 + 1/64, … 12 + 1/64, in fp32."""
    return _rounded(1 / (1 + math.exp(FAR - i / PER_UNIT)) for i in range(2 * FAR * PER_UNIT + 2))


@functools.cache
def stretch() -> NDArray[np.float32]:
    """ln(p/(1 − p)) in the middle of each of 4096 equal parts of 0 … 1, in fp32."""
    return _rounded(math.log((i + 0.5) / (4095.5 - i)) for i in range(4096))


@functools.cache
def log_mantissa() -> NDArray[np.float32]:
    """ln(1 + m) in the middle of each of 4096 equal parts of 0 … 1, in fp32."""
    return _rounded(math.log1p((i + 0.5) / 4096) for i in range(4096))


@functools.cache
def nats() -> NDArray[np.float64]:
    """−ln(i / 2¹⁶) for i = 0 … 2¹⁶ − 1 (0 for i = 0, which no bit is given)."""
    found = np.zeros(SHARES)
    found[1:] = -np.log(np.arange(1, SHARES) / SHARES)
    return found
