"""What lies in a file of a tensor, by the name of its quantiser: codes or values, of which width, with how many scales.

Nothing here needs torch, so that a file can be read, checked and counted without it; what the numbers mean is
``artifact.quantize``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bytegolf.errors import BytegolfError
from bytegolf.registry import QUANTIZERS

NUMBERS: dict[str, np.dtype[Any]] = {
    "torch.int8": np.dtype("i1"),
    "torch.float16": np.dtype("<f2"),
    "torch.float32": np.dtype("<f4"),
}
"""What data of a dtype are in the file, in the order in which they lie there."""

SCALE: np.dtype[Any] = np.dtype("<f2")


def levels(bits: int) -> int:
    """L, the largest code: they go from −L to L."""
    return (1 << (bits - 1)) - 1


ROW_BITS = {f"int{bits}_row": bits for bits in range(8, 2, -1)}
"""The quantisers of rows, with the bits of a code."""


@dataclass(frozen=True)
class Form:
    """What a quantiser stores of a tensor."""

    largest_code: int
    """L of int8 codes −L…L; 0 where the data are values and no codes"""
    number: np.dtype[Any]
    """of the data"""
    scales_fit: Callable[[tuple[int, ...], int], bool]
    """whether a tensor of a shape may have so many scales"""
    built_in: bool = True
    """whether finite numbers and scales are all that a finite weight needs"""


def groups_fit(shape: tuple[int, ...], count: int) -> bool:
    """Whether so many scales are those of equal groups of a tensor's rows."""
    return (count == 0) == (shape[0] == 0) and (not count or shape[0] % count == 0)


def _no_scales(shape: tuple[int, ...], count: int) -> bool:
    return count == 0


_BUILT_IN = {
    **{name: Form(levels(bits), NUMBERS["torch.int8"], groups_fit) for name, bits in ROW_BITS.items()},
    "fp16": Form(0, NUMBERS["torch.float16"], _no_scales),
    "fp32": Form(0, NUMBERS["torch.float32"], _no_scales),
}


def form_of(name: str) -> Form:
    """What the quantiser called ``name`` stores: a built-in one, or one that ``register_quantizer`` registered.

    Raises UnknownNameError, a BytegolfError, if there is none.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    found = QUANTIZERS.find(name, None)
    if not all(hasattr(found, part) for part in ("largest_code", "dtype", "scales_fit")):
        raise BytegolfError(f"the quantizer {name!r} is no subclass of bytegolf.artifact.quantizer.Quantizer")
    made = found()
    return Form(made.largest_code, NUMBERS[str(made.dtype)], made.scales_fit, built_in=False)
