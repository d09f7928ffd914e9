"""How firmly boundaries stand, as types: plain Python, so that a verb's help can be made from them at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CapacityCost:
    """What a fixed capacity would cut."""

    divisor: float
    limit: int
    """chunks that it has room for"""
    cut_windows: float
    """share of the windows that lose boundaries"""
    cut_boundaries: float
    """share of the boundaries that are lost"""


@dataclass(frozen=True)
class Flips:
    """What differs between two readings of the same windows: tokens at which a chunk begins in one of them only."""

    flips: int
    appeared: int
    """those that only the later reading has"""
    per_window: float
    per_position: float | None
    per_boundary: float | None


@dataclass(frozen=True)
class DistanceFlips:
    """What differs at some distance behind the start of the later window."""

    from_: int
    """least distance in tokens"""
    to: int
    positions: int
    flips: int
    per_position: float | None


@dataclass(frozen=True)
class ShiftFlips(Flips):
    """What moves if the windows begin later."""

    by: int
    """tokens"""
    distances: list[DistanceFlips]


@dataclass(frozen=True)
class WeightFlips(Flips):
    """What moves against the float weights."""

    weights: str


@dataclass(frozen=True)
class Room:
    """How many boundaries a level proposes, and the room for them."""

    mean: float
    """boundaries per window, as std, least, median and most"""
    std: float
    least: int
    median: float
    most: int
    limit: int | None
    """chunks that there is room for; null: all"""
    cut_windows: float
    """share of the windows that lose boundaries to the limit"""
    cut_boundaries: float
    """share of the boundaries"""
    counts: list[tuple[int, int]]
    """pairs: boundaries, windows that have so many"""
    divisors: list[CapacityCost]
    """other fixed capacities"""


@dataclass(frozen=True)
class StabilityLevel(Room):
    """How firmly the boundaries of a level stand."""

    shift: ShiftFlips
    weights: list[WeightFlips]


@dataclass(frozen=True)
class Stability:
    """What moves a model's boundaries."""

    windows: int
    length: int
    """tokens per window"""
    checkpoint: int | None
    """step of the float weights; null for an artifact file, which has none"""
    receptive_field: int | None
    """tokens before its own that decide an outermost boundary; null: all"""
    levels: list[StabilityLevel]
    """outermost first"""
