"""How firmly a router's boundaries stand: their number a window, and what a window's shift or quantised weights move.

Everything is about what routers propose, before a fixed capacity drops any of it ("raw"), over windows of a text that
do not overlap. S3 (PR #1305) reports the same: raw boundaries a sequence, flips when the window shifts, flips from
float to int6. The convention:

- A *flip* is a token at which a chunk begins in one of two readings and not in the other.
- *Positions* are the tokens at which both could: not a window's first, nor a document's where documents are apart,
  which open a chunk by architecture. To an inner level only the chunk starts of the level around it, in either
  reading, are positions.
- A *shift* reads the same tokens in windows that begin ``SHIFT`` later. What moves is counted by its distance from the
  later window's start: there the two readings differ by what lies before it, which one of them has not seen.

Legend: W windows, L tokens of a window, T tokens of a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from numpy.typing import NDArray

from bytegolf.evaluate.chunk_stats import LevelCuts, token_levels
from bytegolf.evaluate.score import windows_at_once
from bytegolf.evaluate.sliding import encode_and_route
from bytegolf.model.capacity import Capacity
from bytegolf.model.embed import BOS
from bytegolf.model.hnet import HNet
from bytegolf.model.lm import Forward, LanguageModel
from bytegolf.model.stack import Stack
from bytegolf.model.trace import RouterTrace

SHIFT = 64
"""Tokens that a window moves on: S3's evaluation stride."""

DIVISORS = (2.0, 3.0, 4.0, 6.0, 8.0)
"""Fixed capacities of an outermost level whose cost is told, whatever the model's own is; the length of an inner one is
another for each text."""


@dataclass(frozen=True)
class Cuts:
    """Where a level begins chunks in windows of a text."""

    boundary: Bool[np.ndarray, "W L"]
    free: Bool[np.ndarray, "W L"]
    """the positions: where it was up to the router"""

    @property
    def chosen(self) -> Bool[np.ndarray, "W L"]:
        """The boundaries at positions."""
        chosen: NDArray[np.bool_] = self.boundary & self.free
        return chosen


@torch.inference_mode()
def read_cuts(
    model: LanguageModel,
    ids: Integer[np.ndarray, " T"],
    starts: Sequence[int],
    length: int,
    progress: Callable[[float], None] | None = None,
) -> list[Cuts]:
    """What each level, outermost first, proposes in the windows of ``length`` tokens that begin at ``starts``."""
    found: list[list[LevelCuts]] = []
    windows = np.stack([ids[start : start + length] for start in starts]).astype(np.int64)
    device, batch = model.embedding.weight.device, windows_at_once(model, length)
    with model.capacity("exact"):
        for first in range(0, len(windows), batch):
            group = torch.from_numpy(windows[first : first + batch]).to(device)
            traces = _traces(model, group)
            found += [token_levels(traces, row) for row in range(len(group))]
            if progress:
                progress((first + len(group)) / len(windows))
    forced = windows == BOS if model.config.reset_at_bos else np.zeros(windows.shape, np.bool_)
    forced[:, 0] = True
    return [
        Cuts(np.stack([boundary for _, boundary in level]), np.stack([np.isfinite(p) for p, _ in level]) & ~forced)
        for level in zip(*found, strict=True)
    ]


def _traces(model: LanguageModel, ids: Int[torch.Tensor, "W L"]) -> list[RouterTrace]:
    """What the routers did; with one level there is no need to go on behind its router."""
    network = model.network
    if isinstance(network, HNet) and isinstance(network.main, Stack):
        _, p, boundary = encode_and_route(model, network, ids)
        return [RouterTrace(p, boundary, boundary, None, p.new_zeros(()))]
    out: Forward = model(ids)
    return out.traces


def capacities(model: LanguageModel, length: int) -> list[int | None]:
    """How many chunks of a window of ``length`` tokens each level has room for; None: for all."""
    limits: list[int | None] = []
    room: int | None = length
    for level in model.levels():
        limits.append(level.capacity.limit(room))
        room = limits[-1] or room
    return limits


def room(cuts: Cuts, limit: int | None, divisors: Sequence[float]) -> dict[str, Any]:
    """How many boundaries windows have, the first token's among them, and how many a fixed capacity cuts.

    Keys: mean, std, least, median, most (boundaries a window), limit (the model's own capacity, or None), cut_windows
    and cut_boundaries (shares; 0 without a limit), counts (pairs: boundaries, windows), divisors (rows, what other
    fixed capacities would cut: divisor, limit, cut_windows, cut_boundaries).
    """
    raw = cuts.boundary.sum(1)
    length = cuts.boundary.shape[1]
    return {
        "mean": float(raw.mean()),
        "std": float(raw.std()),
        "least": int(raw.min()),
        "median": float(np.median(raw)),
        "most": int(raw.max()),
        "limit": limit,
        **_cut(raw, limit),
        "counts": [[count, windows] for count, windows in sorted(Counter(raw.tolist()).items())],
        "divisors": [
            {"divisor": divisor, "limit": size, **_cut(raw, size)}
            for divisor in divisors
            if (size := Capacity("fixed", divisor).limit(length))
        ],
    }


def _cut(raw: Int[np.ndarray, " W"], limit: int | None) -> dict[str, float]:
    lost = np.maximum(raw - limit, 0) if limit is not None else np.zeros_like(raw)
    return {"cut_windows": float((lost > 0).mean()), "cut_boundaries": float(lost.sum() / raw.sum())}


def flips(one: Cuts, other: Cuts) -> dict[str, Any]:
    """What differs between two readings of the same windows.

    Keys: flips, appeared (those that only ``other`` has), per_window, per_position, per_boundary (of ``one``; None
    where it has none).
    """
    free = _positions(one, other)
    changed = (one.boundary != other.boundary) & free
    count = int(changed.sum())
    return {
        "flips": count,
        "appeared": int((changed & other.boundary).sum()),
        "per_window": count / len(changed),
        "per_position": _share(count, int(free.sum())),
        "per_boundary": _share(count, int((one.boundary & free).sum())),
    }


def shifted(before: Cuts, after: Cuts, by: int) -> dict[str, Any]:
    """What ``flips`` gives for the tokens that two readings have in common, of which ``after`` begins ``by`` later.

    Also: by, distances (rows: from, to, positions, flips, per_position, where a token is so far behind the start of its
    later window).
    """
    one = Cuts(before.boundary[:, by:], before.free[:, by:])
    other = Cuts(after.boundary[:, :-by], after.free[:, :-by])
    free = _positions(one, other)
    changed = ((one.boundary != other.boundary) & free).sum(0)
    total = free.sum(0)
    rows = []
    low, length = 1, free.shape[1]
    while low < length:
        high = min(2 * low, length)
        positions, moved = int(total[low:high].sum()), int(changed[low:high].sum())
        rows.append(
            {
                "from": low,
                "to": high - 1,
                "positions": positions,
                "flips": moved,
                "per_position": _share(moved, positions),
            }
        )
        low = high
    return {"by": by, **flips(one, other), "distances": rows}


def _positions(one: Cuts, other: Cuts) -> Bool[np.ndarray, "W L"]:
    """Where both readings had the choice; an inner level's, where either had: in the other one there was no chunk."""
    forced = (one.boundary & ~one.free) | (other.boundary & ~other.free)
    positions: NDArray[np.bool_] = (one.free | other.free) & ~forced
    return positions


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
