"""What routers did in the windows of a score: statistics of their boundaries, and what a fixed capacity cut.

Legend: T tokens of a window.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Integer
from numpy.typing import NDArray

from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.boundaries import BoundaryStats, token_boundaries_to_bytes
from bytegolf.evaluate.results import Truncation
from bytegolf.evaluate.score import Observer
from bytegolf.evaluate.windows import Window
from bytegolf.model.lm import LanguageModel
from bytegolf.model.trace import RouterTrace


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


def collector(stats: BoundaryStats, tokenizer: Tokenizer, level: int = 0) -> Observer:
    """An observer for ``evaluate.score.score`` that adds the windows that it is shown to ``stats``.

    Where windows overlap, it takes a window only if the last one that it took ends before: a byte counts once at most.
    """
    covered = 0

    def observe(window: Window, tokens: NDArray[np.int64], traces: list[RouterTrace], row: int) -> None:
        nonlocal covered
        if window.start < covered:
            return
        covered = window.start + window.length
        check_level(len(traces), level)
        p, mask = token_levels(traces, row)[level]
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
