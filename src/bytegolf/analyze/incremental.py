"""Reading a text that changes, as somebody types it: only what lies behind the first change is computed again.

A model is causal: what it makes of a byte depends on the bytes before it, within the window. So the text is read in
pieces, and the model's state behind each piece is kept under a hash of the window up to there. Whoever reads a text
that begins in the same way finds it, whether that is the same person a letter later or another one. One call over many
tokens costs much less than several over few, so the first piece that is not found is short, for the sake of the next
change in it, and the rest of the window is one piece:

    window of 1,024 tokens, short pieces of 256, a text of 900

    first read       [0, 256) [256, 900)                   are computed and kept
    one more letter  [0, 256) [256, 900) are found         900 is computed; [256, 901) is kept
    changed at 600   [0, 256) is found                     [256, 512) [512, 901) are computed
    changed at 601   [0, 256) [256, 512) are found         [512, 768) [768, 901) are computed
    changed at 602   the same                              and so on: at most this much for each letter typed there

Windows before the last one are read whole, and found again if nothing changed in them. Models whose positions depend on
how long the text is (a fixed capacity), or whose steps leave no trace (soft chunking), have whole windows only.

Legend: N bytes of a text, T tokens, L tokens of a piece, V alphabet, K candidates.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int64
from torch import Tensor

from bytegolf.analyze.reading import Reading, document, in_bytes, token_cuts
from bytegolf.artifact.loading import LoadedModel
from bytegolf.evaluate.boundaries import LevelCuts, token_levels
from bytegolf.infer.streams import state_bytes
from bytegolf.model.lm import ModelState
from bytegolf.model.routers.base import THRESHOLD
from bytegolf.model.trace import RouterTrace, StepTrace

PIECE = 256
"""Tokens of a short piece."""

CANDIDATES = 8
"""The likeliest next tokens that are kept of each position (K)."""

CACHE_BYTES = 256_000_000


@dataclass(frozen=True)
class Candidates:
    """The likeliest tokens behind each token of a text that begins with a BOS."""

    ids: Int[np.ndarray, "T K"]
    """most likely first; row i is what the model expected behind token i, so the last row is of what comes next"""
    p: Float32[np.ndarray, "T K"]


@dataclass(frozen=True)
class LiveReading:
    """What a model made of a text, and what it would have expected instead."""

    reading: Reading
    candidates: Candidates
    starts: Int64[np.ndarray, " T"]
    """the byte at which each token behind the first BOS begins, and the text's length: where candidates are for"""
    computed: int
    """tokens that were not found"""

    @property
    def expected(self) -> Candidates:
        """The candidates for each token that has bytes, and for what comes behind the text."""
        rows = np.append(np.flatnonzero(np.diff(self.starts)), len(self.starts) - 1)
        return Candidates(self.candidates.ids[rows], self.candidates.p[rows])

    @property
    def token_starts(self) -> Bool[np.ndarray, " N"]:
        """Whether a token begins at each byte."""
        found = np.zeros(len(self.reading.data), np.bool_)
        found[self.starts[:-1][np.diff(self.starts) > 0]] = True
        return found


@dataclass(frozen=True)
class _Piece:
    """What was computed of the tokens from a piece's first one on."""

    state: ModelState | None
    """behind the last of them; None where windows are read whole"""
    cuts: list[LevelCuts]
    nats: Float32[np.ndarray, " M"]
    """of each token but the first, whose loss is the piece before's; M = L − 1"""
    ids: Int[np.ndarray, "L K"]
    p: Float32[np.ndarray, "L K"]
    last: Float32[np.ndarray, " V"]
    """log p of what comes behind the last one"""


def _joined(pieces: list[_Piece], firsts: list[int]) -> _Piece:
    """Pieces in a row as one; ``firsts`` are the first tokens of all but the first."""
    nats = [pieces[0].nats]
    for before, first, piece in zip(pieces, firsts, pieces[1:], strict=False):
        nats += [-before.last[first : first + 1], piece.nats]
    return _Piece(
        pieces[-1].state,
        [
            LevelCuts(np.concatenate([one.p for one in level]), np.concatenate([one.boundary for one in level]))
            for level in zip(*(piece.cuts for piece in pieces), strict=True)
        ],
        np.concatenate(nats),
        np.concatenate([piece.ids for piece in pieces]),
        np.concatenate([piece.p for piece in pieces]),
        pieces[-1].last,
    )


class _Window:
    """The tokens of a window, and the key of each piece of it."""

    def __init__(self, ids: Int64[np.ndarray, " T"], salt: bytes) -> None:
        self.ids = ids
        self._hashed = hashlib.blake2b(salt, digest_size=16)
        self._whole = self._hashed.copy()
        self._whole.update(ids.tobytes())
        self._digests = [self._hashed.digest()]

    def key(self, first: int, end: int) -> bytes:
        """Of the piece from ``first`` to ``end``: the hash of all tokens up to ``end``, and where it begins."""
        if end == len(self.ids):  # asked for first, and often enough
            return self._whole.digest() + first.to_bytes(4, "little")
        while len(self._digests) < len(self.ids):
            self._hashed.update(self.ids[len(self._digests) - 1].tobytes())
            self._digests.append(self._hashed.digest())
        return self._digests[end] + first.to_bytes(4, "little")


class StateCache:
    """Pieces by the hash of what leads up to them; the one that was not asked for the longest goes first."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        """``limit``: bytes of all pieces together."""
        self.limit, self.used = limit, 0
        self._pieces: OrderedDict[bytes, tuple[_Piece, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pieces)

    def get(self, key: bytes) -> _Piece | None:
        """The piece, which now is the one asked for last."""
        found = self._pieces.get(key)
        if found is None:
            return None
        self._pieces.move_to_end(key)
        return found[0]

    def put(self, key: bytes, piece: _Piece, size: int) -> None:
        """Keep a piece of ``size`` bytes."""
        if key in self._pieces:
            self.used -= self._pieces.pop(key)[1]
        self._pieces[key] = (piece, size)
        self.used += size
        while self.used > self.limit and self._pieces:
            self.used -= self._pieces.popitem(last=False)[1][1]


class IncrementalReader:
    """Reads texts with one model; ``read`` gives what ``reading.read_text`` gives, up to rounding, and candidates.

    Several readers may share a ``cache``. One thread at a time.
    """

    def __init__(self, loaded: LoadedModel, cache: StateCache | None = None, *, threshold: float = THRESHOLD) -> None:
        self.loaded, self.threshold = loaded, threshold
        self.cache = StateCache() if cache is None else cache
        model, self.window = loaded.model, loaded.config.train.seq_len
        self.stepwise = model.soft is None and all(level.capacity.mode != "fixed" for level in model.levels())
        """whether a state can be gone on from"""
        self._depth = len(model.levels())
        self._salt = f"{loaded.artifact.sha256} {model.precision} {threshold}".encode()
        self._state_bytes = state_bytes(model, self.window) if self.stepwise else 0

    def read(self, data: bytes, where: str = "the text") -> LiveReading:
        """Read a text as one document behind a BOS. Raises BytegolfError for one that the tokenizer cannot take."""
        return _end(self.steps(data, where))

    def read_ids(self, ids: Int64[np.ndarray, " T"]) -> LiveReading:
        """Read tokens that begin with a BOS; others within are taken for what they are."""
        return _end(self.steps_of_ids(ids))

    def steps(self, data: bytes, where: str = "the text") -> Generator[None, None, LiveReading]:
        """``read`` in steps of a piece each, between which other work may be done."""
        tokenizer = self.loaded.tokenizer
        ids = document(tokenizer, data, where) if data else np.array([tokenizer.BOS])
        return self.steps_of_ids(ids)

    def steps_of_ids(self, ids: Int64[np.ndarray, " T"]) -> Generator[None, None, LiveReading]:
        """``read_ids`` in steps."""
        tokenizer = self.loaded.tokenizer
        one_document = not (ids[1:] == tokenizer.BOS).any()
        pieces: list[_Piece] = []
        firsts: list[int] = []
        computed = 0
        for start in range(0, len(ids), self.window):
            # a full window in one pass costs half as much as in pieces, and is typed into less often than the last one
            stepwise = self.stepwise and one_document and start + self.window > len(ids)
            window = _Window(ids[start : start + self.window], self._salt + bytes([stepwise]))
            at, misses, state = 0, 0, None
            while at < len(window.ids):
                piece, end = self._found(window, at, stepwise)
                if piece is None or (end < len(window.ids) and end % PIECE):
                    short = piece is None and not misses and stepwise
                    until = min(at + PIECE, len(window.ids)) if short else len(window.ids)
                    computed += until - end
                    piece, end = self._go_on(window, at, piece, until, state, stepwise), until
                    misses += 1
                pieces.append(piece)
                firsts.append(int(window.ids[at]))
                at, state = end, piece.state
                yield
        return self._put_together(ids, _joined(pieces, firsts[1:]), computed)

    def _put_together(self, ids: Int64[np.ndarray, " T"], whole: _Piece, computed: int) -> LiveReading:
        tokenizer = self.loaded.tokenizer
        nats = np.concatenate((np.full(1, np.nan), whole.nats)).astype(np.float64)
        sizes = tokenizer.byte_counts(ids[1:], ids[:-1])
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
        reading = in_bytes(tokenizer, ids, self.window, nats, [whole.cuts])
        return LiveReading(reading, Candidates(whole.ids, whole.p), starts, computed)

    def _found(self, window: _Window, first: int, stepwise: bool) -> tuple[_Piece | None, int]:
        """The longest piece of a window that begins at ``first`` and is known, and where it ends."""
        for end in range(len(window.ids), first, -1) if stepwise else (len(window.ids),):
            if piece := self.cache.get(window.key(first, end)):
                return piece, end
        return None, first

    def _go_on(
        self, window: _Window, first: int, piece: _Piece | None, end: int, state: ModelState | None, stepwise: bool
    ) -> _Piece:
        """The piece from ``first`` to ``end`` of a window, ``piece`` being its known beginning, and ``state`` that of
        what comes before; what is new in it is computed, and all of it kept.
        """
        begun = first + len(piece.ids) if piece else first
        state = piece.state if piece else state
        if stepwise:
            state = copy.deepcopy(state) if begun else self.loaded.model.start(1, self.window)
        more = self._compute(window.ids[begun:end], state)
        if piece:
            more = _joined([piece, more], [int(window.ids[begun])])
        held = self._state_bytes + more.last.nbytes + sum(one.nbytes for one in (more.nats, more.ids, more.p))
        held += sum(cut.p.nbytes + cut.boundary.nbytes for cut in more.cuts)
        self.cache.put(window.key(first, end), more, held)
        return more

    @torch.inference_mode()
    def _compute(self, ids: Int64[np.ndarray, " L"], state: ModelState | None) -> _Piece:
        """The tokens ``ids`` behind ``state``, which is changed in place; without one they are a window's first."""
        model = self.loaded.model
        batch = torch.from_numpy(ids).to(model.embedding.weight.device).unsqueeze(0)
        if state is None:
            out = model(batch)
            logits, cuts = model.cap(out.logits)[0], token_cuts(out, 0, self.threshold)
        else:
            logits = model.extend(batch, state)[0]
            cuts = _cuts(state.traces, len(ids), self._depth)
            state.traces = []
        log_p = torch.log_softmax(logits.float(), -1)
        top = log_p.topk(min(CANDIDATES, log_p.shape[-1]), -1)
        nats = -log_p[:-1].gather(1, batch[0, 1:, None])[:, 0]
        return _Piece(
            state,
            cuts,
            _host(nats),
            top.indices.cpu().numpy().astype(np.int32),
            _host(top.values.exp()),
            _host(log_p[-1]),
        )


def _end(steps: Generator[None, None, LiveReading]) -> LiveReading:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: LiveReading = done.value
            return found


def _host(values: Tensor) -> Float32[np.ndarray, ...]:
    return values.float().cpu().numpy()


def _cuts(traces: list[StepTrace], length: int, depth: int) -> list[LevelCuts]:
    """What the levels did in an extension of one sequence by ``length`` tokens.

    A level that nothing reached left no trace: no chunk of the level around it began.
    """
    whole = [RouterTrace(one.p, one.boundary, one.boundary, None, one.p.new_zeros(())) for one in traces]
    found = token_levels(whole, 0)
    nothing = LevelCuts(np.full(length, np.nan, np.float32), np.zeros(length, np.bool_))
    return [*found, *[nothing] * (depth - len(found))]
