"""How chunk boundaries lie in a text, in particular beside its words: counts and ratios over windows of bytes. And what
the routers of a score did in its windows, from which these are made, and what a fixed capacity cut.

The convention, on which every figure rests:

- A boundary *at* byte t means that byte t starts a chunk.
- Byte 0 of a window is a boundary by architecture (p_0 = 1, PR #1104). It starts a chunk, but no router chose it. So
  it is not counted as a boundary, nor as a *position*: a byte at which a boundary could have been chosen.
- Whitespace is ASCII: space, \\t, \\n, \\r, \\v, \\f.
- A boundary lies *behind* whitespace if byte t-1 is whitespace ("the |cat": a word with its trailing space is a
  chunk), *at* whitespace if byte t is ("the| cat": with its leading space), and *touches* whitespace if either holds,
  so that both styles score alike. Between two spaces, both hold.
- *Chance* is the share of the positions that have a property. Boundaries placed at random show that share whatever
  their rate: each of them lands on a position that is drawn uniformly.

A worked example, one window of 11 bytes with the boundaries 0, 4 and 9:

    byte        0 1 2 3 4 5 6 7 8 9 10
    text        t h e _ c a t _ s a t       (_ is a space)
    boundary    x       x         x
    touches           1 1     1 1           bytes 3, 7 are spaces; bytes 4, 8 follow one

Byte 0 does not count, so there are 2 boundaries at 10 positions: the rate is 0.2. The boundary at 4 touches whitespace,
the one at 9 does not: whitespace agreement 1/2. Of the 10 positions 4 touch whitespace: chance has 0.4. The one chunk
that is complete for certain is "cat_s" (4 … 8); the window's edges cut those around it.

Boundaries per 256, whitespace agreement and the CV of chunk lengths are those of PR #1104 (S2).

Legend: T tokens of a window.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Integer
from numpy.typing import NDArray

from bytegolf.data.tokenizer import WHITESPACE, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.results import BoundaryFigures, Truncation
from bytegolf.evaluate.score import Observer, Window
from bytegolf.model.lm import LanguageModel
from bytegolf.model.trace import RouterTrace

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass
class BoundaryStats:
    """Counts over the windows given to :meth:`add`; :meth:`figures` makes ratios of them."""

    windows: int = 0
    bytes: int = 0
    positions: int = 0
    """bytes at which a boundary could have been chosen"""
    boundaries: int = 0
    """how many of them were"""
    positions_with: Counter[str] = field(default_factory=Counter)
    """positions that have each of the properties behind, at, touching (whitespace) and splitting (a character)"""
    boundaries_with: Counter[str] = field(default_factory=Counter)
    """boundaries that have it"""
    lengths: Counter[int] = field(default_factory=Counter)
    """how many complete chunks there are of each length in bytes"""

    def add(self, window: Bytes, boundaries: Mask, *, candidates: Mask | None = None, whole: bool = False) -> None:
        """Count one window.

        Args:
            window: n bytes, uint8.
            boundaries: n booleans; true where a byte starts a chunk. The first one's value is ignored.
            candidates: n booleans; true where a boundary could be chosen (None: everywhere). They are fewer for a
                model over subwords (the starts of tokens) and where the architecture forces a boundary. A boundary
                elsewhere ends a chunk, but is not counted.
            whole: the window is a text from its beginning to its end, so its first and last chunk are complete.
                Otherwise they are left out of the chunk lengths, since the window's edges may have cut them.

        Raises TypeError for another dtype, ValueError unless the arrays have one common length.
        """
        candidates = np.ones(len(window), np.bool_) if candidates is None else candidates
        if window.dtype != np.uint8 or boundaries.dtype != np.bool_ or candidates.dtype != np.bool_:
            raise TypeError("a window must be uint8, its boundaries and candidates bool")
        if window.ndim != 1 or not window.shape == boundaries.shape == candidates.shape:
            shapes = f"window {window.shape}, boundaries {boundaries.shape} and candidates {candidates.shape}"
            raise ValueError(f"{shapes} must have one common length")
        if len(window) == 0:
            return
        free = candidates.copy()
        free[0] = False
        chosen = boundaries & free
        white = is_whitespace(window)
        follows = np.concatenate(([False], white[:-1]))
        self.windows += 1
        self.bytes += len(window)
        self.positions += int(free.sum())
        self.boundaries += int(chosen.sum())
        has = {"behind": follows, "at": white, "touching": follows | white, "splitting": is_continuation(window)}
        for name, having in has.items():
            self.positions_with[name] += int((free & having).sum())
            self.boundaries_with[name] += int((chosen & having).sum())
        edges = np.flatnonzero(boundaries[1:]) + 1
        if whole:
            edges = np.concatenate([[0], edges, [len(window)]])
        self.lengths.update(np.diff(edges).tolist())

    def __add__(self, other: BoundaryStats) -> BoundaryStats:
        """The counts of both."""
        return BoundaryStats(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def figures(self) -> BoundaryFigures:
        """The ratios; None where there is nothing to divide by."""

        def share(name: str) -> float | None:
            return ratio(self.boundaries_with[name], self.boundaries)

        def chance(name: str) -> float | None:
            return ratio(self.positions_with[name], self.positions)

        rate, chunks = ratio(self.boundaries, self.positions), self.lengths.total()
        size = sum(length * count for length, count in self.lengths.items())
        # CV = standard deviation / mean = √(n·Σ length² − (Σ length)²) / Σ length: integers until the root, so that
        # nothing cancels. 0 for a fixed stride, near 1 for boundaries placed at random.
        squares = sum(length**2 * count for length, count in self.lengths.items())
        return BoundaryFigures(
            windows=self.windows,
            bytes=self.bytes,
            boundaries=self.boundaries,
            chunks=chunks,
            rate=rate,
            boundaries_per_256=None if rate is None else 256 * rate,
            whitespace_agreement=share("touching"),
            random_agreement=chance("touching"),
            whitespace_behind=share("behind"),
            random_behind=chance("behind"),
            whitespace_at=share("at"),
            random_at=chance("at"),
            mean_chunk_bytes=ratio(size, chunks),
            cv=ratio(math.sqrt(chunks * squares - size**2), size),
            utf8_splits=share("splitting"),
            random_utf8_splits=chance("splitting"),
        )


def is_whitespace(window: Bytes) -> Mask:
    """Which bytes are ASCII whitespace."""
    return np.isin(window, np.frombuffer(WHITESPACE, np.uint8))


def touching_whitespace(window: Bytes) -> Mask:
    """At which bytes t a boundary would touch whitespace: t or t-1 is whitespace."""
    white = is_whitespace(window)
    white[1:] |= white[:-1].copy()
    return white


def is_continuation(window: Bytes) -> Mask:
    """Which bytes are a later byte of a UTF-8 character."""
    inside: Mask = (window & 0xC0) == 0x80
    return inside


def token_boundaries_to_bytes(
    token_bytes: Sequence[int] | NDArray[np.integer], boundaries: Sequence[bool] | Mask
) -> Mask:
    """Boundaries between tokens as boundaries between bytes: where the first byte of each chosen token lies.

    A token of no bytes (BOS and other special tokens) passes its boundary on to the next byte; at the end of the text
    there is no such byte, and the boundary is dropped. With all tokens chosen: the ``candidates`` of
    :meth:`BoundaryStats.add`.

    >>> token_boundaries_to_bytes([0, 3, 1, 2], [True, False, False, True]).tolist()
    [True, False, False, False, True, False]

    Args:
        token_bytes: the number of bytes of each token, ≥ 0.
        boundaries: for each token, whether it starts a chunk.

    Raises ValueError if the two differ in length.
    """
    sizes, chosen = np.asarray(token_bytes, np.int64), np.asarray(boundaries, np.bool_)
    if sizes.shape != chosen.shape:
        raise ValueError(f"{sizes.shape} token sizes and {chosen.shape} boundaries: give one of each per token")
    starts = (np.cumsum(sizes) - sizes)[chosen]
    mask = np.zeros(int(sizes.sum()), np.bool_)
    mask[starts[starts < len(mask)]] = True
    return mask


def ratio(part: float, whole: float) -> float | None:
    """A share or a mean; None where there is nothing to divide by."""
    return part / whole if whole else None


# ---------------------------------------------------------------------------------------------- what routers did


class LevelCuts(NamedTuple):
    """What the router of one level did in a window, at positions of the outermost sequence."""

    p: Float32[np.ndarray, " T"]
    """probability of a boundary; NaN where the level has no position"""
    boundary: Bool[np.ndarray, " T"]
    """whether a chunk of the level starts"""


def token_levels(traces: list[RouterTrace], row: int) -> list[LevelCuts]:
    """What each level did in a row of a batch, outermost first.

    An inner level sees one position per chunk of the level around it, and an inner chunk starts where the first of its
    outer chunks does. With outer boundaries at tokens 0, 3 and 7, inner boundaries at the inner positions 0 and 2 lie
    at tokens 0 and 7, and the inner level's p is NaN but at tokens 0, 3 and 7.
    """
    found: list[LevelCuts] = []
    places = np.arange(traces[0].boundary.shape[1]) if traces else np.zeros(0, np.int64)
    length = len(places)
    for trace in traces:
        p, mask = np.full(length, np.nan, np.float32), np.zeros(length, np.bool_)
        p[places] = trace.p[row].float().cpu().numpy()[: len(places)]  # what lies beyond is padding
        mask[places] = trace.boundary[row].cpu().numpy()[: len(places)]
        found.append(LevelCuts(p, mask))
        places = np.flatnonzero(mask)
    return found


def free_tokens(sizes: Integer[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    """At which tokens of a window a router can choose to cut its bytes, given the number of bytes of each token.

    Not at the first, nor behind a token of no bytes (BOS), where a text begins in any case.
    """
    free: NDArray[np.bool_] = sizes > 0
    free[1:] &= sizes[:-1] > 0
    free[:1] = False
    return free


def check_level(levels: int, level: int) -> None:
    """Raise BytegolfError unless a model with that many chunking levels has this one."""
    if not levels:
        raise BytegolfError("this is a flat model: it has no router, so there are no chunks to show")
    if not 0 <= level < levels:
        raise BytegolfError(f"this model has chunking levels 0 to {levels - 1}, not {level}")


def collector(stats: BoundaryStats, tokenizer: Tokenizer) -> Observer:
    """An observer for ``evaluate.score.score`` that adds the outermost chunks of the windows it is shown to ``stats``.

    Where windows overlap, it takes a window only if the last one that it took ends before: a byte counts once at most.
    """
    covered = 0

    def observe(window: Window, tokens: NDArray[np.int64], traces: list[RouterTrace], row: int) -> None:
        nonlocal covered
        if window.start < covered:
            return
        covered = window.start + window.length
        p, mask = token_levels(traces, row)[0]
        # the window's first token has no byte before it here: its leading space, if any, belongs to it all the same
        previous = np.concatenate(([tokenizer.BOS], tokens[: window.length - 1]))
        inputs = tokens[: window.length]
        data = tokenizer.decode(inputs)
        sizes = tokenizer.byte_counts(inputs, previous)
        stats.add(
            np.frombuffer(data, np.uint8),
            token_boundaries_to_bytes(sizes, mask),
            candidates=token_boundaries_to_bytes(sizes, free_tokens(sizes) & np.isfinite(p)),
        )

    return observe


class TruncationStats:
    """Counts, per level, windows and the boundaries in them for which a fixed capacity had no room."""

    def __init__(self, model: LanguageModel) -> None:
        """Count for ``model`` with the capacities that it has now."""
        self.windows = 0
        self._capacities = [level.capacity for level in model.levels()]
        self._boundaries = [0] * len(self._capacities)
        self._cut = [0] * len(self._capacities)

    def add(self, traces: list[RouterTrace], row: int) -> None:
        """Take in the window that is ``row`` of a batch."""
        self.windows += 1
        for level, trace in enumerate(traces):
            lost = int(trace.truncated()[row])
            self._boundaries[level] += lost
            self._cut[level] += lost > 0

    def absorb(self, other: TruncationStats) -> None:
        """Take in what ``other`` counted in windows of its own, with the same capacities."""
        self.windows += other.windows
        for level, (lost, cut) in enumerate(zip(other._boundaries, other._cut, strict=True)):
            self._boundaries[level] += lost
            self._cut[level] += cut

    def figures(self) -> list[Truncation]:
        """The counts, level by level, outermost first."""
        return [
            Truncation(one.mode, one.divisor if one.mode == "fixed" else None, self.windows, boundaries, cut)
            for one, boundaries, cut in zip(self._capacities, self._boundaries, self._cut, strict=True)
        ]
