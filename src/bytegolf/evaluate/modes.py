"""How a text is scored: the length and stride of windows, room for chunks, how far attention sees, test-time training.

A sliding window forgets what lies more than its length back. In one pass attention does that by itself: a stage that
attends to everything sees as many of its own positions (bytes, chunks, chunks of chunks) as it does in a window, on
average over the targets that a window scores. That is not the same: a chunk here counts what it sees from itself and
not from a window's start, and what earlier layers made of its past has seen further back than a window begins. How far
the two are apart is measured, not proved (LOG.md: less than 1e-4 bits per byte).

Legend: N tokens, T targets, V alphabet, L tokens of a window, S of them scored.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from bytegolf.bpb import Score
from bytegolf.config import CapacityMode, Config, MixConfig, TttConfig
from bytegolf.data.dataset import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.mixing import Mixing, Watch, mixable, opens
from bytegolf.evaluate.score import Book, Observer, Window, score, targets_of, windows, windows_at_once
from bytegolf.evaluate.ttt import Pace, score_adapting
from bytegolf.mixing.mixer import Mixer
from bytegolf.mixing.primer import Primer
from bytegolf.model.hnet import HNet
from bytegolf.model.lm import Forward, LanguageModel
from bytegolf.model.stack import Stack
from bytegolf.model.trace import RouterTrace

# ----------------------------------------------------------------------------------------- one pass for sliding windows


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


# ---------------------------------------------------------------------------------------------------------------- modes


MIXED_CHUNK = 256
"""Tokens between updates of test-time training beside mixing, unless told otherwise."""


class MemoryStream(TokenStream):
    """A stream of tokens that are in memory."""

    def __init__(self, tokens: Int[np.ndarray, " N"]) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def slice(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Tokens ``start`` to ``stop`` (exclusive)."""
        return self._tokens[start:stop].astype(np.uint16)


@dataclass(frozen=True)
class ScoringMode:
    """One way to score a text. The default is plain: windows that do not overlap, everything else as the model is."""

    seq_len: int
    """tokens per window"""
    stride: int = 0
    """new tokens per window; 0: windows do not overlap"""
    capacity: CapacityMode | Literal[""] = ""
    """the room for chunks at every level; empty: as the model is set"""
    capacity_divisor: float = 0.0
    """of a fixed capacity; 0: as the model is set"""
    ttt: TttConfig = TttConfig()
    """test-time training"""
    mix: MixConfig = MixConfig()
    """mixing with context models"""
    primer: Primer | None = field(default=None, compare=False)
    """what these read first; the artifact's"""
    receptive_field: tuple[int, ...] = ()
    """positions that attention to everything sees, per network from the outermost inwards; empty: everything"""
    batch: int = 0
    """windows at a time; 0: as many as are sensible"""
    tail: Literal["auto", "drop", "score"] = "auto"
    """what becomes of the targets behind the last full stride: auto drops them in plain windows, as published"""

    @staticmethod
    def configured(config: Config, primer: Primer | None = None) -> ScoringMode:
        """The mode in which ``config`` has its artifact scored, which carries ``primer``. Its capacity is the model's
        since it was loaded.
        """
        settings = config.eval
        windows = ScoringMode(config.train.seq_len, settings.stride, batch=settings.batch)
        return dataclasses.replace(windows, ttt=settings.ttt, mix=settings.mix, primer=primer)

    def in_one_pass(self, model: LanguageModel, stream: TokenStream, limit: int = 0) -> tuple[ScoringMode, OnePass]:
        """Long windows that stand for this mode's overlapping ones (``one_pass``), and how they were found.

        Raises BytegolfError where one pass cannot stand for this mode.
        """
        with model.capacity(self.capacity, self.capacity_divisor):
            once = one_pass(model, stream, self.seq_len, self.stride, limit)
        return dataclasses.replace(
            self, seq_len=once.length, stride=once.stride, receptive_field=once.receptive_field
        ), once

    @property
    def adapts(self) -> bool:
        """Whether the model learns at test time."""
        return self.ttt.mode != "off"

    @property
    def learning(self) -> TttConfig:
        """Test-time training with its chunk: what a long one would teach, mixing has learned before it is over."""
        if self.ttt.chunk or not self.mix.on:
            return self.ttt
        return dataclasses.replace(self.ttt, chunk=min(self.seq_len, max(MIXED_CHUNK, self.stride)))

    @property
    def in_order(self) -> bool:
        """Whether what is learned from a target counts for those behind it, so that processes cannot share the text."""
        return self.adapts or self.mix.on

    @property
    def drops_tail(self) -> bool:
        """Whether targets that fill no whole stride are left out."""
        if self.tail == "auto":
            return not self.adapts and not 0 < self.stride < self.seq_len
        return self.tail == "drop"

    def check(self, stream: TokenStream, tokenizer: Tokenizer, limit: int = 0) -> None:
        """Raise BytegolfError where a score of ``stream`` would: asked before training, and not hours later."""
        if self.mix.on:
            mixable(tokenizer)
        stride = Pace.of(self.seq_len, self.stride, self.learning.chunk).stride if self.adapts else self.stride
        windows(targets_of(len(stream), self.seq_len, limit), self.seq_len, stride)

    def prepare(self) -> None:
        """Do what can be done before a text is opened: read the primer, if one score reads one text at a time.

        An audit tries hundreds of texts, and goes back to where a script opens one.
        """
        if self.mix.on and self.mix.primer and self.primer and not (self.adapts and self.ttt.reset == "document"):
            Mixer.prepare(self.primer, self.mix)

    def score(
        self,
        model: LanguageModel,
        stream: TokenStream,
        tokenizer: Tokenizer,
        *,
        limit: int = 0,
        observer: Callable[[], Observer] | None = None,
        book: Book | None = None,
        progress: Callable[[Score], None] | None = None,
        world: DistributedContext = SINGLE_PROCESS,
        watch: Watch | None = None,
    ) -> Score:
        """The score of ``stream``; ``limit``, ``book`` and ``progress`` are those of ``evaluate.score.score``.

        ``observer`` makes an observer per document in test-time training, and one for all otherwise. The processes of
        ``world`` share the windows, except in test-time training and mixing, which read in order. ``watch`` is
        shown the mixed distributions, which takes many times as long.

        Raises BytegolfError if the mode asks for what the model or the text does not have.
        """
        if self.adapts and self.tail == "drop":
            raise BytegolfError(
                "test-time training reads every document to its end, so no tail can be dropped: leave it out"
            )
        with model.capacity(self.capacity, self.capacity_divisor), with_receptive_field(model, self.receptive_field):
            if self.capacity_divisor and not any(level.capacity.mode == "fixed" for level in model.levels()):
                raise BytegolfError(
                    "a capacity divisor belongs to a fixed capacity, which no level has: choose fixed too"
                )

            def mixing(rows: int) -> Mixing:
                return Mixing(self.mix, tokenizer, len(stream), model.config.softcap, rows, watch, self.primer)

            if self.adapts:
                return score_adapting(
                    model,
                    stream,
                    tokenizer,
                    self.seq_len,
                    self.learning,
                    stride=self.stride,
                    limit=limit,
                    observer=observer,
                    book=book,
                    progress=progress,
                    mixing=mixing if self.mix.on else None,
                )
            return score(
                model,
                stream,
                tokenizer,
                self.seq_len,
                stride=self.stride,
                drop_tail=self.drops_tail,
                batch=self.batch,
                limit=limit,
                observe=observer() if observer else None,
                book=book,
                progress=progress,
                world=world,
                mixing=mixing(1) if self.mix.on else None,
            )

    def target_logits(
        self, model: LanguageModel, tokens: Int[np.ndarray, " N"], tokenizer: Tokenizer
    ) -> Float[Tensor, "T V"]:
        """What stands for the distribution of each target of ``tokens``, whose windows must come out even: the
        softcapped logits that its loss is made of, or the logarithms of its mixed probabilities.
        """
        seen: list[Tensor] = []
        stream = MemoryStream(tokens)
        if self.mix.on:
            self.score(model, stream, tokenizer, watch=lambda found: seen.append(torch.from_numpy(np.log(found))))
        else:
            self.score_shown(model, stream, tokenizer, lambda logits, _: seen.append(model.cap(logits)))
        return torch.cat(seen)

    def score_shown(
        self,
        model: LanguageModel,
        stream: TokenStream,
        tokenizer: Tokenizer,
        see: Callable[[Float[Tensor, "n V"], Bool[np.ndarray, " n"]], None],
    ) -> Score:
        """``score``, in which ``see`` gets what the model said of each window's n targets, in the order of the text:
        its logits, and whether a chunk opens at the token before each target.

        Windows are read ahead of their scores where these are mixed, so what the model said waits for its window: batch
        after batch, and in a batch row after row.
        """
        waiting: deque[Forward] = deque()
        batch: list[Forward] = []

        def observe(window: Window, tokens: NDArray[np.int64], traces: list[RouterTrace], row: int) -> None:
            if row == 0:
                batch[:] = [waiting.popleft()]
            (out,), counted = batch, window.scored - window.blank
            opened = opens(traces, len(out.logits), window.scored)[row]
            see(out.logits[row, -window.scored :][:counted].cpu(), opened[:counted])

        with watched(model, waiting.append):
            return self.score(model, stream, tokenizer, observer=lambda: observe)

    def fitting(self, most: int, windows: int = 3) -> int:
        """How many of ``most`` tokens to take, so that up to ``windows`` windows of them come out even."""
        # seq_len 8 and stride 4: 17 tokens are 16 targets in windows at 0, 4 and 8; of 20 tokens as many are taken
        step = self.stride or self.seq_len
        return self.seq_len + 1 + step * max(0, min(windows - 1, (most - 1 - self.seq_len) // step))


@contextlib.contextmanager
def watched(model: LanguageModel, see: Callable[[Forward], None]) -> Iterator[None]:
    """Within the context ``see`` gets what ``model.losses`` is asked about, except while the model learns."""

    def watching(out: Forward) -> None:
        if not torch.is_grad_enabled():
            see(out)

    model.observers.append(watching)
    try:
        yield
    finally:
        model.observers.remove(watching)
