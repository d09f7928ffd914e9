"""Analyse where models begin chunks: read texts with each of them, and describe what they did."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64
from rich.console import Console

from bytegolf.analyze import soft
from bytegolf.analyze.incremental import IncrementalReader, StateCache
from bytegolf.analyze.metrics import describe, mean
from bytegolf.analyze.packing import ShownText
from bytegolf.analyze.parts import by_script, by_text
from bytegolf.analyze.reading import NamedText, Reading, document, join, read, text_tokens
from bytegolf.analyze.results import AnalysisResult, ModelAnalysis, Moment, TextInfo
from bytegolf.analyze.segment import STANDARD_TEXT, Segmentation, excerpt, excerpt_of, segment, titled
from bytegolf.analyze.stability import stability
from bytegolf.analyze.tables import grids
from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.loading import LoadedModel, data_of, load_model, with_weights
from bytegolf.artifact.run_folder import RunFolder, data_folder
from bytegolf.config import levels
from bytegolf.data.bpe_boundaries import token_starts
from bytegolf.data.dataset import MANIFEST, data_summary, open_split
from bytegolf.data.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import STDIN
from bytegolf.model.lm import count_parameters
from bytegolf.model.routers.base import THRESHOLD
from bytegolf.progress import Reporter
from bytegolf.training.setup import initial_model

HISTORY_BYTES = 65536
"""How much of the first text each checkpoint reads."""

Tokens = Int64[np.ndarray, " T"]


@dataclass(frozen=True)
class Analysis:
    """An analysis, with what a page or a terminal shows besides."""

    result: AnalysisResult
    readings: list[list[Reading]]
    """[model][text]"""
    standard: list[tuple[str, Segmentation]]
    """the beginning of the first text, a title for each segmentation"""
    shown: list[list[ShownText]]
    """[model][text]: what a page shows of it; empty without a page"""

    def show(self, console: Console) -> None:
        """The tables, then the beginning of the first text in chunks."""
        for grid in grids(self.result.models):
            if not grid.wide:
                console.print(grid.drawn())
        console.print(self.result.note, soft_wrap=True)
        for title, found in self.standard:
            titled(console, title, found)


def analyze(
    sources: Sequence[Path],
    data: Path | None,
    texts: Sequence[NamedText],
    *,
    limit: int = 0,
    bpe: str = "",
    history: bool = False,
    stable: bool = False,
    threshold: float = THRESHOLD,
    show: int = 0,
    reporter: Reporter,
) -> Analysis:
    """Read ``texts``, or else the validation split, with the models of ``sources``.

    ``limit`` > 0: that many tokens of a split, or bytes of a file. ``bpe``: the SentencePiece tokenizer to compare
    boundaries with, a file or a name in the data folder; "" takes the folder's first one, if any. ``history`` adds a
    run's untrained weights and its checkpoints, ``stable`` what moves the boundaries. Soft chunking is said to begin a
    chunk from a b of ``threshold`` on. The first ``show`` tokens of the texts, in equal parts, are kept for a page.
    """
    loaded = [load_model(source, data) for source in sources]
    if threshold != THRESHOLD and not any(one.model.soft for one in loaded):
        raise BytegolfError("--threshold is about the b of soft chunking, which no model here has: leave it out")
    names = called(sources)
    folder = data or data_folder(loaded[0].path.parent, loaded[0].config) if texts else data_of(loaded[0], data)
    reference = reference_tokenizer(bpe, folder, [one.tokenizer for one in loaded])
    titles = called([text.path for text in texts]) or [f"the validation split of {folder.name if folder else ''}"]
    readings: list[list[Reading]] = []
    models: list[ModelAnalysis] = []
    standard: list[tuple[str, Segmentation]] = []
    beginning = b""
    shown: list[list[ShownText]] = []
    for source, name, one in zip(sources, names, loaded, strict=True):
        reader = _Reader(name, threshold, reporter)
        tokens = list(text_tokens(one, data, texts, limit))
        found = [reader.read(one, ids, f"reading {text}") for ids, text in zip(tokens, titles, strict=True)]
        readings.append(found)
        if show:
            looking, size = IncrementalReader(one, StateCache(0), threshold=threshold), max(1, show // len(tokens))
            shown.append([ShownText.of(looking.read_ids(ids[: size + 1]), one.tokenizer, reference) for ids in tokens])
        whole = join(found)
        beginning = beginning or excerpt_of(one.tokenizer, tokens[0])
        depth = len(whole.levels)
        starts = np.concatenate([token_starts(reference, each.data) for each in found]) if reference and depth else None
        moments, pictures = None, [(name, reader.beginning(one, beginning))] if depth else []
        if history:
            moments, pictures = _history(source, one, data, found[0], reader)
        standard += pictures
        outermost = 0 if depth else None
        models.append(
            ModelAnalysis(
                model=str(source),
                name=name,
                tokenizer=one.tokenizer.name,
                params=count_parameters(one.model),
                bpb=whole.bpb,
                bytes=len(whole.data),
                texts=[by_text(each, outermost, title) for title, each in zip(titles, found, strict=True)],
                scripts=by_script(whole, outermost),
                chunking=_chunking(one),
                levels=[describe(whole, level, starts) for level in range(depth)],
                soft=soft.on_texts(one, tokens, found, starts, threshold, functools.partial(reader.read, one)),
                history=moments,
                stability=stability(source, one, tokens, name, reporter) if stable else None,
            )
        )
    read_texts = [TextInfo(text, len(each.data)) for text, each in zip(titles, readings[0], strict=True)]
    note = _note(loaded, reference, threshold)
    result = AnalysisResult(read_texts, reference.name if reference else None, note, models)
    return Analysis(result, readings, standard, shown)


def called(paths: Sequence[Path]) -> list[str]:
    """The names of files or folders; the whole paths, as they were given, of those whose name others have as well."""
    names = [path.resolve().name if path != STDIN else "stdin" for path in paths]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


@dataclass(frozen=True)
class _Reader:
    """Reads with a model, and tells how far it is."""

    name: str
    """the model's"""
    threshold: float
    reporter: Reporter

    def read(self, loaded: LoadedModel, ids: Tokens, what: str) -> Reading:
        """The tokens as these weights read them."""

        def show(share: float) -> None:
            self.reporter.progress(f"{self.name}: {what} · {share:.0%}")

        length = loaded.config.train.seq_len
        return read(loaded.model, loaded.tokenizer, ids, length, show, threshold=self.threshold)

    def beginning(self, loaded: LoadedModel, text: bytes) -> Segmentation:
        """A text's beginning in chunks."""
        length, threshold = loaded.config.train.seq_len, self.threshold
        return segment(loaded.model, loaded.tokenizer, excerpt(text) or STANDARD_TEXT, length, threshold=threshold)


def reference_tokenizer(bpe: str, folder: Path | None, own: Sequence[Tokenizer]) -> SentencePieceTokenizer | None:
    """The tokenizer with whose token starts boundaries are compared.

    It is ``bpe``, a file or a name in the data folder; without it, the folder's first, or one of the models' ``own``.
    """
    if bpe and Path(bpe).is_file():
        return SentencePieceTokenizer(Path(bpe))
    if folder is not None:
        names = [bpe] if bpe else list(data_summary(folder)) if (folder / MANIFEST).exists() else []
        for name in names:
            found = load_tokenizer(name, folder)
            if isinstance(found, SentencePieceTokenizer):
                return found
    elif bpe:
        raise BytegolfError(f"{bpe} is no file, and there is no data folder to look for it in: name one with --data")
    if bpe:
        raise BytegolfError(
            f"the tokenizer {bpe} is made of bytes, so a token starts at every byte: name a SentencePiece one"
        )
    return next((one for one in own if isinstance(one, SentencePieceTokenizer)), None)


def _note(loaded: Sequence[LoadedModel], reference: SentencePieceTokenizer | None, threshold: float) -> str:
    """What the reader of the figures has to know."""
    lengths = sorted({one.config.train.seq_len for one in loaded})
    said = f"Read in windows of {', '.join(f'{length:,}' for length in lengths)} tokens that do not overlap."
    kinds = {_chunking(one) for one in loaded}
    if None in kinds:
        said += " A flat model has no router: there is only its surprisal to show."
    if "soft" in kinds:
        said += f" Soft chunking cuts nothing: where its b is {threshold:g} or more, a chunk is said to begin."
    if reference:
        said += f" BPE boundaries are the starts of {reference.name}'s tokens."
    return said


def _chunking(loaded: LoadedModel) -> Literal["router", "soft"] | None:
    """What begins a model's chunks, if anything does."""
    if levels(loaded.config.model.network):
        return "router"
    return "soft" if loaded.model.soft else None


# ---------------------------------------------------------------------------------------------- over training


def _history(
    source: Path, loaded: LoadedModel, data: Path | None, reading: Reading, reader: _Reader
) -> tuple[list[Moment], list[tuple[str, Segmentation]]]:
    """How a run's chunks came about: its untrained weights, made again from its seed, its checkpoints and its artifact
    read the same text. With it its beginning in the chunks of the first and of the last.
    """
    if not source.is_dir():
        raise BytegolfError(
            f"{source} is an artifact, which knows only its last weights: --history needs a run's folder"
        )
    if not reading.levels:
        return [], []
    text = reading.data[:HISTORY_BYTES].decode("utf-8", "ignore").encode() or reading.data[:HISTORY_BYTES]
    ids = document(loaded.tokenizer, text, "the text")
    moments, pictures = [], []
    for what, step, one in _weights(source, loaded, data):
        found = reader.read(one, ids, what)
        first, level = found.levels[0], describe(found, 0)
        standard = reader.beginning(one, text)
        pictures.append((f"{reader.name}, {what}", standard))
        moments.append(
            Moment(
                what=what,
                step=step,
                bpb=found.bpb,
                whitespace_agreement=level.whitespace_agreement,
                mean_chunk_bytes=level.mean_chunk_bytes,
                cv=level.cv,
                boundaries_per_256_bytes=level.boundaries_per_256_bytes,
                enrichment=level.surprisal.enrichment,
                b=mean(first.p[first.candidates]) if _chunking(loaded) == "soft" else None,
                chunks=standard.offsets(),
            )
        )
    return moments, [pictures[0], pictures[-1]]


def _weights(source: Path, loaded: LoadedModel, data: Path | None) -> Iterator[tuple[str, int, LoadedModel]]:
    """What to call the weights, their step, and a model with them."""
    config, tokenizer = loaded.config, loaded.tokenizer
    train = open_split(data_of(loaded, data), tokenizer.name, "train", tokenizer.vocab_size)
    yield "untrained", 0, with_weights(loaded, initial_model(config, tokenizer, train).state_dict())
    step = 0
    for path in store.checkpoints(RunFolder(source).checkpoints):
        saved = store.load(path)
        step = store.step_of(path)
        yield f"step {step:,}", step, with_weights(loaded, saved.exported)
    yield "artifact", int(loaded.artifact.info.get("steps", step)), loaded
