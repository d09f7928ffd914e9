"""A block of documents to the tokens of every tokenizer: what one worker does, and what it hands back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.blocks import Block
from bytegolf.data.split import Split
from bytegolf.data.tokenizer import Tokenizer

DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Tokens:
    """The documents of a block as one tokenizer's tokens."""

    ids: NDArray[np.uint16]
    """(tokens,): each document behind its BOS"""
    lengths: NDArray[np.int64]
    """(documents,): tokens of each, its BOS included"""
    piece_bytes: NDArray[np.int64]
    """(documents,): bytes that the tokens of each stand for"""


@dataclass(frozen=True)
class Encoded:
    """A block, encoded. Where the split's rule looks at the documents, those for validation come first."""

    size: int
    """bytes of the sources, for the progress bar"""
    digests: bytes
    """the SHA-256 of each document's UTF-8 text, in the order of the sources"""
    held_out: int | None
    """how many documents at the front are for validation; None where their numbers decide"""
    groups: frozenset[str]
    """which of the groups that the split names were met"""
    original_bytes: NDArray[np.int64]
    """(documents,): bytes of each text"""
    tokens: list[Tokens]
    """one per tokenizer"""


@dataclass(frozen=True)
class Encoder:
    """A function of blocks, which other processes and machines can be sent."""

    split: Split
    tokenizers: Sequence[Tokenizer]

    def __call__(self, block: Block) -> Encoded:
        """Encode ``block``: the same bytes wherever this runs."""
        documents = [document for document in block.documents() if document.has_text()]
        texts = [document.data for document in documents]
        held_out = None
        digests = b"".join(hashlib.sha256(text).digest() for text in texts)
        if not self.split.by_number:
            sides = [self.split.holds_out(0, document) for document in documents]
            held_out = sum(sides)
            texts = [text for side in (True, False) for text, its in zip(texts, sides, strict=True) if its is side]
        return Encoded(
            block.size,
            digests,
            held_out,
            self.split.groups & {document.group for document in documents},
            np.array([len(text) for text in texts], dtype=np.int64),
            [_tokens(tokenizer, texts) for tokenizer in self.tokenizers],
        )


def _tokens(tokenizer: Tokenizer, texts: Sequence[bytes]) -> Tokens:
    ids, lengths = tokenizer.encode_documents(texts)
    if tokenizer.kind == "byte":
        return Tokens(ids, lengths, lengths - 1)
    if not len(ids):
        return Tokens(ids, lengths, lengths)
    # a BOS counts 0 bytes, whatever it follows
    counts = tokenizer.byte_counts(ids, np.concatenate([[Tokenizer.BOS], ids[:-1]]))
    return Tokens(ids, lengths, np.add.reduceat(counts, np.cumsum(lengths) - lengths))
