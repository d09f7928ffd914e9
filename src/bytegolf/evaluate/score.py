"""Bits per byte: the only place that computes it.

BPB = Σ nats / ln 2 / Σ bytes, over the scored tokens: nats summed in float64, bytes as integers from the tokenizer's
exact count of each token (formats.md; 0 for special tokens, whose loss still counts).

A stream of n tokens has n − 1 targets: token i + 1 is target i, predicted from token i and those before it. A window
at ``start`` reads tokens start … start + length − 1 and can score targets start … start + length − 1.

Legend: B windows of a batch, L tokens of a window.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int, UInt32
from numpy.typing import NDArray

from bytegolf.bpb import Score
from bytegolf.config import StackConfig
from bytegolf.data.dataset import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.mixing import Mixing
from bytegolf.evaluate.sliding import last_losses
from bytegolf.model.lm import LanguageModel
from bytegolf.model.trace import RouterTrace

# -------------------------------------------------------------------------------------------------------------- windows


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

    Example: 9 targets in windows of 4 with a stride of 2. Each line is a window; ``=`` are the targets that it scores,
    ``-`` what it only reads::

        target  0 1 2 3 4 5 6 7 8
                = = = =                 start 0, scored 4
                    - - = =             start 2, scored 2
                        - - = =         start 4, scored 2
                          - - - =       start 5, scored 1: the tail, which ``drop_tail`` leaves out

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


# --------------------------------------------------------------------------------------------------------------- scores


AHEAD = 6
"""Batches that wait for a thread of the model's, or for mixing, beside those that are worked on."""

Observer = Callable[[Window, NDArray[np.int64], list[RouterTrace], int], None]
"""Called with a window, its tokens (L + 1,), what the routers did in its batch, and the window's row there."""

Book = Callable[[Window, NDArray[np.float64], NDArray[np.int64]], None]
"""Called with a window, and the nats and bytes of each of its scored targets (scored − blank,), once they are final."""


def score(
    model: LanguageModel,
    stream: TokenStream,
    tokenizer: Tokenizer,
    seq_len: int,
    *,
    stride: int = 0,
    drop_tail: bool = False,
    batch: int = 0,
    limit: int = 0,
    share: bool = True,
    observe: Observer | None = None,
    book: Book | None = None,
    progress: Callable[[Score], None] | None = None,
    world: DistributedContext = SINGLE_PROCESS,
    mixing: Mixing | None = None,
) -> Score:
    """Score ``stream`` with ``model`` in windows of ``seq_len`` tokens; each target counts exactly once.

    ``stride`` and ``drop_tail``: see ``windows``. ``limit`` > 0 stops after that many targets (a subset: say so where
    it is reported), but not before a first window. ``batch`` windows are worked out at a time; 0 = as many as
    ``windows_at_once`` says. ``progress`` gets the running score after each batch.

    Windows that overlap share what they have in common (``evaluate.sliding``): the losses are those of a full forward
    pass of each window, up to rounding. ``share`` False makes those passes, as the reference that this is tested
    against.

    With ``mixing`` the targets cost what it says. It works on a thread of its own while the model reads on, since what
    the model says depends on nothing that mixing learns. It reads in order, so each process of ``world`` does it all.
    On a CPU each of torch's threads then reads batches of its own (``_Readers``).

    The processes of ``world`` share the work: each does every so many-th batch, and the batches' scores are put
    together again, by turns. Every process then has the sum that one alone would have had, to the bit.

    Raises BytegolfError if the stream is shorter than a window, or the loss is not finite.
    """
    if batch < 0 or limit < 0:
        raise BytegolfError(f"cannot score {limit} tokens in batches of {batch}: give a batch and a limit of 0 or more")
    plan = windows(targets_of(len(stream), seq_len, limit), seq_len, stride, drop_tail)
    batch = batch or windows_at_once(model, seq_len)
    if mixing:
        world = SINGLE_PROCESS
    scores: list[Score] = []
    total = Score()
    training = model.training
    model.eval()

    def take(found: Score) -> None:
        nonlocal total
        scores.append(found)
        total += found
        if progress:
            progress(total)

    try:
        with ThreadPoolExecutor(1) as thread, _Readers(model if mixing else None) as readers:
            waiting: deque[Future[Score]] = deque()
            if mixing:
                thread.submit(mixing.prepare)
            try:
                for chunk in itertools.islice(groups(plan, batch), world.rank, None, world.size):
                    tokens = np.stack([stream.slice(w.start, w.start + w.length + 1) for w in chunk]).astype(np.int64)
                    if mixing is None:
                        take(score_group(tokenizer, read_group(model, chunk, tokens, share), observe, book))
                        continue
                    if len(waiting) == AHEAD + readers.count:
                        take(waiting.popleft().result())
                    read = readers.start(model, chunk, tokens, share, mixing)
                    waiting.append(
                        thread.submit(lambda r: score_group(tokenizer, r.result(), observe, book, mixing), read)
                    )
                while waiting:
                    take(waiting.popleft().result())
            finally:  # nothing waits any more, unless something went wrong
                for left in waiting:
                    left.cancel()
    finally:
        model.train(training)
    return sum(world.collect(scores), Score())


def groups(plan: Iterator[Window], batch: int) -> Iterator[list[Window]]:
    """Windows in batches; those of a batch score as many targets each and follow each other by as much."""
    group: list[Window] = []
    for window in plan:
        if group and (
            len(group) == batch or window.scored != group[-1].scored or window.start - group[-1].start != window.scored
        ):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


@dataclass(frozen=True)
class ReadGroup:
    """What a model made of windows that go together (see ``groups``)."""

    group: list[Window]
    tokens: Int[np.ndarray, "B x"]
    """(B, L + 1)"""
    losses: Float64[np.ndarray, "B n"]
    """of the scored targets"""
    traces: list[RouterTrace]
    """what the routers did"""
    frequencies: list[UInt32[np.ndarray, "_ V"]]
    """the distributions of each window's targets; none unless they are mixed"""


class _Readers:
    """Threads that read batches with a ``model`` on a CPU, each with one thread of torch's; none for other models.

    (why) Where all of torch's threads share a batch they wait for each other at every operation, and for the one whose
    core mixing has taken just then. Batches wait for nothing: on two cores `cpu-demo` with mixing takes less time than
    it does alone with two threads.
    """

    def __init__(self, model: LanguageModel | None) -> None:
        self._threads = torch.get_num_threads()
        # whoever watches the model sees batches in their order
        alone = model is None or model.embedding.weight.device.type != "cpu" or bool(model.observers)
        self.count = 0 if alone or self._threads == 1 else self._threads
        self._pool = (
            ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,)) if self.count else None
        )

    def start(
        self, model: LanguageModel, group: list[Window], tokens: NDArray[np.int64], share: bool, mixing: Mixing
    ) -> Future[ReadGroup]:
        """``read_group``, on one of the threads; here and now if there are none."""
        if self._pool:
            return self._pool.submit(read_group, model, group, tokens, share, mixing)
        found: Future[ReadGroup] = Future()
        found.set_result(read_group(model, group, tokens, share, mixing))
        return found

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)  # the readers' 1 would be that of any new thread


def score_group(
    tokenizer: Tokenizer,
    read: ReadGroup,
    observe: Observer | None = None,
    book: Book | None = None,
    mixing: Mixing | None = None,
    row: int = 0,
) -> Score:
    """The score of windows that were read; with ``mixing``, as the text of its ``row``.

    Raises BytegolfError if a loss is not finite.
    """
    total, group, losses = Score(), read.group, read.losses
    counts = np.array([window.scored - window.blank for window in group])
    for at, count in zip(range(len(group)), counts.tolist(), strict=True):
        if not np.isfinite(losses[at, :count]).all():
            raise BytegolfError(
                f"the loss is not finite in the window at token {group[at].start}: the weights are broken, or were "
                "moved at test time by too high a learning rate"
            )
    if mixing:
        losses = mixing.nats(read.traces, read.frequencies, read.tokens[:, -group[0].scored :], row)
    for at, (window, counted) in enumerate(zip(group, counts.tolist(), strict=True)):
        scored = read.tokens[at, window.length - window.scored :][: counted + 1]
        size = tokenizer.byte_counts(scored[1:], scored[:-1])
        total += Score(float(losses[at, :counted].sum()), counted, int(size.sum()))
        if observe:
            observe(window, read.tokens[at], read.traces, at)
        if book:
            book(window, losses[at, :counted], size)
    return total


@torch.inference_mode()
def read_group(
    model: LanguageModel,
    group: list[Window],
    tokens: NDArray[np.int64],
    share: bool = True,
    mixing: Mixing | None = None,
) -> ReadGroup:
    """Windows that go together, whose ``tokens`` are (B, L + 1), read by ``model``; what ``mixing`` needs too."""
    device = model.embedding.weight.device
    length, scored = group[0].length, group[0].scored
    if share and scored < length:
        stretch = np.concatenate((tokens[0], tokens[1:, -scored:].ravel()))
        losses, out = last_losses(model, torch.from_numpy(stretch).to(device), length, scored)
    else:
        ids = torch.from_numpy(tokens).to(device)
        out = model(ids[:, :-1])
        losses = model.losses(out, ids[:, 1:])[:, length - scored :]
    frequencies = mixing.frequencies(out, scored, [scored - window.blank for window in group]) if mixing else []
    return ReadGroup(group, tokens, losses.double().cpu().numpy(), out.traces, frequencies)


def windows_at_once(model: LanguageModel, seq_len: int) -> int:
    """How many windows to work out at a time: as many as keep the activations of a layer within ``ACTIVATIONS``."""
    network = model.config.network
    outer = network if isinstance(network, StackConfig) else network.encoder
    widest = outer.dim * (2 + outer.mlp_mult) * model.precision.itemsize
    size = seq_len * max(widest, 8 * model.config.vocab_size)  # the loss takes its logits twice in fp32
    return max(1, min(64, int(ACTIVATIONS / size)))


ACTIVATIONS = 64e6
"""Bytes: enough to keep every core busy, and little beside a model's own memory."""
