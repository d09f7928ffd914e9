"""How firmly an artifact's boundaries stand: on a text, against the text's shift and against the weights' bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from bytegolf.analyze.stability import DIVISORS, SHIFT, Cuts, capacities, flips, read_cuts, room, shifted
from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.export import Latest, latest
from bytegolf.artifact.loading import LoadedModel, with_weights
from bytegolf.artifact.plan import plan_of
from bytegolf.artifact.quantize import fake_quantize
from bytegolf.artifact.run_folder import RunFolder
from bytegolf.config import Config
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.sliding import router_receptive_field
from bytegolf.model.hnet import HNet
from bytegolf.model.outline import outline
from bytegolf.model.storage import storage_kinds
from bytegolf.progress import Reporter

BITS = (8, 6)
"""Widths of the weights whose boundaries are compared with those of the float weights."""


def stability(
    source: Path, opened: LoadedModel, texts: Sequence[Int[np.ndarray, " T"]], name: str, reporter: Reporter
) -> dict[str, Any] | None:
    """What ``analyze.stability`` finds on windows of ``texts``; None for a model without routers.

    Keys: windows, length (tokens of a window), checkpoint (the step whose float weights are compared with quantised
    ones; None for an artifact file, which has none), reach (tokens before its own that decide an outermost boundary,
    as far as the encoder has to do with it; None: all) and levels, outermost first: ``room``'s keys, shift
    (``shifted``'s keys) and weights (rows of ``flips`` against the float weights, with: weights).

    Raises BytegolfError where no text has room for a window and its shift.
    """
    if not isinstance(opened.model.network, HNet):
        return None
    length = opened.config.train.seq_len
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

    shipped = cuts(opened, starts, "boundaries")
    moved = cuts(opened, [start + by for start in starts], f"boundaries, shifted by {by}")
    levels = [
        {**room(one, limit, () if depth else DIVISORS), "shift": shifted(one, other, by), "weights": []}
        for depth, (one, other, limit) in enumerate(zip(shipped, moved, capacities(opened.model, length), strict=True))
    ]
    saved = _latest(source)
    if saved:
        exact = cuts(with_weights(opened, saved.state), starts, "float weights")
        for what, state in _quantised(opened.config, saved.state):
            found = cuts(with_weights(opened, state), starts, what)
            _compare(levels, exact, found, what)
        if opened.artifact.info.get("steps") == saved.progress.step:
            _compare(levels, exact, shipped, "the artifact")
    return {
        "windows": len(starts),
        "length": length,
        "checkpoint": saved.progress.step if saved else None,
        "reach": router_receptive_field(opened.model, opened.model.network),
        "levels": levels,
    }


def _starts(texts: Sequence[Int[np.ndarray, " T"]], length: int, by: int) -> Iterator[int]:
    """Where windows begin in the texts put one behind the other, so that their shifts end in the same text."""
    offset = 0
    for text in texts:
        yield from range(offset, offset + len(text) - length - by + 1, length)
        offset += len(text)


def _latest(source: Path) -> Latest | None:
    """The float weights of a run, where it still has them."""
    return latest(source) if source.is_dir() and store.checkpoints(RunFolder(source).checkpoints) else None


def _quantised(config: Config, state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What the export would make of ``state`` with each of ``BITS``, its other settings as configured, without GPTQ."""
    kinds = storage_kinds(outline(config.model))
    for bits in BITS:
        plan = plan_of(state, kinds, dataclasses.replace(config.export, bits=bits))
        yield f"{bits} bits", {name: fake_quantize(tensor, plan[name]) for name, tensor in state.items()}


def _compare(levels: list[dict[str, Any]], one: list[Cuts], other: list[Cuts], what: str) -> None:
    for level, before, after in zip(levels, one, other, strict=True):
        level["weights"].append({"weights": what, **flips(before, after)})
