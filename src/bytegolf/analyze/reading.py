"""A text as a model reads it: where it begins chunks, level by level, and how many bits each byte costs it.

Legend: N bytes of a text, T tokens, W windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Integer
from numpy.typing import NDArray

from bytegolf.artifact.loading import LoadedModel, data_of
from bytegolf.bpb import bits_per_byte
from bytegolf.data.dataset import open_split
from bytegolf.data.tokenizer import ByteTokenizer, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.boundaries import (
    BoundaryStats,
    LevelCuts,
    check_level,
    free_tokens,
    token_boundaries_to_bytes,
    token_levels,
)
from bytegolf.evaluate.score import windows_at_once
from bytegolf.files import STDIN, read_input
from bytegolf.model.lm import Forward, LanguageModel
from bytegolf.model.routers.base import THRESHOLD
from bytegolf.model.trace import RouterTrace, SoftTrace


@dataclass(frozen=True)
class LevelReading:
    """What one level of chunking made of a text."""

    p: Float32[np.ndarray, " N"]
    """probability of a boundary; NaN where the level has no position (inside a token, inside an outer chunk)"""
    boundary: Bool[np.ndarray, " N"]
    """whether the byte starts a chunk"""
    candidates: Bool[np.ndarray, " N"]
    """whether the router had a choice: not at a window's or document's first byte, nor where it has no position"""

    @property
    def chosen(self) -> Bool[np.ndarray, " N"]:
        """The boundaries that the router chose."""
        chosen: NDArray[np.bool_] = self.boundary & self.candidates
        return chosen


@dataclass(frozen=True)
class Reading:
    """What a model made of a text."""

    data: bytes
    """what the tokens stand for: the text, as far as the tokenizer keeps it"""
    bits: Float32[np.ndarray, " N"]
    """surprisal; the bits of a token are shared out evenly among its bytes; NaN where nothing predicted it"""
    windows: Int[np.ndarray, " W"]
    """the byte at which each window of the model begins"""
    levels: list[LevelReading]
    """outermost first; without a router, the layers of soft chunking, first to last; empty for a flat model"""
    nats: float
    """the loss of all tokens, special ones too"""
    tokens: int
    """how many tokens were predicted"""

    @property
    def bpb(self) -> float:
        """Bits per byte of the text, in windows that do not overlap."""
        return bits_per_byte(self.nats, int(np.isfinite(self.bits).sum()))

    def level(self, level: int) -> LevelReading:
        """One level; raises BytegolfError where there is none."""
        check_level(len(self.levels), level)
        return self.levels[level]

    def stats(self, level: int) -> BoundaryStats:
        """The metrics of a level, window by window as ``eval`` counts them."""
        stats, found = BoundaryStats(), self.level(level)
        text = np.frombuffer(self.data, np.uint8)
        for part in self.parts():
            stats.add(text[part], found.boundary[part], candidates=found.candidates[part])
        return stats

    def parts(self) -> list[slice]:
        """The windows as slices of the bytes."""
        ends = [*self.windows[1:].tolist(), len(self.data)]
        return [slice(start, end) for start, end in zip(self.windows.tolist(), ends, strict=True) if start < end]

    def head(self, size: int) -> Reading:
        """The first ``size`` bytes; ``nats`` stays what it was and so means nothing more."""
        levels = [LevelReading(one.p[:size], one.boundary[:size], one.candidates[:size]) for one in self.levels]
        return Reading(
            self.data[:size], self.bits[:size], self.windows[self.windows < size], levels, self.nats, self.tokens
        )


def join(readings: Sequence[Reading]) -> Reading:
    """Several texts as one; a text's first byte is a window's too."""
    offsets = np.cumsum([0, *(len(one.data) for one in readings[:-1])])
    return Reading(
        b"".join(one.data for one in readings),
        np.concatenate([one.bits for one in readings]),
        np.concatenate([one.windows + offset for one, offset in zip(readings, offsets, strict=True)]),
        [
            LevelReading(
                *(np.concatenate([getattr(one, key) for one in level]) for key in ("p", "boundary", "candidates"))
            )
            for level in zip(*(one.levels for one in readings), strict=True)
        ],
        sum(one.nats for one in readings),
        sum(one.tokens for one in readings),
    )


def document(tokenizer: Tokenizer, data: bytes, where: str) -> NDArray[np.int64]:
    """The tokens of ``data`` behind a BOS. Byte tokenizers take any bytes, others need UTF-8.

    Raises BytegolfError, which names ``where``, for other bytes, or none.
    """
    if not data:
        raise BytegolfError(f"{where} is empty: give some text")
    try:
        if isinstance(tokenizer, ByteTokenizer):
            ids = tokenizer.encode_bytes(data)
        else:
            ids = tokenizer.encode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BytegolfError(
            f"{where} is not UTF-8 (byte {error.start}): {tokenizer.name} reads text only; convert it, or use a "
            "byte-level model"
        ) from error
    return np.concatenate(([tokenizer.BOS], ids)).astype(np.int64)


@dataclass(frozen=True)
class NamedText:
    """A text that a user named: a file, or stdin."""

    path: Path
    content: bytes

    @staticmethod
    def read(path: Path) -> NamedText:
        """A file, or stdin for ``-``. Raises BytegolfError for what cannot be read."""
        return NamedText(path, read_input(path))

    @property
    def where(self) -> str:
        """What to call it in errors."""
        return "stdin" if self.path == STDIN else str(self.path)


def text_tokens(
    loaded: LoadedModel, data: Path | None, texts: Sequence[NamedText], limit: int
) -> Iterator[NDArray[np.int64]]:
    """The tokens of each text, a BOS first."""
    tokenizer = loaded.tokenizer
    for text in texts:
        content = text.content
        content = content[:limit] if limit else content
        if limit and not isinstance(tokenizer, ByteTokenizer):  # the cut may have gone through a character
            content = content.decode("utf-8", "ignore").encode() if _cut(content) else content
        yield document(tokenizer, content, text.where)
    if not texts:
        stream = open_split(data_of(loaded, data), tokenizer.name, "val", tokenizer.vocab_size)
        yield stream.slice(0, min(limit or len(stream), len(stream))).astype(np.int64)


def _cut(content: bytes) -> bool:
    """Whether nothing is wrong with the UTF-8 of ``content`` but its end."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def read_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    data: bytes,
    seq_len: int,
    where: str = "the text",
    threshold: float = THRESHOLD,
) -> Reading:
    """``read`` a text as one document behind a BOS. Raises BytegolfError for an empty one."""
    return read(model, tokenizer, document(tokenizer, data, where), seq_len, threshold=threshold)


@torch.inference_mode()
def read(
    model: LanguageModel,
    tokenizer: Tokenizer,
    ids: Integer[np.ndarray, " T"],
    seq_len: int,
    progress: Callable[[float], None] | None = None,
    *,
    threshold: float = THRESHOLD,
) -> Reading:
    """Read a stream of tokens in windows of ``seq_len`` that do not overlap, as ``eval`` does by default.

    The first token is only read; every other is also predicted, from its window. ``progress`` is told the share done.
    ``threshold`` is the b from which on soft chunking is said to begin a chunk.
    """
    ids = ids.astype(np.int64)
    ahead = np.append(ids[1:], ids[-1:])  # the last one's loss is not used
    device = model.embedding.weight.device
    nats = np.full(len(ids), np.nan)
    found: list[list[LevelCuts]] = []
    batch, full = windows_at_once(model, seq_len), len(ids) // seq_len
    groups = [range(start, min(start + batch, full)) for start in range(0, full, batch)]
    for group in [*groups, range(full, full + (len(ids) % seq_len > 0))]:
        if not group:
            continue
        first, last = group[0] * seq_len, min((group[-1] + 1) * seq_len, len(ids))
        window = torch.from_numpy(ids[first:last]).to(device).view(len(group), -1)
        targets = ahead[first:last]
        out = model(window)
        losses = model.losses(out, torch.from_numpy(targets).to(device).view(window.shape)).double().cpu().numpy()
        # position i predicts token i + 1, so these losses belong one place further on; there is none behind the last
        end = min(last + 1, len(ids))
        nats[first + 1 : end] = losses.ravel()[: end - first - 1]
        found += [token_cuts(out, row, threshold) for row in range(len(group))]
        if progress:
            progress(last / len(ids))
    return in_bytes(tokenizer, ids, seq_len, nats, found)


def in_bytes(
    tokenizer: Tokenizer, ids: NDArray[np.int64], seq_len: int, nats: NDArray[np.float64], found: list[list[LevelCuts]]
) -> Reading:
    """From tokens to bytes: the loss ``nats`` of each token, and what the levels did in each window (``token_levels``).

    With subwords "the", " c" and "at" behind a BOS, windows of three tokens, and a chunk at " c":

        token      BOS      "the"      " c"       "at"
        sizes      0        3          2          2
        starts     0        0          3          5          its first byte
        nats       NaN      2.1        4.2        1.4        NaN: nothing predicts the first token
        shared              1 1 1      3 3        1 1        bits per byte: 2.1 / ln 2 / 3 = 1 for each of "the"
        boundary            x . .      x .        . .        the text's first byte always is one
        free       no       no         yes        no         behind BOS, and at a window's start, nothing was chosen

    Sharing a token's bits evenly keeps their sum, which is what a score rests on; where inside the token they arose is
    unknown. BOS has no byte, so its loss (at a document's end) is in no byte's bits, but in the reading's ``nats``.
    """
    sizes = tokenizer.byte_counts(ids, np.append(tokenizer.BOS, ids[:-1]))
    starts = np.cumsum(sizes) - sizes
    total = int(sizes.sum())
    free = free_tokens(sizes)
    free[::seq_len] = False
    shared = np.repeat(nats / math.log(2) / np.maximum(sizes, 1), sizes).astype(np.float32)
    levels = []
    for windows in zip(*found, strict=True):
        p = np.concatenate([one for one, _ in windows])
        mask = np.concatenate([one for _, one in windows])
        spread = np.full(total, np.nan, np.float32)
        spread[starts[sizes > 0]] = p[sizes > 0]
        boundary = token_boundaries_to_bytes(sizes, mask)
        boundary[:1] = True
        levels.append(LevelReading(spread, boundary, token_boundaries_to_bytes(sizes, free & np.isfinite(p))))
    return Reading(
        tokenizer.decode(ids), shared, np.unique(starts[::seq_len]), levels, float(np.nansum(nats)), len(ids) - 1
    )


def token_cuts(out: Forward, row: int, threshold: float) -> list[LevelCuts]:
    """``token_levels`` of the routers; where there is none, of each layer of soft chunking, as if it were outermost."""
    if out.traces:
        return token_levels(out.traces, row)
    return [token_levels([as_level(trace, threshold)], row)[0] for trace in out.soft]


def as_level(trace: SoftTrace, threshold: float = THRESHOLD) -> RouterTrace:
    """What a router would have done that chose boundaries where b ≥ ``threshold``."""
    boundary = trace.b >= threshold
    return RouterTrace(trace.p, boundary, boundary, None, trace.p.new_zeros(()))
