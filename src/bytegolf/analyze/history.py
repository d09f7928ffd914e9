"""How a run's chunks came about: its untrained weights, its checkpoints and its artifact, on the same text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bytegolf.analyze.metrics import describe
from bytegolf.analyze.reading import LevelReading, Reading, encode
from bytegolf.analyze.segment import Segmentation
from bytegolf.analyze.texts import Teller
from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.loading import LoadedModel, with_weights
from bytegolf.artifact.run_folder import RunFolder
from bytegolf.config import levels
from bytegolf.data.shards import TokenStream, open_split
from bytegolf.errors import BytegolfError
from bytegolf.training.setup import initial_model

HISTORY_BYTES = 65536
"""How much of the first text each checkpoint reads."""


def history_of(
    source: Path, opened: LoadedModel, data: Path | None, reading: Reading, tell: Teller
) -> tuple[list[dict[str, Any]], list[tuple[str, Segmentation]]]:
    """A run's untrained weights (made again from its seed), its checkpoints and its artifact, on the first text."""
    if not source.is_dir():
        raise BytegolfError(
            f"{source} is an artifact, which knows only its last weights: --history needs a run's folder"
        )
    if not reading.levels:
        return [], []
    config, tokenizer = opened.config, opened.tokenizer
    train = open_split(data or Path(config.data.path), tokenizer.name, "train", tokenizer.vocab_size)
    text = reading.data[:HISTORY_BYTES].decode("utf-8", "ignore").encode() or reading.data[:HISTORY_BYTES]
    ids = np.concatenate(([tokenizer.BOS], encode(tokenizer, text, "the text"))).astype(np.int64)
    points, pictures = [], []
    for what, step, one in _moments(source, opened, train):
        found = tell.read(one, ids, what)
        figures = describe(found, 0)
        standard = tell.standard(one)
        pictures.append((f"{tell.name}, {what}", standard))
        keys = ("whitespace_agreement", "mean_chunk_bytes", "cv", "boundaries_per_256_bytes")
        points.append(
            {
                "what": what,
                "step": step,
                "bpb": found.bpb,
                **{key: figures[key] for key in keys},
                "enrichment": figures["surprisal"]["enrichment"],
                "b": None if levels(config.model.network) else _mean_b(found.levels[0]),
                "chunks": standard.offsets(),
            }
        )
    return points, [pictures[0], pictures[-1]]


def _mean_b(level: LevelReading) -> float | None:
    return float(level.p[level.candidates].mean()) if level.candidates.any() else None


def _moments(source: Path, opened: LoadedModel, train: TokenStream) -> Iterator[tuple[str, int, LoadedModel]]:
    """What to call the weights, their step, and a model with them."""
    untrained = initial_model(opened.config, opened.tokenizer, train)
    yield "untrained", 0, with_weights(opened, untrained.state_dict())
    step = 0
    for path in store.checkpoints(RunFolder(source).checkpoints):
        saved = store.load(path)
        step = store.step_of(path)
        state = {key: saved.averaged.get(key, tensor) for key, tensor in saved.model.items()}
        yield f"step {step:,}", step, with_weights(opened, state)
    yield "artifact", int(opened.artifact.info.get("steps", step)), opened
