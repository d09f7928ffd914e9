"""Does soft chunking chunk, or is it the identity? b, what it does to its input, and what the score makes of it.

b_t is the share of its own vector that position t keeps; the rest is the blended vector of the position before it.

- How b is distributed, position by position.
- Distance from the identity: ‖out − out at b = 1‖ / ‖W·x‖ over all positions where b is free. W alone is not counted,
  which a layer that never chunks has as well.
- The score with b as it is, with 1 everywhere (never blends), 0 everywhere, and with the b of each window shuffled
  among its positions: what the trained model owes to it, and to its places. Nothing is trained again for that.
- Where b is high and where it is low: the share of its lowest and highest tenth that touch whitespace
  (``evaluate.boundaries`` says what that means), and the boundaries that b ≥ ½ would be.

Legend: B windows, L positions of a window, N positions altogether.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from bytegolf.analyze.reading import Reading, as_level, join
from bytegolf.analyze.results import Extremes, ForcedScores, Probe, SoftChunking, SoftLayerFigures, SoftStep
from bytegolf.artifact.loading import LoadedModel
from bytegolf.bpb import Score
from bytegolf.data.dataset import TokenStream, open_split
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.boundaries import BoundaryStats, collector, touching_whitespace
from bytegolf.evaluate.score import Window, score
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import THRESHOLD
from bytegolf.model.soft_chunk import Override, SoftLayer
from bytegolf.model.trace import SoftTrace
from bytegolf.progress import Reporter
from bytegolf.training.metrics_file import read_metrics

BINS = 20
"""Of the histogram of b over [0, 1]."""

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)

SEED = 0
"""Of the shuffling."""

HISTORY = 20
"""Rows of a run's history that are told."""


def shuffled() -> Override:
    """Moves each window's b, where it is free, to random such positions of that window, the same ones each time."""
    generator = torch.Generator().manual_seed(SEED)

    def override(b: Tensor, first: Tensor) -> Tensor:
        b = b.clone()
        for row, free in zip(b, ~first, strict=True):
            order = torch.randperm(int(free.sum()), generator=generator).to(b.device)
            row[free] = row[free][order]
        return b

    return override


def forcings() -> dict[str, Override | None]:
    """What b is replaced by for each of ``ForcedScores``; None: by nothing."""
    open_, closed = (lambda b, first: torch.ones_like(b)), (lambda b, first: torch.zeros_like(b))
    return {"as_is": None, "open": open_, "closed": closed, "shuffled": shuffled()}


def probe_run(loaded: LoadedModel, data: Path, source: Path, limit: int, reporter: Reporter) -> Probe:
    """``probe`` on the validation split in ``data``, with rows of the run ``source``'s metrics.jsonl, spread evenly."""
    tokenizer = loaded.tokenizer
    stream = open_split(data, tokenizer.name, "val", tokenizer.vocab_size)
    found = probe(
        loaded.model,
        stream,
        tokenizer,
        loaded.config.train.seq_len,
        limit=limit,
        progress=lambda name, total: reporter.progress(f"{name} · {total.tokens:,} tokens · bpb {total.bpb:.4f}"),
    )
    rows = [row for row in read_metrics(source / "metrics.jsonl") if "soft" in row] if source.is_dir() else []
    count = min(HISTORY, len(rows))
    picked = [rows[round(index * (len(rows) - 1) / max(1, count - 1))] for index in range(count)]
    return dataclasses.replace(found, history=[SoftStep(row["step"], row["soft"]) for row in picked])


def probe(
    model: LanguageModel,
    stream: TokenStream,
    tokenizer: Tokenizer,
    seq_len: int,
    *,
    limit: int = 0,
    progress: Callable[[str, Score], None] | None = None,
) -> Probe:
    """What soft chunking does on ``stream``, in windows of ``seq_len``; no history.

    ``limit`` > 0 stops after about so many tokens. ``progress`` gets the name of a score and how far it is. Raises
    BytegolfError for a model without soft chunking, besides what ``score`` raises.
    """
    if model.soft is None:
        raise BytegolfError(
            "this model has no soft chunking to probe: train one with model.soft.layers=1, say cpu-soft"
        )
    found: dict[str, Score] = {}
    for name, override in forcings().items():
        report = (lambda total, name=name: progress(name, total)) if progress else None
        with model.soft.forced(override):
            found[name] = score(model, stream, tokenizer, seq_len, drop_tail=True, limit=limit, progress=report)
    total = found["as_is"]
    described = layers(model, tokenizer, of_texts([stream.slice(0, total.tokens)], seq_len))
    bpb = ForcedScores(**{name: one.bpb for name, one in found.items()})
    return Probe(total.tokens, total.bytes, bpb, described, [])


def on_texts(
    loaded: LoadedModel,
    texts: Sequence[NDArray[np.int64]],
    found: Sequence[Reading],
    starts: Bool[np.ndarray, " N"] | None,
    threshold: float,
    again: Callable[[NDArray[np.int64], str], Reading],
) -> SoftChunking | None:
    """What a model's soft chunking does on ``texts``, whose readings are ``found``; None without it.

    ``starts`` is where BPE tokens start in the joined texts, if that is compared with. ``again`` reads a text anew, and
    is told why.
    """
    model = loaded.model
    if model.soft is None:
        return None
    whole = join(found)
    bpb = {}
    for name, override in forcings().items():
        with model.soft.forced(override):
            bpb[name] = join([again(ids, f"b {name}") for ids in texts]).bpb if override else whole.bpb
    described = layers(model, loaded.tokenizer, of_texts(texts, loaded.config.train.seq_len), threshold)
    if starts is not None and not model.levels():
        for number, layer in enumerate(described):
            level = whole.level(number)
            at_tokens = extremes(level.p[level.candidates], starts[level.candidates])
            described[number] = dataclasses.replace(layer, bpe=at_tokens)
    return SoftChunking(threshold, ForcedScores(**bpb), described)


Read = tuple[Window, NDArray[np.int64]]
"""A window and the tokens that it reads; windows do not overlap and come in order."""


def of_texts(texts: Iterable[NDArray[np.integer]], seq_len: int) -> Iterator[Read]:
    """The windows of texts, one behind the other; a text's last may be shorter."""
    before = 0
    for ids in texts:
        for start in range(0, len(ids), seq_len):
            tokens = ids[start : start + seq_len].astype(np.int64)
            yield Window(before + start, len(tokens), len(tokens)), tokens
        before += len(ids)


@torch.inference_mode()
def layers(
    model: LanguageModel, tokenizer: Tokenizer, read: Iterable[Read], threshold: float = THRESHOLD
) -> list[SoftLayerFigures]:
    """What each layer does, window by window; nothing of the network behind it is needed.

    A boundary is where b ≥ ``threshold``. Raises BytegolfError where nothing is read but the starts of documents.
    """
    assert model.soft is not None
    stack = model.soft.stack
    found = [_Layer(layer, tokenizer) for layer in stack]
    for window, tokens in read:
        ids = torch.from_numpy(tokens).to(model.embedding.weight.device).unsqueeze(0)
        x = model.look_up(ids)
        traces = model.embed_traced(ids)[1]
        for one, layer, trace in zip(found, stack, traces, strict=True):
            y, _ = layer(x, trace.first)
            one.add(x, y, trace)
            one.collect(window, tokens, [as_level(trace, threshold)], 0)
            one.see_whitespace(tokens, trace)
            x = y
    return [one.figures() for one in found]


def extremes(b: Float[np.ndarray, " N"], having: Bool[np.ndarray, " N"]) -> Extremes:
    """The share of positions that have some property: all of them, and the lowest and the highest tenth of b.

    It needs no threshold, and so is there too where all of b lies close together. None without positions.
    """
    order = np.argsort(b, kind="stable")
    tenth = max(1, len(b) // 10)
    parts = having, having[order[:tenth]], having[order[-tenth:]]
    return Extremes(*(float(part.mean()) if part.size else None for part in parts))


class _Layer:
    """The figures of one layer."""

    def __init__(self, layer: SoftLayer, tokenizer: Tokenizer) -> None:
        self._layer, self._tokenizer = layer, tokenizer
        self._b: list[NDArray[np.float32]] = []
        self._touching: list[NDArray[np.bool_]] = []
        self._moved = self._whole = 0.0
        self._stats = BoundaryStats()
        self.collect = collector(self._stats, tokenizer)

    def add(self, x: Tensor, y: Tensor, trace: SoftTrace) -> None:
        """Take in a window: the layer's input and output, (1, L, D)."""
        free = ~trace.first
        mixed = self._layer.mix(x)
        alone = mixed if self._layer.mixer_bias is None else mixed - self._layer.mixer_bias.to(mixed.dtype)
        self._moved += float((y - mixed)[free].double().square().sum())
        self._whole += float(alone[free].double().square().sum())
        self._b.append(trace.b[free].float().cpu().numpy())

    def see_whitespace(self, tokens: NDArray[np.int64], trace: SoftTrace) -> None:
        """Take in which free positions touch whitespace with the first byte of their token."""
        previous = np.concatenate(([self._tokenizer.BOS], tokens[:-1]))
        sizes = self._tokenizer.byte_counts(tokens, previous)
        touching = touching_whitespace(np.frombuffer(self._tokenizer.decode(tokens), np.uint8))
        starts = np.cumsum(sizes) - sizes
        touches = np.zeros(len(tokens), np.bool_)
        touches[sizes > 0] = touching[starts[sizes > 0]]
        self._touching.append(touches[(~trace.first[0]).cpu().numpy()])

    def figures(self) -> SoftLayerFigures:
        """What ``layers`` gives for it."""
        b, touching = np.concatenate(self._b).astype(np.float64), np.concatenate(self._touching)
        if not len(b):
            raise BytegolfError("the text is so short that no b of the soft chunking is free: give a longer one")
        counts, _ = np.histogram(b, BINS, (0.0, 1.0))
        return SoftLayerFigures(
            mean=float(b.mean()),
            std=float(b.std()),
            quantiles={f"{100 * q:g}": float(np.quantile(b, q)) for q in QUANTILES},
            histogram=(counts / len(b)).tolist(),
            below_half=float((b < THRESHOLD).mean()),
            from_identity=(self._moved / self._whole) ** 0.5 if self._whole else None,
            whitespace=extremes(b, touching),
            boundaries=self._stats.figures(),
            bpe=None,
        )
