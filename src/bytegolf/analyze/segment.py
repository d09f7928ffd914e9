"""Chunk boundaries that a model places in a text, and their chunks for people to read: brackets in a pipe, alternating
colours on a terminal.

Nothing a text contains can garble the output. Backslashes are doubled, line ends and tabs are written ``\\n``, ``\\r``,
``\\t``, and whatever does not print, or is no valid UTF-8 within its chunk (a character cut in two), is written as the
bytes it is made of: ``\\xNN``.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from bytegolf.analyze.reading import read_text
from bytegolf.data.dataset import TokenStream, open_split
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError, counted
from bytegolf.evaluate.boundaries import BoundaryStats
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import THRESHOLD

STANDARD_TEXT = (
    b"The quick brown fox jumps over the lazy dog. "
    b"Natural language processing has made remarkable progress in recent years."
)
"""The two sentences (118 bytes) that S2 (PR #1104) shows before and after training."""

COLORS = ("black on #b7d4ea", "black on #f6d3a9")
"""Styles of even and odd chunks: light grounds that differ in every common form of colour blindness."""

LEAST, MOST = 40, 160
"""Bytes of an excerpt, a sentence or two of the text at hand; shorter where no document has so many. What becomes of an
English fox says little of Chinese."""

_LOOKED_AT = 1 << 14
"""Tokens in which the excerpt is looked for."""

_SENTENCE_END = re.compile(r"[.!?…]['\"’”)]*(?=\s)|[。！？]|\n")

_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


@dataclass(frozen=True)
class Segmentation:
    """A text and the chunks that a model cuts it into."""

    data: bytes
    """what the tokens stand for: the text, as far as the tokenizer keeps it"""
    boundaries: NDArray[np.bool_]
    """for each byte, whether it starts a chunk; the first one always does"""
    candidates: NDArray[np.bool_]
    """for each byte, whether the router could choose it: it starts a token, or for an inner level an outer chunk"""

    def offsets(self) -> list[int]:
        """The byte offsets at which chunks start."""
        return np.flatnonzero(self.boundaries).tolist()

    def chunks(self) -> list[bytes]:
        """The chunks, which joined are the text."""
        return chunks(self.data, self.boundaries)

    def stats(self) -> BoundaryStats:
        """The metrics of this text on its own."""
        stats = BoundaryStats()
        if self.data:
            window = np.frombuffer(self.data, np.uint8)
            stats.add(window, self.boundaries, candidates=self.candidates, whole=True)
        return stats


def example(tokenizer: Tokenizer, data: Path | None) -> bytes:
    """A text to cut where none is given: the beginning of the validation split in ``data``, else ``STANDARD_TEXT``."""
    if data is not None:
        with contextlib.suppress(BytegolfError):  # not there, or not of this tokenizer
            return excerpt_of(tokenizer, open_split(data, tokenizer.name, "val", tokenizer.vocab_size)) or STANDARD_TEXT
    return STANDARD_TEXT


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


def segment(
    model: LanguageModel,
    tokenizer: Tokenizer,
    data: bytes,
    seq_len: int,
    where: str = "the text",
    level: int = 0,
    threshold: float = THRESHOLD,
) -> Segmentation:
    """Cut ``data`` into the chunks of a chunking ``level`` (0 = outermost), reading it in windows of ``seq_len``.

    The text is read as one document behind a BOS, whose own chunk is not counted: the first byte opens one. Without a
    router, a level is a layer of soft chunking, which is said to begin a chunk from a b of ``threshold`` on.

    Raises BytegolfError for an empty text, a flat model, or a level that the model does not have.
    """
    reading = read_text(model, tokenizer, data, seq_len, where, threshold)
    found = reading.level(level)
    return Segmentation(reading.data, found.boundary, found.candidates)


def chunks(data: bytes, boundaries: Sequence[bool] | NDArray[np.bool_]) -> list[bytes]:
    """Cut ``data`` before every byte whose boundary is true; byte 0 starts a chunk in any case.

    >>> chunks(b"a cat", [False, False, True, False, False])
    [b'a ', b'cat']

    Raises ValueError unless there is one boundary for each byte.
    """
    if len(boundaries) != len(data):
        raise ValueError(f"{len(data)} bytes and {len(boundaries)} boundaries: give one for each byte")
    edges = [index for index, starts_chunk in enumerate(boundaries) if starts_chunk or index == 0]
    return [data[start:end] for start, end in itertools.pairwise([*edges, len(data)])]


def visible(chunk: bytes) -> str:
    """``chunk`` in printable characters, from which its bytes can be told.

    >>> print(visible("é\\n".encode()), visible("é".encode()[:1]))
    é\\n \\xc3
    """
    shown = []
    # surrogateescape turns an invalid byte b into the lone surrogate U+DC00 + b, which valid UTF-8 never has
    for char in chunk.decode("utf-8", "surrogateescape"):
        if char in _SHORT:
            shown.append(_SHORT[char])
        elif char.isprintable():
            shown.append(char)
        else:
            shown += [f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape")]
    return "".join(shown)


def brackets(pieces: Sequence[bytes]) -> str:
    """The chunks on one line, such as ``[The ][quick ]``; the text's own brackets are written ``\\[`` and ``\\]``."""
    shown = (visible(piece).replace("[", "\\[").replace("]", "\\]") for piece in pieces)
    return "".join(f"[{piece}]" for piece in shown)


def colored(pieces: Sequence[bytes]) -> Text:
    """The chunks on grounds of alternating colour; a line end is shown as ``\\n`` and also breaks the line."""
    text = Text(no_wrap=True, overflow="ignore", end="")
    for index, piece in enumerate(pieces):
        lines = piece.split(b"\n")
        for number, line in enumerate(lines, 1):
            ended = number < len(lines)
            text.append(visible(line) + ("\\n" if ended else ""), style=COLORS[index % 2])
            text.append("\n" if ended else "")
    return text


def show(console: Console, found: Segmentation) -> None:
    """The chunks, in colour on a terminal and in brackets elsewhere."""
    console.print((colored if console.is_terminal else brackets)(found.chunks()), soft_wrap=True)


def titled(console: Console, title: str, found: Segmentation) -> None:
    """The chunks below a headline with their number."""
    console.print(f"{title}, {counted(len(found.offsets()), 'chunk')}:", style="bold", soft_wrap=True)
    show(console, found)
