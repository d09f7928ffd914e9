"""Statistics over seeds: mean, standard deviation, paired differences with a 95 % interval (Student's t).

Not a bootstrap: with the three to ten seeds that a study has, resampling them says next to nothing.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A paired difference, same seed against same seed."""

    mean: float
    half: float | None
    """half the 95 % interval; None with a single pair, which says nothing about noise"""
    n: int
    each: tuple[float, ...] = ()
    """pair by pair"""

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.half is not None and abs(self.mean) > self.half


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n − 1) of a sample; no deviation of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired(control: Sequence[float], candidate: Sequence[float]) -> Difference:
    """The mean of candidate − control, pair by pair, and the half width of its 95 % interval."""
    differences = [b - a for a, b in zip(control, candidate, strict=True)]
    mean, deviation = spread(differences)
    n = len(differences)
    half = None if deviation is None else t_95(n - 1) * deviation / math.sqrt(n)
    return Difference(mean, half, n, tuple(differences))


@functools.cache
def t_95(freedom: int) -> float:
    """Student's t at 97.5 % for whole ``freedom`` ≥ 1: 12.706, 4.303, 3.182, …"""
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t), as the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for index in range(freedom // 2):
        total += term
        step = 2 * index + 1 + odd
        term *= cosine**2 * step / (step + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
