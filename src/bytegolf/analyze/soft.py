"""Does soft chunking chunk, or is it the identity? b, what it does to its input, and what the score makes of it.

- How b is distributed, position by position.
- Distance from the identity: ‖out − out at b = 1‖ / ‖W·x‖ over all positions where b is free. W alone is not counted,
  which a layer that never chunks has as well.
- The score with b as it is, with 1 everywhere (never blends), 0 everywhere, and with the b of each window shuffled
  among its positions: what the trained model owes to it, and to its places. Nothing is trained again for that.
- Where b is high and where it is low: the share of its lowest and highest tenth that touch whitespace
  (``analyze.boundaries`` says what that means), and the boundaries that b ≥ ½ would be.

Legend: B windows, L positions of a window, N positions altogether.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bytegolf.analyze.boundaries import BoundaryStats, touching_whitespace
from bytegolf.analyze.segment import collector
from bytegolf.data.shards import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.bpb import Score, score
from bytegolf.evaluate.windows import windows
from bytegolf.model.lm import LanguageModel
from bytegolf.model.router import THRESHOLD
from bytegolf.model.soft_chunk import Override, SoftLayer
from bytegolf.model.trace import LevelTrace, SoftTrace

BINS = 20
"""Of the histogram of b over [0, 1]."""

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)

SEED = 0
"""Of the shuffling."""


def constant(value: float) -> Override:
    """The same b everywhere."""
    return lambda b, first: torch.full_like(b, value)


def shuffled(seed: int = SEED) -> Override:
    """Moves each window's b, where it is free, to random such positions of that window; the same ones for the same seed
    and calls.
    """
    generator = torch.Generator().manual_seed(seed)

    def override(b: Tensor, first: Tensor) -> Tensor:
        b = b.clone()
        for row, free in zip(b, ~first, strict=True):
            order = torch.randperm(int(free.sum()), generator=generator).to(b.device)
            row[free] = row[free][order]
        return b

    return override


def probe(
    model: LanguageModel,
    stream: TokenStream,
    tokenizer: Tokenizer,
    seq_len: int,
    *,
    limit: int = 0,
    progress: Callable[[str, Score], None] | None = None,
) -> dict[str, Any]:
    """What soft chunking does on ``stream``, in windows of ``seq_len``, as plain data.

    Keys: tokens, bytes, bpb (as_is, open: b = 1, closed: b = 0, shuffled) and layers, first to last, each with what
    ``_Layer.to_dict`` gives. ``limit`` > 0 stops after about so many tokens. ``progress`` gets the name of a score and
    how far it is.

    Raises BytegolfError for a model without soft chunking, besides what ``score`` raises.
    """
    if model.soft is None:
        raise BytegolfError(
            "this model has no soft chunking to probe: train one with model.soft.layers=1, say cpu-soft"
        )
    forced: dict[str, Override | None] = {
        "as_is": None,
        "open": constant(1),
        "closed": constant(0),
        "shuffled": shuffled(),
    }
    found: dict[str, Score] = {}
    for name, override in forced.items():
        report = (lambda total, name=name: progress(name, total)) if progress else None
        with model.soft.forced(override):
            found[name] = score(model, stream, tokenizer, seq_len, drop_tail=True, limit=limit, progress=report)
    layers = _layers(model, stream, tokenizer, seq_len, found["as_is"].tokens)
    return {
        "tokens": found["as_is"].tokens,
        "bytes": found["as_is"].bytes,
        "bpb": {name: total.bpb for name, total in found.items()},
        "layers": [layer.to_dict() for layer in layers],
    }


@torch.inference_mode()
def _layers(
    model: LanguageModel, stream: TokenStream, tokenizer: Tokenizer, seq_len: int, targets: int
) -> list[_Layer]:
    """What each layer does, window by window; nothing of the network behind it is needed."""
    assert model.soft is not None
    stack = model.soft.stack
    found = [_Layer(layer, tokenizer) for layer in stack]
    covered = 0
    for window in windows(targets, seq_len):
        if window.start < covered:
            break
        covered = window.start + window.length
        tokens = stream.slice(window.start, covered + 1).astype(np.int64)
        ids = torch.from_numpy(tokens[:-1]).to(model.embedding.weight.device).unsqueeze(0)
        x = model.look_up(ids)
        traces = model.embed_traced(ids)[1]
        for one, layer, trace in zip(found, stack, traces, strict=True):
            y, _ = layer(x, trace.first)
            one.add(x, y, trace)
            one.collect(window, tokens, [_as_level(trace)], 0)
            one.see_whitespace(tokens[:-1], trace)
            x = y
    return found


def _as_level(trace: SoftTrace) -> LevelTrace:
    """The boundaries b ≥ ½ as a router's."""
    boundary = trace.b >= THRESHOLD
    return LevelTrace(trace.p, boundary, boundary, None, trace.p.new_zeros(()))


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
        starts = np.minimum(np.cumsum(sizes) - sizes, len(touching) - 1)
        self._touching.append((touching[starts] & (sizes > 0))[(~trace.first[0]).cpu().numpy()])

    def to_dict(self) -> dict[str, Any]:
        """Keys: mean, std, quantiles (by percent), histogram (shares of BINS equal parts of [0, 1]), below_half,
        from_identity (the distance), whitespace (the share of positions that touch it: all, lowest and highest tenth
        of b) and boundaries (b ≥ ½, the keys of BoundaryStats).
        """
        b, touching = np.concatenate(self._b).astype(np.float64), np.concatenate(self._touching)
        counts, _ = np.histogram(b, BINS, (0.0, 1.0))
        order = np.argsort(b, kind="stable")
        tenth = max(1, len(b) // 10)
        return {
            "mean": float(b.mean()),
            "std": float(b.std()),
            "quantiles": {f"{100 * q:g}": float(np.quantile(b, q)) for q in QUANTILES},
            "histogram": (counts / len(b)).tolist(),
            "below_half": float((b < THRESHOLD).mean()),
            "from_identity": (self._moved / self._whole) ** 0.5 if self._whole else None,
            "whitespace": {
                "all": float(touching.mean()),
                "lowest": float(touching[order[:tenth]].mean()),
                "highest": float(touching[order[-tenth:]].mean()),
            },
            "boundaries": self._stats.to_dict(),
        }
