"""What an evaluation reports, as types: plain Python, so that a verb's help can be made from them at once."""

from __future__ import annotations

from dataclasses import dataclass

from bytegolf.config import CapacityMode


@dataclass(frozen=True)
class BoundaryFigures:
    """How boundaries lie in a text (``evaluate.boundaries`` has the convention); None where there is no data."""

    windows: int
    bytes: int
    boundaries: int
    """chosen by the router"""
    chunks: int
    """complete ones"""
    rate: float | None
    """boundaries per position"""
    boundaries_per_256: float | None
    """per 256 positions: bytes, or tokens of a subword model"""
    whitespace_agreement: float | None
    """share of the boundaries that touch whitespace"""
    random_agreement: float | None
    """the same by chance, as every random_…"""
    whitespace_behind: float | None
    random_behind: float | None
    whitespace_at: float | None
    random_at: float | None
    mean_chunk_bytes: float | None
    cv: float | None
    """coefficient of variation of the chunks' lengths"""
    utf8_splits: float | None
    """share of the boundaries inside a UTF-8 character"""
    random_utf8_splits: float | None


@dataclass(frozen=True)
class Truncation:
    """What the capacity of one level cost in the windows of a score."""

    capacity: CapacityMode
    divisor: float | None
    """null unless the capacity is fixed"""
    windows: int
    truncated_boundaries: int
    """boundaries for which there was no room"""
    truncated_windows: int
    """windows that had any"""


@dataclass(frozen=True)
class Check:
    """The outcome of one experiment of ``evaluate.verification``."""

    name: str
    passed: bool
    evidence: str
