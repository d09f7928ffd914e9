"""Test-time training, score first: the model is scored on a chunk of text, then learns from it, then reads on.

A chunk's scores are booked under inference mode, with weights that have seen nothing but what was booked before; only
then do its tokens become training data (rules.md). No token is scored twice, and nothing is drawn: the same text gives
the same score.

With a reset each document is read by itself, from its BOS on, and starts from the shipped weights. Several such
documents can go through at once, each with adapters of its own; a document takes the first free row, which only
documents before it decide. Without a reset the whole stream is one text.

Where a text ends must not show in what was scored before: windows lie where they would lie in an endless text, and the
last one is filled up with padding. So batches keep their shape, and a changed future moves no earlier score by a bit
where the chunks have one room as well (``capacity``), windows share no work, and documents do not leave rows empty.
Anywhere else products of other shapes may round in another way, as they may without learning.

What learns are low-rank matrices beside the model's own, a set per document, or, by SGD, the weights themselves.

Legend: M documents at a time (rows), K windows to learn from, N = M·K, L tokens of a window.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from bytegolf.bpb import Score
from bytegolf.config import TttConfig
from bytegolf.data.dataset import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.mixing import Mixing
from bytegolf.evaluate.score import Book, Observer, Window, groups, read_group, score_group, targets_of, windows
from bytegolf.model.embed import row_tables
from bytegolf.model.layers import widen
from bytegolf.model.lm import LanguageModel
from bytegolf.model.lora import LowRank, adaptable_maps

RMS_FORGETS, RMS_FLOOR, RMS_WARMUP = 0.001, 0.3, 20
"""Of ``ttt.rms_lr``: the last gradient's share of the mean square, the least root in means, updates that step less."""


@dataclass(frozen=True)
class Pace:
    """How a text is read: windows of ``seq_len`` tokens that score ``stride`` each, learned from ``chunk`` by chunk."""

    seq_len: int
    stride: int
    chunk: int

    @staticmethod
    def of(seq_len: int, stride: int, chunk: int) -> Pace:
        """Chunks of 0 tokens are windows; without a stride a window scores a chunk, or all of itself."""
        chunk = chunk or seq_len
        stride = stride or min(chunk, seq_len)
        if chunk < stride <= seq_len:
            raise BytegolfError(
                f"the model cannot learn every {chunk} tokens while windows score {stride} each: make the chunk as "
                "long as the stride at least"
            )
        return Pace(seq_len, stride, chunk)

    def chunks(self, start: int, end: int) -> Iterator[list[Window]]:
        """The windows over the text from token ``start``, its first, to ``end``, its last target, chunk by chunk.

        The first scores all of its targets, each later one the next ``stride``.

        Example: seq_len 8, stride 4, chunk 8, a text of 14 targets. Each line is a window of 8 tokens; ``=`` are the
        targets that it scores, ``-`` what it only reads, ``.`` padding behind the text's end (``blank``)::

            target  0       4       8       12  14
                    ========                          chunk 1: scored 8
                        ----====                      chunk 2: scored 4 …
                            ----==..                       … and 4, of which 2 are blank

        Chunk 1 is learned from before chunk 2 is scored. The last window keeps its length of 8, although the text ends
        inside it: were it shorter, its shape would tell earlier scores where the text ends.
        """
        group: list[Window] = []
        done, scored = start, self.seq_len
        while done < end:
            blank = max(0, done + scored - end)
            group.append(Window(done + scored - self.seq_len, self.seq_len, scored, blank))
            done, scored = done + scored, self.stride
            if sum(window.scored for window in group) >= self.chunk:
                yield group
                group = []
        if group:
            yield group

    @property
    def lessons(self) -> int:
        """How many windows, end to end, hold the targets of any chunk (K)."""
        beyond = max(0, math.ceil((self.chunk - self.seq_len) / self.stride))  # windows behind the first one
        most = max(self.seq_len + beyond * self.stride, math.ceil(self.chunk / self.stride) * self.stride)
        return math.ceil(most / self.seq_len)


@dataclass(frozen=True)
class _Text:
    """What is read in a row: a document, or the whole stream."""

    start: int = 0
    """first token"""
    end: int = 0
    """last target: the next document's BOS, which tells that this one is over"""
    chunks: deque[list[Window]] = field(default_factory=deque)
    """still to be read"""
    observe: Observer | None = None

    def tokens(self, stream: TokenStream, start: int, length: int) -> NDArray[np.int64]:
        """So many tokens from ``start`` on, padded behind the text's end."""
        found = np.zeros(length, np.int64)
        part = stream.slice(start, min(start + length, self.end + 1))
        found[: len(part)] = part
        return found


def score_adapting(
    model: LanguageModel,
    stream: TokenStream,
    tokenizer: Tokenizer,
    seq_len: int,
    settings: TttConfig,
    *,
    stride: int = 0,
    limit: int = 0,
    share: bool = True,
    observer: Callable[[], Observer] | None = None,
    book: Book | None = None,
    progress: Callable[[Score], None] | None = None,
    mixing: Callable[[int], Mixing] | None = None,
) -> Score:
    """Score every target of ``stream`` once with ``model``, which learns as ``settings`` say and is itself again after.

    ``stride``, ``limit`` and ``share`` are those of ``evaluate.score.score``. ``observer`` makes an observer for each
    document, whose windows come in order. ``mixing`` makes what mixes the scores of so many texts at a time: a chunk is
    mixed before the model learns from it.

    Raises BytegolfError if the stream is shorter than a window, a chunk than the stride, or the loss is not finite.
    """
    pace = Pace.of(seq_len, stride, settings.chunk)
    targets = targets_of(len(stream), seq_len, limit)
    windows(targets, seq_len, pace.stride)  # raises if they do not fit
    edges = [0, targets]
    if settings.reset == "document":
        edges = [0, *(np.flatnonzero(stream.slice(1, targets) == model.config.bos) + 1).tolist(), targets]
    waiting = itertools.pairwise(edges)
    total, training = Score(), model.training
    model.eval()
    try:
        with adapter_for(model, settings, len(edges) - 1) as adapter:
            rows = [_Text() for _ in range(adapter.rows)]
            mixed = mixing(adapter.rows) if mixing else None
            while True:
                for index, text in enumerate(rows):
                    if not text.chunks and (span := next(waiting, None)):
                        chunks = deque(pace.chunks(*span))
                        rows[index] = _Text(*span, chunks, observer() if observer else None)
                        adapter.reset(index)
                # With 2 rows and documents of 3, 1 and 2 chunks, the rounds are a1 b1, a2 c1, a3 c2: document c takes
                # the row that b leaves. Which row that is depends on documents before c alone.
                read = [text.chunks.popleft() if text.chunks else [] for text in rows]
                if not any(read):
                    return total
                for index, (text, group) in enumerate(zip(rows, read, strict=True)):
                    with adapter.only(index):
                        for part in groups(iter(group), max(1, len(group))):
                            tokens = np.stack([text.tokens(stream, one.start, seq_len + 1) for one in part])
                            read_part = read_group(model, part, tokens, share, mixed)
                            total += score_group(tokenizer, read_part, text.observe, book, mixed, index)
                if progress:
                    progress(total)
                # nothing is learned from a chunk behind which nothing comes any more
                chunks_read = [group if text.chunks else [] for text, group in zip(rows, read, strict=True)]
                if any(chunks_read):
                    lessons = _lessons(stream, rows, chunks_read, pace)
                    for _ in range(settings.steps):
                        adapter.step(*lessons)
    finally:
        model.train(training)


def _lessons(
    stream: TokenStream, rows: list[_Text], chunks: list[list[Window]], pace: Pace
) -> tuple[Int[Tensor, "N L"], Int[Tensor, "N L"], Bool[Tensor, "N L"]]:
    """Inputs, targets and which of these count, in K windows a row, blank where there are fewer.

    They lie end to end, the last one ending with the chunk; what precedes the chunk in the first is context.

    Example: seq_len 8, stride 2, chunk 6. The chunk just scored holds targets 8 to 13, so ``first`` is 8 and ``end``
    14. One window is enough: it reads tokens 6 to 13 and predicts targets 6 to 13, of which the first two (8 − 6) are
    context and not counted, since chunk 1 was learned from them already. A chunk of 12 targets takes two windows: the
    last 8 of its targets, then the 4 before them behind 4 tokens of context.
    """
    tokens = np.zeros((len(rows), pace.lessons, pace.seq_len + 1), np.int64)
    counted = np.zeros((len(rows), pace.lessons, pace.seq_len), np.bool_)
    for row, (text, group) in enumerate(zip(rows, chunks, strict=True)):
        if not group:
            continue
        end = group[-1].start + pace.seq_len
        first = group[0].start + pace.seq_len - group[0].scored
        for number, stop in enumerate(range(end, first, -pace.seq_len)):
            start = max(text.start, stop - pace.seq_len)
            tokens[row, number, : stop - start + 1] = stream.slice(start, stop + 1)
            counted[row, number, max(0, first - start) : stop - start] = True
    ids = torch.from_numpy(tokens).flatten(0, 1)
    return ids[:, :-1], ids[:, 1:], torch.from_numpy(counted).flatten(0, 1)


# ---------------------------------------------------------------------------------------------- what learns


@runtime_checkable
class TestTimeAdapter(Protocol):
    """What changes a model between chunks, for ``rows`` (M) documents at a time."""

    rows: int

    def reset(self, row: int) -> None:
        """Forget all that was learned in ``row``."""

    def only(self, row: int) -> contextlib.AbstractContextManager[None]:
        """Within the context all sequences are read with what was learned in ``row``."""

    def step(self, ids: Int[Tensor, "N L"], targets: Int[Tensor, "N L"], counted: Bool[Tensor, "N L"]) -> None:
        """One update on the ``counted`` targets; the sequences are those of the M documents in order."""


@contextlib.contextmanager
def adapter_for(model: LanguageModel, settings: TttConfig, documents: int) -> Iterator[TestTimeAdapter]:
    """The adapter for a text of so many ``documents``; afterwards the model is as it was, codes as fp32."""
    maps = adaptable_maps(model, settings.matrices)
    widen(model)
    with contextlib.ExitStack() as afterwards:
        for parameter in model.parameters():
            afterwards.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        if settings.mode == "lora":
            adapters = LowRank(maps, min(settings.documents, documents), settings.rank)
            afterwards.enter_context(adapters.attached())
            yield _Lora(model, adapters, settings.lora_lr)
        else:
            for table in row_tables(model):  # the gradient of a table holds the rows of a chunk only
                afterwards.callback(setattr, table, "sparse_gradients", table.sparse_gradients)
                table.sparse_gradients = True
            sgd = _Sgd(model, [one.weight for one in maps.values()], settings)
            afterwards.callback(sgd.reset, 0)
            yield sgd


def _loss(model: LanguageModel, ids: Tensor, targets: Tensor, counted: Tensor) -> Float[Tensor, ""]:
    """The sum of the losses of the counted targets: so a learning rate is per token, however long the chunk is."""
    device = model.embedding.weight.device
    return (model.losses(model(ids.to(device)), targets.to(device)) * counted.to(device)).sum()


class _Lora:
    def __init__(self, model: LanguageModel, adapters: LowRank, lr: float) -> None:
        self._model, self._adapters, self._lr = model, adapters, lr
        self.rows = adapters.documents
        self.only = adapters.only

    def reset(self, row: int) -> None:
        self._adapters.reset(row)

    def step(self, ids: Tensor, targets: Tensor, counted: Tensor) -> None:
        self._adapters.step(_loss(self._model, ids, targets, counted), self._lr)


class _Sgd:
    """SGD on the weights themselves; with ``rms_lr``, of the matrices by gradients over their root mean square so far.

    That is dynamic evaluation by RMS (Krause et al. 2018, arXiv:1709.07432, eq. 6), with means of the text so far in
    place of the training text's, and without a pull back to the shipped weights. Rows of tables stay with plain SGD:
    most have no gradient yet.
    """

    rows = 1

    def __init__(self, model: LanguageModel, matrices: list[Tensor], settings: TttConfig) -> None:
        self._model, self._rms_lr = model, settings.rms_lr
        self._rates = [(matrix, settings.sgd_lr) for matrix in matrices]
        if settings.ngram_lr > 0:
            self._rates += [(each.table, settings.ngram_lr) for each in row_tables(model)]
        self._shipped = [p.detach().clone() for p, _ in self._rates]
        self._squares = [torch.zeros_like(matrix) if self._rms_lr else matrix for matrix in matrices]
        self._updates = 0
        for p, _ in self._rates:
            p.requires_grad_()

    @torch.no_grad()
    def reset(self, row: int) -> None:
        for (p, _), shipped in zip(self._rates, self._shipped, strict=True):
            p.copy_(shipped)
        self._updates = 0

    def only(self, row: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def step(self, ids: Tensor, targets: Tensor, counted: Tensor) -> None:
        loss = _loss(self._model, ids, targets, counted)
        gradients = torch.autograd.grad(loss, [p for p, _ in self._rates])
        self._updates += 1
        with torch.no_grad():
            for index, ((p, lr), g) in enumerate(zip(self._rates, gradients, strict=True)):
                if g.is_sparse:
                    g = g.coalesce()  # a row once, so that no order of adding is left to chance
                    p.index_add_(0, g.indices()[0], g.values(), alpha=-lr)
                elif self._rms_lr and index < len(self._squares):
                    self._normalised(p, g, self._squares[index])
                else:
                    p.sub_(g, alpha=lr)

    def _normalised(self, p: Tensor, g: Tensor, squares: Tensor) -> None:
        """A step of ``rms_lr`` where a gradient is as large as it was so far. The mean is one of all updates at first
        (the first one's share is all of it, the second one's a half, …), then one that forgets; small ones count as
        ``RMS_FLOOR`` of the matrix' mean at least, and the first updates, whose means are of little, step less.
        """
        squares.lerp_(g.square(), max(1 / self._updates, RMS_FORGETS))
        floor = squares.mean().sqrt() * RMS_FLOOR
        p.addcdiv_(g, squares.sqrt() + floor, value=-self._rms_lr * min(1.0, self._updates / RMS_WARMUP))
