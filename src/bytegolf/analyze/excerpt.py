"""A sentence or two of the text at hand, to show chunks in: what becomes of an English fox says little of Chinese."""

from __future__ import annotations

import codecs
import re

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.shards import TokenStream
from bytegolf.data.tokenizer import Tokenizer

LEAST, MOST = 40, 160
"""Bytes of an excerpt; shorter where no document has so many."""

_LOOKED_AT = 1 << 14
"""Tokens in which the excerpt is looked for."""

_SENTENCE_END = re.compile(r"[.!?…]['\"’”)]*(?=\s)|[。！？]|\n")


def excerpt_of(tokenizer: Tokenizer, stream: TokenStream | NDArray[np.int64]) -> bytes:
    """The beginning of the first document that is long enough, or of the longest; empty if there is no text at all."""
    ids = np.asarray(stream.slice(0, min(len(stream), _LOOKED_AT)) if isinstance(stream, TokenStream) else stream)
    ids = ids[:_LOOKED_AT]
    starts = np.flatnonzero(ids == tokenizer.BOS)
    best = b""
    for document in np.split(ids, starts):
        found = excerpt(tokenizer.decode(document[: 4 * MOST]))
        if len(found) >= LEAST:
            return found
        best = max(best, found, key=len)
    return best


def excerpt(data: bytes) -> bytes:
    """The beginning of a text: whole sentences of up to ``MOST`` bytes, else whole words, else whole characters.

    >>> excerpt(b"One. " + b"Two words and more of them, so that it becomes a sentence. " + b"x" * 200)
    b'One. Two words and more of them, so that it becomes a sentence.'
    """
    data = data.strip()
    if len(data) <= MOST:
        return data
    # a character that the cut goes through is left out; what is no UTF-8 stays as it is
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data[:MOST])
    sentences = [found.end() for found in _SENTENCE_END.finditer(text)]
    words = [found.start() for found in re.finditer(r"\s", text)]
    for ends in (sentences, words):
        cut = [end for end in ends if len(text[:end].encode("utf-8", "surrogateescape")) >= LEAST]
        if cut:
            text = text[: cut[-1]]
            break
    return text.strip().encode("utf-8", "surrogateescape")
