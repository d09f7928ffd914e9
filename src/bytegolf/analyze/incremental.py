"""Reading a text that changes, as somebody types it: only what lies behind the change is computed again.

A model is causal: what it makes of a token depends on the tokens before it, within the window. So what was made of the
beginning of a window is kept, with the model's state behind it. Whoever reads a text that begins in the same way goes
on from there, whether that is the same person a letter later or another one. Behind a change nothing can be kept, not
even where chunks fall as before: every vector there has seen the change.

A state is kept where it will be wanted: behind a text, where the next letter comes, and shortly before a change, as the
next change is likely to be near it.

    window of 1,024 tokens, a text of 900

    first read       all is computed; the state behind 900 is kept
    one more letter  from 900: 1 token is computed; the state behind 901 is kept
    changed at 600   no state but the first is known before it: 584 tokens for a state, and 317 from it
    changed at 601   from 584: 318 tokens; and so on, until the change is 128 further: then there is another state
    changed at 100   so near the beginning a plain pass over all of the window is quicker, and it leaves no state

Windows behind the one with the change hold other tokens than before, if a letter came or went: each is one plain pass.
Models whose positions depend on how long the text is (a fixed capacity), or whose steps leave no trace (soft chunking),
have plain passes only.

Legend: N bytes of a text, T tokens, L tokens of a piece, V alphabet, K candidates.
"""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict, deque
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64, UInt64
from torch import Tensor

from bytegolf.analyze.reading import Reading, document, in_bytes, token_cuts
from bytegolf.artifact.loading import LoadedModel
from bytegolf.evaluate.boundaries import LevelCuts, token_levels
from bytegolf.infer.streams import state_bytes
from bytegolf.model.lm import ModelState
from bytegolf.model.routers.base import THRESHOLD
from bytegolf.model.trace import RouterTrace, StepTrace

# -------------------------------------------------------------------------------------------------- states, found again


CACHE_BYTES = 256_000_000

BASE = 0x9E37_79B9_7F4A_7C15
"""Of the hash: odd, so that no power of it is 0."""


@dataclass(frozen=True)
class Beginning:
    """What was made of the first tokens of a window, all of it or less."""

    tokens: Int64[np.ndarray, " L"]
    state: ModelState | None
    """behind the last of them; None after a plain pass"""
    cuts: list[LevelCuts]
    nats: Float32[np.ndarray, " M"]
    """of each token but the first, which nothing in this window predicts; M = L − 1"""
    ids: Int[np.ndarray, "L K"]
    p: Float32[np.ndarray, "L K"]
    last: Float32[np.ndarray, " V"]
    """log p of what comes behind the last one"""

    def followed_by(self, more: Beginning) -> Beginning:
        """With the tokens that come next in the window."""
        cuts = [
            LevelCuts(np.concatenate((one.p, two.p)), np.concatenate((one.boundary, two.boundary)))
            for one, two in zip(self.cuts, more.cuts, strict=True)
        ]
        return Beginning(
            np.concatenate((self.tokens, more.tokens)),
            more.state,
            cuts,
            np.concatenate((self.nats, -self.last[more.tokens[:1]], more.nats)),
            np.concatenate((self.ids, more.ids)),
            np.concatenate((self.p, more.p)),
            more.last,
        )

    @property
    def nbytes(self) -> int:
        """Of the arrays, without the state."""
        cuts = sum(cut.p.nbytes + cut.boundary.nbytes for cut in self.cuts)
        return cuts + sum(one.nbytes for one in (self.tokens, self.nats, self.ids, self.p, self.last))


class StateCache:
    """Beginnings of windows, found by hash; the one that was not asked for the longest goes first.

    The hash of the tokens x₀ … xₙ is Σ xᵢ·bⁱ mod 2⁶⁴, so that one pass gives those of all beginnings. Two sequences of
    one hash are easily made: what is found is compared.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        """``limit``: bytes of all of them together."""
        self.limit, self.used = limit, 0
        self._kept: OrderedDict[tuple[bytes, int, int], tuple[Beginning, int]] = OrderedDict()
        self._powers: UInt64[np.ndarray, " T"] = np.ones(1, np.uint64)

    def __len__(self) -> int:
        return len(self._kept)

    def longest(self, salt: bytes, tokens: Int64[np.ndarray, " T"]) -> Beginning | None:
        """The longest beginning of ``tokens`` that is known, which now is the one asked for last; one without a state
        only if it is all of them.
        """
        hashes = self._hashes(tokens).tolist()
        for end in range(len(tokens), 0, -1):
            found = self._kept.get((salt, end, hashes[end - 1]))
            if found and (found[0].state or end == len(tokens)) and np.array_equal(found[0].tokens, tokens[:end]):
                self._kept.move_to_end((salt, end, hashes[end - 1]))
                return found[0]
        return None

    def put(self, salt: bytes, beginning: Beginning, size: int) -> None:
        """Keep one of ``size`` bytes."""
        tokens = beginning.tokens
        key = (salt, len(tokens), int(self._hashes(tokens)[-1]))
        if key in self._kept:
            self.used -= self._kept.pop(key)[1]
        self._kept[key] = (beginning, size)
        self.used += size
        while self.used > self.limit and self._kept:
            self.used -= self._kept.popitem(last=False)[1][1]

    def _hashes(self, tokens: Int64[np.ndarray, " T"]) -> UInt64[np.ndarray, " T"]:
        """Of each beginning."""
        if len(self._powers) < len(tokens):
            powers = np.full(len(tokens) + 1, BASE, np.uint64)
            powers[0] = 1
            self._powers = np.cumprod(powers, dtype=np.uint64)
        return np.cumsum(tokens.astype(np.uint64) * self._powers[: len(tokens)], dtype=np.uint64)


# -------------------------------------------------------------------------------------------------- readings that go on


SPACING = 128
"""So many tokens behind a state, a change gets another one."""

BEHIND = 16
"""So many tokens before a change its state is: the next change may lie a little before it."""

SHORT = 256
"""A window that is not longer is never read by a plain pass: going on from a state costs about as much."""

ROUND = 32
"""Tokens that are computed at once are padded to a multiple of this: what PyTorch prepares for a new shape takes longer
than so many tokens more."""

RECENT = 32
"""Texts that a new one is compared with, to see where it was changed."""

CANDIDATES = 8
"""The likeliest next tokens that are kept of each position (K)."""


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
        self._recent: deque[Int64[np.ndarray, " T"]] = deque(maxlen=RECENT)

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
        one_document = not (ids[1:] == self.loaded.tokenizer.BOS).any()
        changed = max((_common(ids, other) for other in self._recent), default=0)
        self._recent.append(ids)
        windows: list[Beginning] = []
        computed = 0
        for start in range(0, len(ids), self.window):
            tokens = ids[start : start + self.window]
            known = self.cache.longest(self._salt, tokens)
            begun = len(known.tokens) if known else 0
            computed += len(tokens) - begun
            if known is None or begun < len(tokens):
                # a first token is always a BOS: more than that in common, or this is another text
                fresh = changed <= 1 and start + self.window >= len(ids)
                place = max(begun, changed - start)
                if self.stepwise and one_document and (fresh or len(tokens) <= SHORT or 4 * place >= len(tokens)):
                    if place - begun > SPACING:
                        known = self._go_on(tokens[: place - BEHIND], known)
                        yield
                    known = self._go_on(tokens, known)
                else:
                    computed += begun
                    known = self._compute(tokens, None)
                    self.cache.put(self._salt, known, known.nbytes)
            windows.append(known)
            yield
        return self._put_together(ids, windows, computed)

    def _put_together(self, ids: Int64[np.ndarray, " T"], windows: list[Beginning], computed: int) -> LiveReading:
        tokenizer = self.loaded.tokenizer
        nats = [np.full(1, np.nan, np.float32), windows[0].nats]
        for before, window in itertools.pairwise(windows):
            nats += [-before.last[window.tokens[:1]], window.nats]
        sizes = tokenizer.byte_counts(ids[1:], ids[:-1])
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
        cuts = [window.cuts for window in windows]
        reading = in_bytes(tokenizer, ids, self.window, np.concatenate(nats).astype(np.float64), cuts)
        expected = Candidates(
            np.concatenate([window.ids for window in windows]), np.concatenate([window.p for window in windows])
        )
        return LiveReading(reading, expected, starts, computed)

    def _go_on(self, tokens: Int64[np.ndarray, " L"], known: Beginning | None) -> Beginning:
        """The first ``tokens`` of a window, ``known`` being their known beginning, with the state behind them."""
        begun = len(known.tokens) if known else 0
        state = copy.deepcopy(known.state) if known else self.loaded.model.start(1, self.window)
        found = self._compute(tokens[begun:], state)
        if known:
            found = known.followed_by(found)
        self.cache.put(self._salt, found, self._state_bytes + found.nbytes)
        return found

    @torch.inference_mode()
    def _compute(self, ids: Int64[np.ndarray, " L"], state: ModelState | None) -> Beginning:
        """The tokens ``ids`` behind ``state``, which is changed in place; without one they are a window's first."""
        model, length = self.loaded.model, len(ids)
        batch = torch.from_numpy(ids).to(model.embedding.weight.device).unsqueeze(0)
        padding = -length % ROUND if self.stepwise and length > 1 else 0
        padded = torch.nn.functional.pad(batch, (0, padding))
        if state is None:
            out = model(padded)
            logits, cuts = model.cap(out.logits)[0], token_cuts(out, 0, self.threshold)
        else:
            logits = model.extend(padded, state, counts=np.array([length]) if padding else None)[0]
            cuts = _cuts(state.traces, length, self._depth)
            state.traces = []
        logits, cuts = logits[:length], [LevelCuts(cut.p[:length], cut.boundary[:length]) for cut in cuts]
        log_p = torch.log_softmax(logits.float(), -1)
        likeliest, values = _likeliest(log_p, min(CANDIDATES, log_p.shape[-1]))
        nats = -log_p[:-1].gather(1, batch[0, 1:, None])[:, 0]
        return Beginning(
            ids,
            state,
            cuts,
            _host(nats),
            likeliest,
            np.exp(values),
            _host(log_p[-1]),
        )


def _likeliest(log_p: Float[Tensor, "L V"], count: int) -> tuple[Int[np.ndarray, "L K"], Float32[np.ndarray, "L K"]]:
    """The ``count`` likeliest tokens of each position and their log p, most likely first."""
    if log_p.device.type == "cpu":  # NumPy partitions with vector instructions, in a third of topk's time
        found = log_p.numpy()
        places = np.flatnonzero(found >= np.partition(found, -count, -1)[:, -count, None])
        rows, ids = np.divmod(places, found.shape[-1])
        # bf16's logits are often equal: a row may have more than it asks for, and all rows get as many columns
        kept = np.bincount(rows, minlength=len(found))
        columns = np.arange(len(rows)) - np.repeat(np.cumsum(kept) - kept, kept)
        values = np.full((len(found), max(count, int(kept.max()))), -np.inf, found.dtype)
        values[rows, columns] = found.ravel()[places]
        wide = np.zeros(values.shape, np.int32)
        wide[rows, columns] = ids
        order = np.argsort(-values, -1, kind="stable")[:, :count]
        return np.take_along_axis(wide, order, -1), np.take_along_axis(values, order, -1)
    top = log_p.topk(count, -1)
    return top.indices.cpu().numpy().astype(np.int32), _host(top.values)


def _end(steps: Generator[None, None, LiveReading]) -> LiveReading:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: LiveReading = done.value
            return found


def _common(one: Int64[np.ndarray, " T"], two: Int64[np.ndarray, " U"]) -> int:
    """How many of the first tokens are the same."""
    most = min(len(one), len(two))
    differs = one[:most] != two[:most]
    return int(differs.argmax()) if differs.any() else most


def _host(values: Tensor) -> Float32[np.ndarray, ...]:
    return values.float().cpu().numpy()


def _cuts(traces: list[StepTrace], length: int, depth: int) -> list[LevelCuts]:
    """What the levels did in an extension of one sequence by ``length`` tokens.

    A level that nothing reached left no trace: no chunk of the level around it began.
    """
    # what lies beyond the length is padding, which inner levels have not seen
    own = [(one.p[:, :length], one.boundary[:, :length]) for one in traces]
    whole = [RouterTrace(p, boundary, boundary, None, p.new_zeros(())) for p, boundary in own]
    found = token_levels(whole, 0)
    nothing = LevelCuts(np.full(length, np.nan, np.float32), np.zeros(length, np.bool_))
    return [*found, *[nothing] * (depth - len(found))]
