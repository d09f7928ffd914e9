"""A table before it is drawn, and how figures are written in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Grid:
    """A table: the first column says what a row is."""

    title: str
    head: list[str]
    rows: list[list[str]]
    wide: bool = False
    """too many columns for a terminal"""


def with_chance(figures: dict[str, Any], key: str, chance: str, digits: int | None) -> str:
    """A figure and, in brackets, the one that chance would give; ``digits`` None: as percents."""
    write = percent if digits is None else lambda value: number(value, digits)
    value = write(figures.get(key))
    return f"{value} ({write(figures.get(chance))})" if chance and value != "–" else value


def times(value: float | None) -> str:
    """A factor."""
    return "–" if value is None else f"{value:.2f}×"


def percent(value: float | None) -> str:
    """A share."""
    return "–" if value is None else f"{value:.1%}"


def fine(value: float | None) -> str:
    """A share that may be far below a percent."""
    return "–" if value is None else f"{value:.3%}"


def number(value: float | None, digits: int) -> str:
    """Any other figure."""
    return "–" if value is None else f"{value:.{digits}f}"
