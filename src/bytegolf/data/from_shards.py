"""Token shards as a source of documents, where their tokenizer loses nothing: no original documents needed.

A SentencePiece model says itself what it does to text before it cuts it: its ``normalizer_spec``. Where that changes
nothing but spaces to "▁" and at most puts one in front, it can be undone. (One thing cannot be seen in tokens: a "▁",
U+2581, in the text itself comes back as a space. So lengths and hashes are compared where they are known.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.blocks import BLOCK_BYTES
from bytegolf.data.dataset import (
    DATASET_PREFIX,
    DIGEST,
    MANIFEST,
    TOKEN_BYTES,
    DatasetEntry,
    TokenStream,
    dataset_entry,
    read_manifest,
    read_shard,
    shard_paths,
)
from bytegolf.data.document import Document
from bytegolf.data.sources import Source
from bytegolf.data.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from bytegolf.errors import BytegolfError

PREFIX = "shards:"
BLOCK_TOKENS = BLOCK_BYTES // 4
"""A block ends with the document that brings it to so many tokens; few tokens stand for more than four bytes."""
_LOOK = 1 << 16

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_NORMALIZER, _TRAINER = 3, 2
"""Fields of SentencePiece's ModelProto."""
_RULE, _CHARACTERS, _PREFIX, _EXTRA_SPACES, _ESCAPE = 1, 2, 3, 4, 5
"""Fields of its NormalizerSpec: rule name, table of characters, add_dummy_prefix, remove_extra_whitespaces,
escape_whitespaces; the last three are true where they are absent."""
_SUFFIX = 24
"""Field of its TrainerSpec: treat_whitespace_as_suffix."""


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
        if len(stream) and stream.slice(0, 1)[0] != tokenizer.BOS:
            raise BytegolfError(f"the {split} shards in {folder} do not begin with a BOS: they are not of documents")
    held = streams["val"]
    pieces = (held.slice(at, min(at + _LOOK, len(held))) for at in range(0, len(held), _LOOK))
    validation = sum(int((piece == tokenizer.BOS).sum()) for piece in pieces)

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
            begins = np.flatnonzero(look == found.bos)
            stop += int(begins[0]) if len(begins) else len(look)
            if len(begins):
                break
        parts = [(str(stream.paths[index]), first, end) for index, first, end in stream.parts(start, stop)]
        yield TokenRange(found, parts, f"tokens {start:,} to {stop:,} of {where}")
        start = stop


# ------------------------------------------------------------------------------------------------ decoding


@dataclass(frozen=True)
class Decoder:
    """The inverse of ``Tokenizer.encode_documents``, for whole documents."""

    name: str
    """the tokenizer's"""
    pieces: NDArray[np.uint8]
    """the bytes of all pieces, one behind the other, with their leading spaces"""
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """(vocab_size,) each: where in ``pieces`` an id's are"""
    prefix: bool
    """whether each document got a space in front that was not in its text"""
    bos: int = Tokenizer.BOS

    def documents(self, ids: NDArray[np.uint16], where: str) -> Iterator[str]:
        """The texts of a stream of whole documents, each behind its BOS; ``where`` it is, for errors.

        Raises BytegolfError for a token that stands for lost text, and for bytes that are no text.
        """
        if len(ids) and ids.max() >= len(self.lengths):
            raise BytegolfError(
                f"{where} hold the token {ids.max()}, but {self.name} has {len(self.lengths)}: they were made with "
                "another tokenizer; prepare from the documents"
            )
        begins = ids == self.bos
        lost = (self.lengths[ids] == 0) & ~begins
        if lost.any():
            raise BytegolfError(
                f"{where} hold the token {int(ids[lost][0])} of {self.name}, which stands for no text, so what "
                "was there is lost: prepare from the documents"
            )
        starts, lengths = self.starts[ids], self.lengths[ids]
        if self.prefix:
            first = np.flatnonzero(begins[:-1]) + 1
            first = first[~begins[first]]
            if not (self.pieces[starts[first]] == ord(" ")).all():
                raise BytegolfError(
                    f"{where} hold a document without the space that {self.name} puts in front: they were made "
                    "with another tokenizer; prepare from the documents"
                )
            starts[first] += 1
            lengths[first] -= 1
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
        data = self.pieces[places].tobytes()
        borders = [*(ends - lengths)[begins].tolist(), len(data)]
        for start, stop in itertools.pairwise(borders):
            try:
                yield data[start:stop].decode("utf-8")
            except UnicodeDecodeError as error:
                raise BytegolfError(
                    f"{where} hold a document that is not UTF-8: they were made with another tokenizer, or are cut "
                    "off; prepare from the documents"
                ) from error


def decoder(tokenizer: Tokenizer) -> Decoder:
    """The decoder of a tokenizer; an error that says why where there can be none."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        prefix = _undone(tokenizer)
        spaces = tokenizer.leading_space.tolist()
        pieces = [b" " * space + piece for space, piece in zip(spaces, tokenizer.piece_bytes, strict=True)]
    else:
        prefix = False
        pieces = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    joined = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    return Decoder(tokenizer.name, joined, np.cumsum(lengths) - lengths, lengths, prefix, tokenizer.BOS)


def _undone(tokenizer: SentencePieceTokenizer) -> bool:
    """Whether the normaliser puts a space in front; raises if what it does cannot be undone."""
    model = dict(_fields(tokenizer.model()))
    normalizer, trainer = dict(_fields(model.get(_NORMALIZER, b""))), dict(_fields(model.get(_TRAINER, b"")))
    rule = bytes(normalizer.get(_RULE, b"")).decode("utf-8", "replace")
    faults = {
        f"rewrites characters ({rule or 'a table of its own'})": bool(normalizer.get(_CHARACTERS)),
        "removes spaces (remove_extra_whitespaces)": normalizer.get(_EXTRA_SPACES, 1) != 0,
        "leaves spaces as they are (escape_whitespaces off)": normalizer.get(_ESCAPE, 1) != 1,
        "puts spaces behind words (treat_whitespace_as_suffix)": trainer.get(_SUFFIX, 0) != 0,
    }
    if found := [fault for fault, there in faults.items() if there]:
        raise BytegolfError(
            f"{tokenizer.path} {' and '.join(found)} before it cuts text, so its tokens do not give documents back: "
            "prepare from the documents (`bytegolf fetch --with-docs` gets the published ones)"
        )
    return normalizer.get(_PREFIX, 1) != 0


def _fields(message: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: numbers, and varints or bytes; of repeated ones each."""
    assert isinstance(message, bytes)
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == _VARINT:
            yield key >> 3, varint()
            continue
        size = varint() if kind == _BYTES else {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}[kind]
        yield key >> 3, message[at : at + size]
        at += size
