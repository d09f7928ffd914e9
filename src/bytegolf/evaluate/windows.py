"""The evaluation windows over a token stream: which tokens each one reads and which it scores.

A stream of n tokens has n − 1 targets: token i + 1 is target i, predicted from token i and those before it. A window
at ``start`` reads tokens start … start + length − 1 and can score targets start … start + length − 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bytegolf.errors import BytegolfError


@dataclass(frozen=True)
class Window:
    """One forward pass of evaluation."""

    start: int
    """first token that it reads"""
    length: int
    """tokens that it reads"""
    scored: int
    """how many of its targets are scored: the last ones"""
    blank: int = 0
    """how many of those lie behind the text's end: padding, which counts for nothing"""


def windows(targets: int, seq_len: int, stride: int = 0, drop_tail: bool = False) -> Iterator[Window]:
    """Windows that score each of ``targets`` targets exactly once, in order.

    The first window scores all of its targets; each later one moves on by ``stride`` (0: by ``seq_len``, so that none
    overlap) and scores the new ones. The last window ends with the stream and scores just what is left, whereas
    ``drop_tail`` leaves out what does not fill a whole stride, as the public scripts do without overlap (formats.md).

    Raises BytegolfError if the stream is shorter than one window or the stride does not fit.
    """
    if not 0 <= stride <= seq_len:
        raise BytegolfError(
            f"stride {stride} must lie between 1 and the sequence length {seq_len}, or be 0 for windows without overlap"
        )
    if targets < seq_len:
        raise BytegolfError(
            f"the split has {max(0, targets)} tokens to score, fewer than one sequence of {seq_len}: "
            "use a larger split or shorter windows (train.seq_len, or --length of eval)"
        )
    return _windows(targets, seq_len, stride or seq_len, drop_tail)  # a generator: it would raise only when asked


def targets_of(tokens: int, seq_len: int, limit: int = 0) -> int:
    """How many targets of a stream of ``tokens`` are scored: all, or ``limit`` > 0 of them, but a window's at least."""
    return min(tokens - 1, max(seq_len, limit)) if limit else tokens - 1


def _windows(targets: int, seq_len: int, stride: int, drop_tail: bool) -> Iterator[Window]:
    yield Window(0, seq_len, seq_len)
    done = seq_len
    while done + stride <= targets:
        done += stride
        yield Window(done - seq_len, seq_len, stride)
    if done < targets and not drop_tail:
        yield Window(targets - seq_len, seq_len, targets - done)
