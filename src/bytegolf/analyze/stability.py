"""How firmly a router's boundaries stand: their number per window, and what a shift or quantised weights move.

Everything is about what routers propose, before a fixed capacity drops any of it ("raw"), over windows of a text that
do not overlap. S3 (PR #1305) reports the same: raw boundaries per sequence, flips when the window shifts, flips from
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

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer
from numpy.typing import NDArray
from torch import Tensor

from bytegolf.analyze import stability_results
from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.export import latest
from bytegolf.artifact.loading import LoadedModel, with_weights
from bytegolf.artifact.quantize import fake_quantize, plan_of
from bytegolf.artifact.run_folder import RunFolder
from bytegolf.config import Config
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.boundaries import LevelCuts, ratio, token_levels
from bytegolf.evaluate.score import windows_at_once
from bytegolf.evaluate.sliding import encode_and_route, router_receptive_field
from bytegolf.model.chunk import Capacity
from bytegolf.model.hnet import HNet
from bytegolf.model.layers import storage_kinds
from bytegolf.model.lm import Forward, LanguageModel, outline
from bytegolf.model.stack import Stack
from bytegolf.model.trace import RouterTrace
from bytegolf.progress import Reporter

SHIFT = 64
"""Tokens that a window moves on: S3's evaluation stride."""

BITS = (8, 6)
"""Widths of the weights whose boundaries are compared with those of the float weights."""

DIVISORS = (2.0, 3.0, 4.0, 6.0, 8.0)
"""Fixed capacities of an outermost level whose cost is told, whatever the model's own is; the length of an inner one is
another for each text."""


@dataclass(frozen=True)
class Cuts:
    """Where a level begins chunks in windows of a text."""

    boundary: Bool[np.ndarray, "W L"]
    free: Bool[np.ndarray, "W L"]
    """the positions: where it was up to the router"""


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
    forced = windows == model.config.bos if model.config.reset_at_bos else np.zeros(windows.shape, np.bool_)
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


def room(cuts: Cuts, limit: int | None, divisors: Sequence[float]) -> stability_results.Room:
    """How many boundaries windows have, the first token's among them, and how many a fixed capacity cuts.

    ``limit`` is the model's own capacity (None: it cuts nothing), ``divisors`` are those of others.
    """
    raw = cuts.boundary.sum(1)
    length = cuts.boundary.shape[1]
    others = [(divisor, Capacity("fixed", divisor).limit(length)) for divisor in divisors]
    cut_windows, cut_boundaries = _cut(raw, limit)
    return stability_results.Room(
        mean=float(raw.mean()),
        std=float(raw.std()),
        least=int(raw.min()),
        median=float(np.median(raw)),
        most=int(raw.max()),
        limit=limit,
        cut_windows=cut_windows,
        cut_boundaries=cut_boundaries,
        counts=sorted(Counter(raw.tolist()).items()),
        divisors=[stability_results.CapacityCost(divisor, size, *_cut(raw, size)) for divisor, size in others if size],
    )


def _cut(raw: Int[np.ndarray, " W"], limit: int | None) -> tuple[float, float]:
    """The share of windows that lose boundaries to a limit, and the share of boundaries that are lost."""
    lost = np.maximum(raw - limit, 0) if limit is not None else np.zeros_like(raw)
    return float((lost > 0).mean()), float(lost.sum() / raw.sum())


def flips(one: Cuts, other: Cuts) -> stability_results.Flips:
    """What differs between two readings of the same windows; ``per_boundary`` is per boundary of ``one``."""
    free = _positions(one, other)
    changed = (one.boundary != other.boundary) & free
    count = int(changed.sum())
    return stability_results.Flips(
        flips=count,
        appeared=int((changed & other.boundary).sum()),
        per_window=count / len(changed),
        per_position=ratio(count, int(free.sum())),
        per_boundary=ratio(count, int((one.boundary & free).sum())),
    )


def shifted(before: Cuts, after: Cuts, by: int) -> stability_results.ShiftFlips:
    """What differs at the tokens that two readings have in common, of which ``after`` begins ``by`` later.

    With windows of 8 tokens and ``by`` = 2, a window reads tokens 0 … 7 and its shift 2 … 9. Tokens 2 … 7 are in both:
    the last 6 columns of ``before`` and the first 6 of ``after``. The distances behind the shift's start are doubled
    from row to row: 1, 2–3, 4–5 (and on to 6–7, if the window were longer). Distance 0 is no position, as the later
    window's first token always opens a chunk.
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
        rows.append(stability_results.DistanceFlips(low, high - 1, positions, moved, ratio(moved, positions)))
        low = high
    return stability_results.ShiftFlips(**vars(flips(one, other)), by=by, distances=rows)


def _positions(one: Cuts, other: Cuts) -> Bool[np.ndarray, "W L"]:
    """Where both readings had the choice; of an inner level, where either had: in the other there was no chunk."""
    forced = (one.boundary & ~one.free) | (other.boundary & ~other.free)
    positions: NDArray[np.bool_] = (one.free | other.free) & ~forced
    return positions


def stability(
    source: Path, loaded: LoadedModel, texts: Sequence[Int[np.ndarray, " T"]], name: str, reporter: Reporter
) -> stability_results.Stability | None:
    """What moves the boundaries of a run or artifact ``source`` on windows of ``texts``; None without routers.

    Raises BytegolfError where no text has room for a window and its shift.
    """
    model = loaded.model
    if not isinstance(model.network, HNet):
        return None
    length = loaded.config.train.seq_len
    by = min(SHIFT, length // 2)
    ids = np.concatenate(texts)
    starts = list(_starts(texts, length, by))
    if not starts:
        raise BytegolfError(
            f"no text has the {length + by:,} tokens of a window of {name} and its shift, which --stability looks at: "
            "give a longer one, or a higher --limit"
        )

    def cuts(one: LoadedModel, begin: Sequence[int], what: str) -> list[Cuts]:
        return read_cuts(
            one.model, ids, begin, length, lambda share: reporter.progress(f"{name}: {what} · {share:.0%}")
        )

    shipped = cuts(loaded, starts, "boundaries")
    moved = cuts(loaded, [start + by for start in starts], f"boundaries, shifted by {by}")
    # what quantised weights move is told against the float ones, which only a run's folder has
    compared: dict[str, list[Cuts]] = {}
    exact = shipped
    saved = latest(source) if source.is_dir() and store.checkpoints(RunFolder(source).checkpoints) else None
    if saved:
        exact = cuts(with_weights(loaded, saved.state), starts, "float weights")
        for what, state in _quantised(loaded.config, saved.state):
            compared[what] = cuts(with_weights(loaded, state), starts, what)
        if loaded.artifact.info.get("steps") == saved.progress.step:
            compared["the artifact"] = shipped
    levels = [
        stability_results.StabilityLevel(
            **vars(room(one, limit, () if depth else DIVISORS)),
            shift=shifted(one, moved[depth], by),
            weights=[
                stability_results.WeightFlips(**vars(flips(exact[depth], found[depth])), weights=what)
                for what, found in compared.items()
            ],
        )
        for depth, (one, limit) in enumerate(zip(shipped, capacities(model, length), strict=True))
    ]
    step = saved.progress.step if saved else None
    return stability_results.Stability(len(starts), length, step, router_receptive_field(model, model.network), levels)


def _starts(texts: Sequence[Int[np.ndarray, " T"]], length: int, by: int) -> Iterator[int]:
    """Where windows begin in the texts put one behind the other, so that their shifts end in the same text."""
    offset = 0
    for text in texts:
        yield from range(offset, offset + len(text) - length - by + 1, length)
        offset += len(text)


def _quantised(config: Config, state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What the export would make of ``state`` with each of ``BITS``, its other settings as configured, without GPTQ."""
    kinds = storage_kinds(outline(config.model))
    for bits in BITS:
        plan = plan_of(state, kinds, dataclasses.replace(config.export, bits=bits))
        yield f"{bits} bits", {name: fake_quantize(tensor, plan[name]) for name, tensor in state.items()}
