"""One pass over a text instead of sliding windows: nearly their BPB, for little more work than windows without overlap.

A sliding window forgets what lies more than its length back. In one pass attention does that by itself: a stage that
attends to everything sees as many of its own positions (bytes, chunks, chunks of chunks) as it does in a window, on
average over the targets that a window scores. That is not the same: a chunk here counts what it sees from itself and
not from a window's start, and what earlier layers made of its past has seen further back than a window begins. How far
the two are apart is measured, not proved (LOG.md: less than 1e-4 bits per byte).

Legend: L tokens of a window, S of them scored, N windows that are looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bytegolf.data.shards import TokenStream
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.score import windows_at_once
from bytegolf.evaluate.windows import targets_of, windows
from bytegolf.model.hnet import HNet
from bytegolf.model.lm import LanguageModel
from bytegolf.model.stack import Stack

SAMPLES = 64
"""Windows whose chunks are counted: 1/√64 of how much their number differs from one to the next is the mean's error."""
WINDOWS = 16
"""What is read at a time, in windows …"""
CONTEXT = 2
"""… and how much of that only for what comes behind it: past two windows back there is hardly anything."""


@dataclass(frozen=True)
class OnePass:
    """How to read a text in one pass: long windows that stand for others."""

    stands_for: tuple[int, int]
    """L and S of those others"""
    length: int
    """tokens that are read at a time"""
    stride: int
    """how many of them are new"""
    receptive_field: tuple[int, ...]
    """positions that attention to everything sees: of the outermost network, of the next, … of the innermost"""


def one_pass(model: LanguageModel, stream: TokenStream, seq_len: int, stride: int, limit: int = 0) -> OnePass:
    """What stands for windows of ``seq_len`` (L) tokens that score ``stride`` (S) each, by the chunks in windows of
    ``stream``. A scored target has L − S + 1 to L tokens to go by, itself included: L − ⌊S/2⌋ in the middle.
    ``limit`` > 0: only so many targets are going to be scored.

    Raises BytegolfError where there is nothing to stand for: windows without overlap, chunks that compete for the room
    of their window (a fixed capacity), a text shorter than a window.
    """
    if not 0 < stride < seq_len:
        raise BytegolfError(
            f"one pass stands for windows that overlap, and a stride of {stride} in windows of {seq_len} makes none: "
            f"give one between 1 and {seq_len - 1} (--stride of eval)"
        )
    if any(level.capacity.mode == "fixed" for level in model.levels()):
        raise BytegolfError(
            "one pass cannot stand for windows whose chunks have a fixed capacity: choose exact, or score windows"
        )
    targets = targets_of(len(stream), seq_len, limit)
    windows(targets, seq_len, stride)  # raises if they do not fit
    # For L = 1,024: 16,384 tokens are read at a time, of which 14,336 are new; of a text
    # too short for that, the stride.
    length = min(WINDOWS * seq_len, targets)
    step = max(stride, length - CONTEXT * seq_len)
    return OnePass((seq_len, stride), length, step, _receptive_field(model, stream, seq_len - stride // 2))


@torch.inference_mode()
def _receptive_field(model: LanguageModel, stream: TokenStream, length: int) -> tuple[int, ...]:
    """The mean number of positions that each network, outermost first, has in ``length`` tokens of ``stream``."""
    levels = len(model.levels())
    if not levels:
        return (length,)
    # a short text has fewer places than samples: each counts once
    starts = np.unique(np.linspace(0, len(stream) - length, SAMPLES).astype(np.int64))
    counts = np.zeros(levels)
    device, size = model.embedding.weight.device, windows_at_once(model, length)
    for some in np.split(starts, range(size, len(starts), size)):
        tokens = np.stack([stream.slice(int(start), int(start) + length) for start in some]).astype(np.int64)
        traces = model(torch.from_numpy(tokens).to(device)).traces
        counts += [int(trace.boundary.sum()) for trace in traces]
    return (length, *(max(1, round(count / len(starts))) for count in counts))


@contextlib.contextmanager
def with_receptive_field(model: LanguageModel, sizes: Sequence[int]) -> Iterator[None]:
    """For as long as the context lasts, stacks of ``model`` that see everything see the last ``sizes`` of their own
    positions instead: one number for each network, outermost first (bytes, then chunks, …), one for all of them, or
    none, which changes nothing; 0 is everything.

    Raises BytegolfError for another number of numbers.
    """
    found = list(_stacks(model.network, 0))
    depths = 1 + len(model.levels())
    if len(sizes) not in (0, 1, depths):
        raise BytegolfError(
            f"a receptive field of {len(sizes)} numbers for {depths} networks inside each other: give one each"
        )
    each = tuple(sizes or (0,)) * (1 if len(sizes) == depths else depths)
    changed = [(stack, each[depth]) for depth, stack in found if stack.receptive_field is None and each[depth]]
    for stack, window in changed:  # only those that saw everything: a local stack keeps its own window
        stack.see(window)
    try:
        yield
    finally:
        for stack, _ in changed:
            stack.see(0)


def _stacks(network: Stack | HNet, depth: int) -> Iterator[tuple[int, Stack]]:
    """Every stack of ``network`` and how many levels are around its positions."""
    if isinstance(network, Stack):
        yield depth, network
        return
    yield depth, network.encoder
    yield depth, network.decoder
    yield from _stacks(network.main, depth + 1)
