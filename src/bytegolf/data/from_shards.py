"""Token shards as a source of documents, where their tokenizer loses nothing: no original documents needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bytegolf.data.blocks import BLOCK_BYTES
from bytegolf.data.decoding import Decoder, decoder
from bytegolf.data.document import Document
from bytegolf.data.manifest import DATASET_PREFIX, DIGEST, MANIFEST, DatasetEntry, dataset_entry, read_manifest
from bytegolf.data.shards import TOKEN_BYTES, TokenStream, read_shard, shard_paths
from bytegolf.data.sources import Source
from bytegolf.data.tokenizer import Tokenizer, load_tokenizer
from bytegolf.errors import BytegolfError

PREFIX = "shards:"
BLOCK_TOKENS = BLOCK_BYTES // 4
"""A block ends with the document that brings it to so many tokens; few tokens stand for more than four bytes."""
_LOOK = 1 << 16


@dataclass(frozen=True)
class TokenRange:
    """Whole documents of a split, by their place in its tokens: the worker reads and decodes them."""

    decoder: Decoder
    parts: list[tuple[str, int, int]]
    """shards, and the first and the end of the tokens in each"""
    where: str
    """for errors"""

    @property
    def size(self) -> int:
        return TOKEN_BYTES * sum(stop - start for _, start, stop in self.parts)

    def documents(self) -> Iterator[Document]:
        ids = np.concatenate([read_shard(path)[start:stop] for path, start, stop in self.parts])
        for text in self.decoder.documents(ids, self.where):
            document = Document(text.encode("utf-8"), "")
            if not document.has_text():
                raise BytegolfError(f"{self.where} hold a document without text, which would be left out")
            yield document


def named(sources: Sequence[str]) -> Path | None:
    """The data set in ``shards:FOLDER``, which must be alone: that folder, or the only one in there; else None."""
    found = [source.removeprefix(PREFIX) for source in sources if source.startswith(PREFIX)]
    if found and len(sources) > 1:
        raise BytegolfError(f"{PREFIX}{found[0]} is a source of its own: name nothing else beside it")
    if not found:
        return None
    folder = Path(found[0])
    if folder.name.startswith(DATASET_PREFIX):
        return folder
    entries = read_manifest(folder)["datasets"]
    if len(entries) != 1:
        names = ", ".join(f"{PREFIX}{folder}/datasets/{entry.get('name')}" for entry in entries)
        raise BytegolfError(f"{folder} holds {len(entries)} data sets: name one of {names}")
    return folder / str(entries[0].get("path", f"datasets/{entries[0].get('name')}"))


def open_shards(folder: Path) -> Source:
    """The documents of a data set: first those of its validation split, which they stay."""
    name, root = folder.name.removeprefix(DATASET_PREFIX), folder.parent.parent
    tokenizer = load_tokenizer(name, root)
    found = decoder(tokenizer)  # refuses, before anything is read
    streams = {split: _stream(folder, split) for split in ("val", "train")}
    entry = dataset_entry(root, name) or DatasetEntry()
    stats = entry.stats
    for split, stream in streams.items():
        if stats.get(f"tokens_{split}", len(stream)) != len(stream):
            raise BytegolfError(
                f"{folder} holds {len(stream):,} of the {stats[f'tokens_{split}']:,} tokens of its {split} split, so "
                "its last document may be cut off: get all of its shards"
            )
        if len(stream) and stream.slice(0, 1)[0] != Tokenizer.BOS:
            raise BytegolfError(f"the {split} shards in {folder} do not begin with a BOS: they are not of documents")
    held = streams["val"]
    pieces = (held.slice(at, min(at + _LOOK, len(held))) for at in range(0, len(held), _LOOK))
    validation = sum(int((piece == Tokenizer.BOS).sum()) for piece in pieces)

    def blocks() -> Iterator[TokenRange]:
        for split, stream in streams.items():
            yield from _ranges(found, stream, f"the {split} shards in {folder}")

    about: dict[str, Any] = {"decoded_from": tokenizer.identity(), "sha256": entry.sha256 or None}
    manifest = read_manifest(root) if (root / MANIFEST).exists() else {}
    in_order = str(manifest.get("split", "")).startswith("first:")
    return Source(
        blocks,
        sum(TOKEN_BYTES * len(stream) for stream in streams.values()),
        about,
        f"first:{max(1, validation)}",
        [str(path) for stream in streams.values() for path in stream.paths],
        digest=manifest.get(DIGEST) if in_order else None,
        sizes=(stats.get("original_bytes_train"), stats.get("original_bytes_val")),
    )


def _stream(folder: Path, split: str) -> TokenStream:
    paths = shard_paths(folder, split)
    if not paths:
        raise BytegolfError(f"{folder} has no fineweb_{split}_*.bin: both splits are needed")
    return TokenStream(paths, 1 << 16)


def _ranges(found: Decoder, stream: TokenStream, where: str) -> Iterator[TokenRange]:
    start = 0
    while start < len(stream):
        stop = min(start + BLOCK_TOKENS, len(stream))
        while stop < len(stream):
            look = stream.slice(stop, min(stop + _LOOK, len(stream)))
            begins = np.flatnonzero(look == Tokenizer.BOS)
            stop += int(begins[0]) if len(begins) else len(look)
            if len(begins):
                break
        parts = [(str(stream.paths[index]), first, end) for index, first, end in stream.parts(start, stop)]
        yield TokenRange(found, parts, f"tokens {start:,} to {stop:,} of {where}")
        start = stop
