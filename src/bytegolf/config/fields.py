"""A configuration field: its documentation and range stand once, beside it, and errors are made from there."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

from bytegolf.errors import BytegolfError


def doc(
    text: str,
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its documentation and range beside it; without a default the field is required."""
    metadata = {"doc": text, "least": least, "above": above, "most": most, "below": below}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_ranges(cls: type, values: dict[str, Any], dotted: str) -> None:
    """Raise if a number is not finite or outside its field's range; ``dotted`` goes before the field's name."""
    for field in dataclasses.fields(cls):
        value = values.get(field.name)
        if not isinstance(value, (int, float)):
            continue
        bounds = {key: field.metadata[key] for key in _HOLDS if field.metadata.get(key) is not None}
        if math.isfinite(value) and all(_HOLDS[key][1](value, bound) for key, bound in bounds.items()):
            continue
        wanted = " and ".join(f"{_HOLDS[key][0]} {bound:g}" for key, bound in bounds.items())
        raise BytegolfError(
            f"{dotted}{field.name} is {value}: give a {f'number {wanted}' if wanted else 'finite number'} "
            f"({field.metadata.get('doc', 'a number')})"
        )


_HOLDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "least": ("of at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("up to", operator.le),
    "below": ("below", operator.lt),
}


class Ranged:
    """A dataclass whose fields keep to the ranges in their ``doc``, however it is made."""

    def __post_init__(self) -> None:
        check_ranges(type(self), vars(self), "")
