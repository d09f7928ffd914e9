"""Readings as a page's script takes them: arrays of little-endian 16-bit numbers and of bytes, in base 64."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytegolf.analyze.reading import Reading

NOTHING = 65535
"""Stands for a number that is not there."""


def packed_shorts(values: NDArray[Any]) -> str:
    """Numbers of at least 0, rounded; what is too large becomes 65534, and NaN 65535."""
    whole = np.where(np.isfinite(values), np.clip(np.rint(np.nan_to_num(values)), 0, NOTHING - 1), NOTHING)
    return base64.b64encode(whole.astype("<u2").tobytes()).decode()


def packed_shares(values: NDArray[np.float32]) -> str:
    """Probabilities, in ten-thousandths."""
    return packed_shorts(values * 10000)


def packed_flags(values: NDArray[np.bool_]) -> str:
    """A byte each."""
    return base64.b64encode(values.astype(np.uint8).tobytes()).decode()


def packed_reading(reading: Reading, start: int = 0) -> dict[str, Any]:
    """What the levels did from the byte ``start`` on, and surprisal in thousandths of a bit."""
    return {
        "bits": packed_shorts(reading.bits[start:] * 1000),
        "levels": [
            {"p": packed_shares(level.p[start:]), "boundary": packed_flags(level.boundary[start:])}
            for level in reading.levels
        ],
    }
