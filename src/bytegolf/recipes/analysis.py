"""Analyse where models begin chunks: read texts with each of them, and describe what they did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from bytegolf.analyze.metrics import describe
from bytegolf.analyze.reading import LevelReading, Reading, encode, join, read
from bytegolf.analyze.render import STANDARD_TEXT
from bytegolf.analyze.scripts import by_script
from bytegolf.analyze.segment import Segmentation, segment
from bytegolf.config import levels
from bytegolf.data.edges import token_starts
from bytegolf.data.manifest import MANIFEST, data_summary
from bytegolf.data.shards import TokenStream, open_split
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors
from bytegolf.model.outline import count_parameters
from bytegolf.model.router import THRESHOLD
from bytegolf.recipes.opening import Opened, holding, open_model
from bytegolf.recipes.probing import on_texts
from bytegolf.recipes.runs import RunFolder
from bytegolf.recipes.show import titled
from bytegolf.recipes.stability import stability
from bytegolf.recipes.training import initial_model
from bytegolf.train import checkpoint as store
from bytegolf.train.report import Reporter

HISTORY_BYTES = 65536
"""How much of the first text each checkpoint reads."""


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
    opened = [open_model(source, data) for source in sources]
    if threshold != THRESHOLD and not any(one.model.soft for one in opened):
        raise BytegolfError("--threshold is about the b of soft chunking, which no model here has: leave it out")
    names = _names(sources)
    folder = data or Path(opened[0].config.data.path)
    reference = _reference(edges, folder, [one.tokenizer for one in opened])
    texts = [file.name for file in files] or [f"the validation split of {folder.name}"]
    readings: list[list[Reading]] = []
    models, standard = [], []
    for source, name, one in zip(sources, names, opened, strict=True):
        tokens = list(_ids(one, data, files, limit))
        tell = _Teller(name, threshold, reporter)
        found = [tell.read(one, ids, f"reading {text}") for ids, text in zip(tokens, texts, strict=True)]
        readings.append(found)
        described, pictures = _describe(source, one, tokens, found, texts, reference, tell)
        if history:
            described["history"], pictures = _history(source, one, data, found[0], tell)
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


def _note(opened: list[Opened], reference: SentencePieceTokenizer | None, threshold: float) -> str:
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


def _reference(edges: str, folder: Path, tokenizers: list[Tokenizer]) -> SentencePieceTokenizer | None:
    """The tokenizer whose tokens' starts boundaries are compared with."""
    if edges and Path(edges).is_file():
        return SentencePieceTokenizer(Path(edges))
    names = [edges] if edges else list(data_summary(folder)) if (folder / MANIFEST).exists() else []
    for name in names:
        found = load_tokenizer(name, folder)
        if isinstance(found, SentencePieceTokenizer):
            return found
    if edges:
        raise BytegolfError(
            f"the tokenizer {edges} is made of bytes, so every byte is an edge: name a SentencePiece one"
        )
    return next((one for one in tokenizers if isinstance(one, SentencePieceTokenizer)), None)


def _ids(opened: Opened, data: Path | None, files: Sequence[Path], limit: int) -> Iterator[NDArray[np.int64]]:
    """The tokens of each text, a BOS first."""
    tokenizer = opened.tokenizer
    for file in files:
        with disk_errors(file, "read"):
            content = file.read_bytes()
        content = content[:limit] if limit else content
        if limit and not isinstance(tokenizer, ByteTokenizer):  # the cut may have gone through a character
            content = content.decode("utf-8", "ignore").encode() if _cut(content) else content
        if not content:
            raise BytegolfError(f"{file} is empty: give some text")
        yield np.concatenate(([tokenizer.BOS], encode(tokenizer, content, str(file)))).astype(np.int64)
    if not files:
        stream = open_split(data or Path(opened.config.data.path), tokenizer.name, "val", tokenizer.vocab_size)
        yield stream.slice(0, min(limit or len(stream), len(stream))).astype(np.int64)


def _cut(content: bytes) -> bool:
    """Whether nothing is wrong with the UTF-8 of ``content`` but its end."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


@dataclass(frozen=True)
class _Teller:
    """Reads with a model, and tells how far it is."""

    name: str
    """the model's"""
    threshold: float
    reporter: Reporter

    def read(self, opened: Opened, ids: NDArray[np.int64], what: str) -> Reading:
        """The tokens as the opened weights read them."""

        def show(share: float) -> None:
            self.reporter.progress(f"{self.name}: {what} · {share:.0%}")

        length = opened.config.train.seq_len
        return read(opened.model, opened.tokenizer, ids, length, show, threshold=self.threshold)

    def standard(self, opened: Opened) -> Segmentation:
        """The standard text in chunks."""
        length, threshold = opened.config.train.seq_len, self.threshold
        return segment(opened.model, opened.tokenizer, STANDARD_TEXT, length, threshold=threshold)


def _chunking(opened: Opened) -> str | None:
    """What begins a model's chunks, if anything does."""
    if levels(opened.config.model.network):
        return "router"
    return "soft" if opened.model.soft else None


def _describe(
    source: Path,
    opened: Opened,
    tokens: list[NDArray[np.int64]],
    found: list[Reading],
    texts: list[str],
    reference: SentencePieceTokenizer | None,
    tell: _Teller,
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
    stats = reading.stats(level).to_dict()
    mean = stats["mean_chunk_bytes"]
    return {**stats, **row, "mean_chunk_characters": None if mean is None else mean * characters / len(reading.data)}


def _history(
    source: Path, opened: Opened, data: Path | None, reading: Reading, tell: _Teller
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


def _moments(source: Path, opened: Opened, train: TokenStream) -> Iterator[tuple[str, int, Opened]]:
    """What to call the weights, their step, and a model with them."""
    untrained = initial_model(opened.config, opened.tokenizer, train)
    yield "untrained", 0, holding(opened, untrained.state_dict())
    step = 0
    for path in store.checkpoints(RunFolder(source).checkpoints):
        saved = store.load(path)
        step = store.step_of(path)
        state = {key: saved.averaged.get(key, tensor) for key, tensor in saved.model.items()}
        yield f"step {step:,}", step, holding(opened, state)
    yield "artifact", int(opened.artifact.info.get("steps", step)), opened


def show(console: Console, result: Analysis) -> None:
    """The tables of an analysis, then the standard text in chunks."""
    for grid in tables.grids(result.result):
        if not grid.wide:
            console.print(_grid(grid))
    console.print(result.result["note"], markup=False, soft_wrap=True)
    for title, found in result.standard:
        titled(console, title, found)


def _grid(grid: tables.Grid) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(grid.title, style="bold"), title_justify="left")
    for place, heading in enumerate(grid.head):
        drawn.add_column(Text(heading), justify="right" if place else "left", overflow="fold")
    for row in grid.rows:
        drawn.add_row(*map(Text, row))
    return drawn
