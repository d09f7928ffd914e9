"""Calls and jumps of x86 programs, with absolute targets in place of relative ones.

The instructions E8 and E9 hold how far away their target is, so that two calls of one function differ. With the place
added they are the same, and what predicts bytes by those before can learn them. The lower 24 bits are changed where the
upper 8 are all 0 or all 1, as they are within 16 MiB. The change does not touch whether a byte is E8 or E9 and the one
four behind it 00 or FF; a later change may touch it, so the way back goes in the opposite order.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8

from bytegolf.ops import native

LEAST_SHARE = 1 / 200
"""Of a block's bytes that must look like such instructions. Of code it is a fiftieth, of other data about 1/8,000."""


def pays(block: UInt8[np.ndarray, " n"]) -> bool:
    """Whether so many bytes look like calls that it is worth while."""
    if len(block) < 1000:
        return False
    likely = (block[:-4] & 0xFE == 0xE8) & ((block[4:] + np.uint8(1)) < 2)
    return bool(likely.sum() > LEAST_SHARE * len(block))


def absolute(block: UInt8[np.ndarray, " n"], place: int, back: bool = False) -> UInt8[np.ndarray, " n"]:
    """The block, which begins at ``place`` of its file, with absolute targets; ``back``: with relative ones again."""
    changed = block.copy()
    if native.why_not() is None:
        native.call("x86_absolute", torch.empty(0), torch.from_numpy(changed), len(changed), place, int(back))
        return changed
    return absolute_reference(changed, place, back)


def absolute_reference(changed: UInt8[np.ndarray, " n"], place: int, back: bool) -> UInt8[np.ndarray, " n"]:
    """``absolute`` in plain Python."""
    x = bytearray(changed.tobytes())
    places = range(len(x) - 4)
    for i in places if back else reversed(places):
        if x[i] & 0xFE == 0xE8 and x[i + 4] in (0, 255):
            target = int.from_bytes(x[i + 1 : i + 4], "little")
            at = -(place + i) if back else place + i
            x[i + 1 : i + 4] = ((target + at) & 0xFFFFFF).to_bytes(3, "little")
    return np.frombuffer(bytes(x), np.uint8).copy()
