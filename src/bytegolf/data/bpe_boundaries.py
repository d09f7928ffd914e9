"""Where the tokens of a SentencePiece tokenizer start: in the bytes of a text, or, as words, among tokens.

A token's start may depend on what follows it (BPE merges look ahead), so none of this is causal: it is for fitting,
for controls that say so, and for analysis.

Legend: N bytes of a text, T tokens.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike, NDArray

from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer
from bytegolf.errors import BytegolfError

_BYTE_PIECES = {f"<0x{value:02X}>": value for value in range(256)}
"""SentencePiece's names for the pieces that stand for one byte of a character it has no piece for."""

_NOT_UTF8 = re.compile(r"([\udc80-\udcff])")
"""A byte that is not UTF-8, as Python's "surrogateescape" writes it."""


def token_starts(tokenizer: SentencePieceTokenizer, text: str | bytes) -> Bool[np.ndarray, " N"]:
    """For each byte of ``text`` (UTF-8), whether a token of ``tokenizer`` starts there.

    A piece "▁the" starts at the space before the word, and the text's first token at its first byte. A byte-fallback
    piece starts at its own byte. Where the tokenizer normalises (nmt_nfkc), a token starts at the first byte of the
    character that its first character came from, and nowhere if an earlier token came from that character too ("Ⅳ" as
    "I", "V"); bytes that it drops (a space after a space) belong to the token before them.

    Bytes that are not UTF-8, as in a window that begins or ends inside a character, are tokens by themselves, and what
    lies between them is a text each. Raises BytegolfError if the pieces are not the normalised text.
    """
    if isinstance(text, str):
        return _starts(tokenizer, text)
    parts = _NOT_UTF8.split(text.decode("utf-8", "surrogateescape"))  # text, bad byte, text, …, text
    found = [np.ones(1, np.bool_) if at % 2 else _starts(tokenizer, part) for at, part in enumerate(parts)]
    return np.concatenate(found)


def stream_starts(tokenizer: SentencePieceTokenizer, ids: ArrayLike) -> Bool[np.ndarray, " T"]:
    """``token_starts`` for a stream of byte260 ids: each document by itself, special tokens (BOS) being starts."""
    array = np.asarray(ids).reshape(-1)
    found = np.ones(len(array), np.bool_)
    special = np.flatnonzero(array < ByteTokenizer.OFFSET)
    for before, end in itertools.pairwise([-1, *special.tolist(), len(array)]):
        data = (array[before + 1 : end] - ByteTokenizer.OFFSET).astype(np.uint8).tobytes()
        found[before + 1 : end] = token_starts(tokenizer, data)
    return found


def word_starts(tokenizer: SentencePieceTokenizer, ids: ArrayLike) -> Bool[np.ndarray, " T"]:
    """For each token of a stream, whether it begins a word: its piece begins with a space, it is the first of the
    stream or the first behind a special token, or it is a special token itself.
    """
    array = np.asarray(ids, dtype=np.int64).reshape(-1)
    special = tokenizer.boundary[array]
    behind = np.concatenate(([True], special[:-1]))[: len(array)]
    found: NDArray[np.bool_] = tokenizer.leading_space[array] | special | behind
    return found


def _starts(tokenizer: SentencePieceTokenizer, text: str) -> NDArray[np.bool_]:
    """``token_starts`` of a text that is UTF-8."""
    found = np.zeros(len(text.encode("utf-8")), np.bool_)
    pieces, normal, origin = tokenizer.pieces(text)
    if not found.size:
        return found
    if not pieces:  # nothing but spaces, which normalising took away
        found[0] = True
        return found
    character, inside = _places(pieces)
    if character[-1] + (len(pieces[-1]) if pieces[-1] not in _BYTE_PIECES else 1) != len(normal):
        raise BytegolfError(
            f"the pieces of {tokenizer.name} do not add up to its normalised text, so nothing says where they start: "
            "use a tokenizer that loses no characters"
        )
    source = np.asarray(origin, dtype=np.int64)[: len(normal)]
    fresh = np.diff(source, prepend=-1) > 0  # the first character of what an original one became
    kept = np.fromiter((text[at] == char for at, char in zip(source.tolist(), normal, strict=True)), np.bool_)
    widths = np.fromiter((len(char.encode("utf-8")) for char in text), np.int64)
    begins = np.concatenate(([0], np.cumsum(widths)[:-1]))
    # a byte inside a character is a place in the text only if the character is still the text's own
    there = fresh[character] & ((inside == 0) | kept[character])
    found[(begins[source[character]] + inside)[there]] = True
    found[: begins[source[character[0]]] + 1] = False  # spaces dropped before the first token belong to it
    found[0] = True
    return found


def _places(pieces: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each piece the normalised character that it starts in, and how many bytes inside that character."""
    values = np.fromiter((_BYTE_PIECES.get(piece, -1) for piece in pieces), np.int64)
    lengths = np.fromiter(map(len, pieces), np.int64)
    further = (values & 0xC0 == 0x80) & (values >= 0)  # a later byte of a character in UTF-8
    lengths = np.where(values < 0, lengths, ~further)
    character = np.cumsum(lengths) - lengths - further
    order = np.arange(len(pieces))
    return character, order - np.maximum.accumulate(np.where(further, 0, order))
