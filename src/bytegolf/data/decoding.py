"""Tokens back to the documents that they were made of, where a tokenizer loses nothing.

A SentencePiece model says itself what it does to text before it cuts it: its ``normalizer_spec``. Where that changes
nothing but spaces to "▁" and at most puts one in front, it can be undone. (One thing cannot be seen in tokens: a "▁",
U+2581, in the text itself comes back as a space. ``from_shards`` compares lengths and hashes where they are known.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from bytegolf.errors import BytegolfError

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_NORMALIZER, _TRAINER = 3, 2
"""Fields of SentencePiece's ModelProto."""
_RULE, _CHARACTERS, _PREFIX, _EXTRA_SPACES, _ESCAPE = 1, 2, 3, 4, 5
"""Fields of its NormalizerSpec: rule name, table of characters, add_dummy_prefix, remove_extra_whitespaces,
escape_whitespaces; the last three are true where they are absent."""
_SUFFIX = 24
"""Field of its TrainerSpec: treat_whitespace_as_suffix."""


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

    def documents(self, ids: NDArray[np.uint16], where: str) -> Iterator[str]:
        """The texts of a stream of whole documents, each behind its BOS; ``where`` it is, for errors.

        Raises BytegolfError for a token that stands for lost text, and for bytes that are no text.
        """
        if len(ids) and ids.max() >= len(self.lengths):
            raise BytegolfError(
                f"{where} hold the token {ids.max()}, but {self.name} has {len(self.lengths)}: they were made with "
                "another tokenizer; prepare from the documents"
            )
        begins = ids == Tokenizer.BOS
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
        pieces = [b""] * ByteTokenizer.OFFSET + [bytes([value]) for value in range(256)]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    joined = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    return Decoder(tokenizer.name, joined, np.cumsum(lengths) - lengths, lengths, prefix)


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
