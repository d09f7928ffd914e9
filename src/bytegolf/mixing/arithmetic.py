"""The numbers and hashes of context mixing, one by one, as the kernel has them: for the plain reference.

Integers are Python's, cut to 64 bits where hashes need it; fp32 stays fp32, in the kernel's order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bytegolf.mixing import tables

MASK = (1 << 64) - 1
GIVEN = 64
"""The number of the first context that comes from outside (``state.State.given``)."""

GOLDEN, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
F = np.float32
FAR = F(11.99)


def mixed(h: int) -> int:
    """A hash of a hash, 64 bits."""
    h &= MASK
    h = ((h ^ h >> 31) * GOLDEN) & MASK
    return ((h ^ h >> 29) * SECOND) & MASK


def second(hash_: int, node: int) -> int:
    """The hash of a byte's second half, whose first node is 16 … 31."""
    return mixed(hash_ + node)


def context(h: dict[str, int], kind: int) -> int:
    """The hash of a context by its number in ``state.CONTEXTS``, before it is mixed."""
    last8 = h["last8"]
    if kind <= 8:
        return last8 & ((1 << 8 * kind) - 1)
    by_kind = {
        12: last8 * GOLDEN + (h["before8"] & 0xFFFFFFFF),
        16: last8 * GOLDEN + h["before8"],
        24: (last8 * GOLDEN + h["before8"]) * GOLDEN + h["before16"],
        32: h["word"],
        33: h["word"] * GOLDEN + h["word_before"],
        34: h["word_before"] * GOLDEN + (last8 & 0xFF),
        40: h["chunk"],
        41: h["chunk"] * GOLDEN + h["chunk_before"],
        42: h["chunk_before"] * GOLDEN + h["chunk_bytes"],
        48: last8 >> 8 & 0xFFFF,
        49: last8 >> 8 & 0xFFFFFF,
        50: last8 >> 16 & 0xFFFF,
        51: last8 & 0xF0F0F0F0F0,
        52: last8 >> 24 & 0xFF,
        53: last8 >> 24 & 0xFF | last8 >> 48 & 0xFF00,
        54: 2 * (last8 >> 24 & 0xFFFF) - (last8 >> 56 | h["before8"] << 8 & 0xFF00) & 0xFFFF,
    }
    return by_kind[kind] & MASK


def hashed(h: dict[str, int], c: int, kind: int, given: NDArray[np.uint64]) -> int:
    """The hash of a stream's c-th context, which is of a ``kind``; of those from outside ``given`` has the numbers."""
    own = int(given[kind - GIVEN]) if kind >= GIVEN else context(h, kind)
    return mixed(own + (c + 1) * 0xD6E8FEB86659FD93)


def letter(byte: int) -> int:
    """A letter in lower case, or a byte of a character that is not ASCII; 0 for anything else."""
    c = byte + 32 if 65 <= byte <= 90 else byte
    return c if 97 <= c <= 122 or c >= 128 else 0


def length_class(size: int) -> int:
    """A match's length as one of 32 classes."""
    for limit, start, base, step in ((16, 0, 0, 1), (32, 16, 16, 4), (64, 32, 20, 8), (512, 64, 24, 64)):
        if size < limit:
            return base + (size - start) // step
    return 31


def rough_length(size: int) -> int:
    """The same as one of 8."""
    return sum(size >= limit for limit in (1, 8, 12, 16, 20, 24, 32))


def confidence(x: np.float32) -> int:
    """How far a logit is from 0, as one of 8 classes."""
    return int(sum(abs(x) >= limit for limit in (0.5, 1, 2, 3, 4, 5, 7)))


def clip(x: np.float32, most: np.float32 = FAR) -> np.float32:
    """``x`` between −most and most."""
    return -most if x < -most else most if x > most else x


def squash(x: np.float32) -> np.float32:
    """1/(1 + e^−x) by linear interpolation."""
    at = (x + F(12)) * F(64)
    i = int(at)
    table = tables.squash()
    return table[i] + (table[i + 1] - table[i]) * (at - F(i))  # type: ignore[no-any-return]  # an fp32


def whole(p: np.float32) -> int:
    """A probability in units of 2⁻¹⁶, 1 … 65535."""
    return min(65535, max(1, int(p * F(65536))))


def log(value: int) -> np.float32:
    """ln of an integer above 0."""
    # value = 2^high · (1 + m): of 12 = 0b1100 high is 3 and m = 0.5; the 12 bits behind the highest one look ln(1 + m)
    # up
    high = value.bit_length() - 1
    return tables.log_mantissa()[(value << 31 - high) >> 19 & 4095] + F(high) * F(0.6931472)  # type: ignore[no-any-return]


def dot(x: NDArray[np.float32], w: NDArray[np.float32]) -> np.float32:
    """Σ x·w in 8 lanes, which are then added up in pairs."""
    # a sum in fp32 depends on its order, and codes on its last bit: so this is a vector of 8 in any machine, and its
    # halves, quarters and eighths are added as vector instructions do it
    lanes = np.zeros(8, np.float32)
    for products in (x * w).reshape(-1, 8):
        lanes = lanes + products
    a = [F(lane) for lane in lanes]
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
