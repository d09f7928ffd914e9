"""Analyse where models begin chunks: read texts with each of them, and describe what they did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bytegolf.analyze import tables
from bytegolf.analyze.grid import Grid
from bytegolf.analyze.history import history_of
from bytegolf.analyze.metrics import describe
from bytegolf.analyze.probing import on_texts
from bytegolf.analyze.reading import Reading, join
from bytegolf.analyze.render import titled
from bytegolf.analyze.scripts import by_script
from bytegolf.analyze.segment import Segmentation
from bytegolf.analyze.stability_run import stability
from bytegolf.analyze.texts import Teller, reference_tokenizer, text_tokens
from bytegolf.artifact.loading import LoadedModel, load_model
from bytegolf.config import levels
from bytegolf.data.bpe_boundaries import token_starts
from bytegolf.data.tokenizer import SentencePieceTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.model.outline import count_parameters
from bytegolf.model.routers.base import THRESHOLD
from bytegolf.progress import Reporter
from bytegolf.results import to_json


@dataclass(frozen=True)
class Analysis:
    """What came of it."""

    result: dict[str, Any]
    """plain data, see ``analyze``"""
    readings: list[list[Reading]]
    """[model][text]"""
    standard: list[tuple[str, Segmentation]]
    """the standard text, a title for each segmentation"""


def analyze(
    sources: Sequence[Path],
    data: Path | None,
    files: Sequence[Path],
    *,
    limit: int = 0,
    edges: str = "",
    history: bool = False,
    firmness: bool = False,
    threshold: float = THRESHOLD,
    reporter: Reporter,
) -> Analysis:
    """Read ``files``, or else the validation split, with the models of ``sources``.

    ``limit`` > 0: that many tokens of a split, or bytes of a file. ``edges``: the SentencePiece tokenizer to compare
    boundaries with, a file or a name in the data folder; "" takes the folder's first one, if any. ``history`` adds a
    run's untrained weights and its checkpoints, ``firmness`` what moves the boundaries. Soft chunking is said to begin
    a chunk from a b of ``threshold`` on.

    Keys of the result: texts (name, bytes), edges (that tokenizer's name or None), note, models: a list of model
    (path), name, tokenizer, params, bpb, bytes, texts (a row each, as scripts), scripts (``scripts.by_script``),
    chunking (what begins chunks: "router", "soft" or None), levels (``metrics.describe`` of each router's level,
    outermost first, or else of each layer of soft chunking; empty for a flat model), soft (None, or what
    ``probing.on_texts`` gives), history (None, or for each point: what, step, bpb, whitespace_agreement,
    mean_chunk_bytes, cv, boundaries_per_256_bytes, enrichment, b: the mean of the first soft layer's or None, chunks:
    byte offsets of chunk starts in the standard text), stability (None, or what ``recipes.stability`` gives).
    """
    opened = [load_model(source, data) for source in sources]
    if threshold != THRESHOLD and not any(one.model.soft for one in opened):
        raise BytegolfError("--threshold is about the b of soft chunking, which no model here has: leave it out")
    names = _names(sources)
    folder = data or Path(opened[0].config.data.path)
    reference = reference_tokenizer(edges, folder, [one.tokenizer for one in opened])
    texts = [file.name for file in files] or [f"the validation split of {folder.name}"]
    readings: list[list[Reading]] = []
    models, standard = [], []
    for source, name, one in zip(sources, names, opened, strict=True):
        tokens = list(text_tokens(one, data, files, limit))
        tell = Teller(name, threshold, reporter)
        found = [tell.read(one, ids, f"reading {text}") for ids, text in zip(tokens, texts, strict=True)]
        readings.append(found)
        described, pictures = _describe(source, one, tokens, found, texts, reference, tell)
        if history:
            described["history"], pictures = history_of(source, one, data, found[0], tell)
        if firmness:
            described["stability"] = stability(source, one, tokens, name, reporter)
        models.append(described)
        standard += pictures
    result = {
        "texts": [{"name": text, "bytes": len(one.data)} for text, one in zip(texts, readings[0], strict=True)],
        "edges": reference.name if reference else None,
        "note": _note(opened, reference, threshold),
        "models": models,
    }
    return Analysis(result, readings, standard)


def _names(sources: Sequence[Path]) -> list[str]:
    """The last part of each path; all of it where that is not enough."""
    short = [source.resolve().name for source in sources]
    return short if len(set(short)) == len(short) else [str(source) for source in sources]


def _note(opened: list[LoadedModel], reference: SentencePieceTokenizer | None, threshold: float) -> str:
    """What the reader of the figures has to know."""
    lengths = sorted({one.config.train.seq_len for one in opened})
    said = f"Read in windows of {', '.join(f'{length:,}' for length in lengths)} tokens that do not overlap."
    kinds = {_chunking(one) for one in opened}
    if None in kinds:
        said += " A flat model has no router: there is only its surprisal to show."
    if "soft" in kinds:
        said += f" Soft chunking cuts nothing: where its b is {threshold:g} or more, a chunk is said to begin."
    if reference:
        said += f" BPE edges are the starts of {reference.name}'s tokens."
    return said


def _chunking(opened: LoadedModel) -> str | None:
    """What begins a model's chunks, if anything does."""
    if levels(opened.config.model.network):
        return "router"
    return "soft" if opened.model.soft else None


def _describe(
    source: Path,
    opened: LoadedModel,
    tokens: list[NDArray[np.int64]],
    found: list[Reading],
    texts: list[str],
    reference: SentencePieceTokenizer | None,
    tell: Teller,
) -> tuple[dict[str, Any], list[tuple[str, Segmentation]]]:
    """A model's part of the result, and the standard text as it cuts it."""

    def again(ids: NDArray[np.int64], what: str) -> Reading:
        return tell.read(opened, ids, what)

    whole = join(found)
    depth = len(whole.levels)
    edges = np.concatenate([token_starts(reference, one.data) for one in found]) if reference and depth else None
    outermost = 0 if depth else None
    described = {
        "model": str(source),
        "name": tell.name,
        "tokenizer": opened.tokenizer.name,
        "params": count_parameters(opened.model),
        "bpb": whole.bpb,
        "bytes": len(whole.data),
        "texts": [{"text": text, **_row(one, outermost)} for text, one in zip(texts, found, strict=True)],
        "scripts": by_script(whole, outermost),
        "chunking": _chunking(opened),
        "levels": [describe(whole, level, edges) for level in range(depth)],
        "soft": on_texts(opened, tokens, found, edges, tell.threshold, again),
        "history": None,
        "stability": None,
    }
    return described, [(tell.name, tell.standard(opened))] if depth else []


def _row(reading: Reading, level: int | None) -> dict[str, Any]:
    """A text's own figures."""
    characters = sum((byte & 0xC0) != 0x80 for byte in reading.data)
    row: dict[str, Any] = {"bytes": len(reading.data), "characters": characters, "bpb": reading.bpb}
    if level is None:
        return row
    stats = to_json(reading.stats(level).figures())
    mean = stats["mean_chunk_bytes"]
    return {**stats, **row, "mean_chunk_characters": None if mean is None else mean * characters / len(reading.data)}


def show(console: Console, result: Analysis) -> None:
    """The tables of an analysis, then the standard text in chunks."""
    for grid in tables.grids(result.result):
        if not grid.wide:
            console.print(_grid(grid))
    console.print(result.result["note"], markup=False, soft_wrap=True)
    for title, found in result.standard:
        titled(console, title, found)


def _grid(grid: Grid) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(grid.title, style="bold"), title_justify="left")
    for place, heading in enumerate(grid.head):
        drawn.add_column(Text(heading), justify="right" if place else "left", overflow="fold")
    for row in grid.rows:
        drawn.add_row(*map(Text, row))
    return drawn
