"""Paired differences of scores over seeds, and whether they are noise: statistics without a study in them.

Why paired, and what the interval means. A seed that is hard is hard for both variants: with the control at 1.50, 1.60,
1.55 and a variant at 1.48, 1.57, 1.53 bits per byte, the means lie 0.023 apart while each scatters by 0.05. Seed by
seed the variant gains 0.02, 0.03, 0.02: mean d̄ = −0.0233, standard deviation s = 0.0058 over n = 3. The true
difference lies in d̄ ± t·s/√n with 95 % confidence, where t = 4.303 is Student's t for n − 1 = 2 degrees of freedom:
−0.0233 ± 0.0143, which leaves zero out. No bootstrap: resampling three to ten seeds says next to nothing.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

SAME, BETTER, WORSE, UNKNOWN = "=", "better", "worse", "?"
"""Verdicts: the interval holds zero; below it; above it; too few pairs for an interval."""


@dataclass(frozen=True)
class Difference:
    """A paired difference in bits per byte, same seed against same seed."""

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

    @property
    def verdict(self) -> str:
        """How the difference reads: lower is better, and an interval that holds zero is noise."""
        if self.half is None:
            return UNKNOWN
        return SAME if not self.told_apart else BETTER if self.mean < 0 else WORSE


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n − 1) of a sample; no deviation of a single value."""
    return fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired(control: Sequence[float], candidate: Sequence[float]) -> Difference:
    """The mean of candidate − control, pair by pair, and the half width of its 95 % interval."""
    differences = [b - a for a, b in zip(control, candidate, strict=True)]
    mean, deviation = spread(differences)
    n = len(differences)
    half = None if deviation is None else t_95(n - 1) * deviation / math.sqrt(n)
    return Difference(mean, half, n, tuple(differences))


@functools.cache
def t_95(freedom: int) -> float:
    """Student's t at 97.5 % for whole ``freedom`` ≥ 1: 12.706, 4.303, 3.182, … By hand: no 40 MB for one quantile."""
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
