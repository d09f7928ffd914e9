"""The quantiser as equations: rows of integer codes with one fp16 scale each (int8 of S0, int6 of S3).

A row w becomes s·c with codes c = clamp(round(w/s), −L, L), L = 2^(bits−1) − 1, ties to even; s is fp16.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]

CLIP_PERCENTILE = 99.99984
"""Where S0 clips a row's magnitudes at 8 bits."""
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
"""The shares of a row's largest magnitude at which fewer bits may clip it."""
SMALL = 65_536
"""Tensors of at most so many elements are kept in fp16 (S0)."""


def fp16_at_least(x: float) -> np.float16:
    """The smallest fp16 number ≥ x ≥ 0."""
    half = np.float16(x)
    return half if float(half) >= x else np.nextafter(half, np.float16(np.inf))


def percentile(values: Row, percent: float) -> np.float32:
    """Linear between the two nearest of the sorted values, in fp32."""
    ordered = sorted(float(v) for v in values)
    position = percent / 100 * (len(ordered) - 1)
    low, high = math.floor(position), math.ceil(position)
    return np.float32(ordered[low] + (ordered[high] - ordered[low]) * (position - low))


def codes_at(row: Row, scale: np.float16, bits: int) -> list[int]:
    """The nearest codes at a scale; of a row of zeros, whose scale is 0, zeros."""
    top = 2 ** (bits - 1) - 1
    if scale == 0:
        return [0] * len(row)
    # np.rint rounds ties to even; the quotient is taken in fp32
    return [int(min(max(np.rint(w / np.float32(scale)), -top), top)) for w in row]


def quantize_row(row: Row, bits: int) -> tuple[list[int], np.float16]:
    """A row's codes and scale.

    8 bits (S0): the scale is the clip percentile of |w| over 127. Fewer: it is the largest |w| times the clip, of
    ``CLIPS``, of least squared error, over L; of equals the first. (S3 took the largest |w| itself in training, and
    a search at the end.) Scales are rounded up, so that nothing within the clip is off by more than half a step.
    """
    top = 2 ** (bits - 1) - 1
    if bits == 8:
        scale = fp16_at_least(float(percentile(np.abs(row), CLIP_PERCENTILE)) / top)
        return codes_at(row, scale, bits), scale
    largest = float(np.abs(row).max())
    candidates = [fp16_at_least(clip * largest / top) for clip in CLIPS]
    scale = min(candidates, key=lambda s: squared_error(row, s, bits))  # min takes the first of equals
    return codes_at(row, scale, bits), scale


def squared_error(row: Row, scale: np.float16, bits: int) -> float:
    """Σ (s·c − w)²."""
    return sum((float(scale) * c - float(w)) ** 2 for w, c in zip(row, codes_at(row, scale, bits), strict=True))


def prune_row(row: Row, share: float) -> Row:
    """The ⌊share·K⌋ smallest magnitudes become 0 (S3: 3 %); those as large as the next one stay."""
    limit = sorted(np.abs(row))[int(share * len(row))]
    return np.where(np.abs(row) < limit, np.float32(0), row)


def scheme(shape: tuple[int, ...], control: bool) -> str:
    """S0's rule for which tensor is stored how; ``control`` names scales, mixes, gains and skip weights."""
    if control or len(shape) < 2:
        return "fp32"
    return "fp16" if math.prod(shape) <= SMALL else "rows"
