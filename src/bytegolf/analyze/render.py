"""Chunks for people to read: brackets in a pipe, alternating colours on a terminal.

Nothing a text contains can garble the output. Backslashes are doubled, line ends and tabs are written
``\\n``, ``\\r``, ``\\t``, and whatever does not print, or is no valid UTF-8 within its chunk (a character
cut in two), is written as the bytes it is made of: ``\\xNN``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

from bytegolf.analyze.segment import Segmentation

STANDARD_TEXT = (
    b"The quick brown fox jumps over the lazy dog. "
    b"Natural language processing has made remarkable progress in recent years."
)
"""The two sentences (118 bytes) that S2 (PR #1104) shows before and after training."""

COLORS = ("black on #b7d4ea", "black on #f6d3a9")
"""Styles of even and odd chunks: light grounds that differ in every common form of colour blindness."""

_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def chunks(data: bytes, boundaries: Sequence[bool] | npt.NDArray[np.bool_]) -> list[bytes]:
    """Cut ``data`` before every byte whose boundary is true; byte 0 starts a chunk in any case.

    >>> chunks(b"a cat", [False, False, True, False, False])
    [b'a ', b'cat']

    Raises:
        ValueError: there is not one boundary for each byte.
    """
    if len(boundaries) != len(data):
        raise ValueError(f"{len(data)} bytes and {len(boundaries)} boundaries: give one for each byte")
    edges = [index for index, starts_chunk in enumerate(boundaries) if starts_chunk or index == 0]
    edges.append(len(data))
    return [data[start:end] for start, end in itertools.pairwise(edges)]


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
    """The chunks on one line, such as ``[The ][quick ]``; brackets of the text itself are written ``\\[``,
    ``\\]``."""
    shown = (visible(piece).replace("[", "\\[").replace("]", "\\]") for piece in pieces)
    return "".join(f"[{piece}]" for piece in shown)


def colored(pieces: Sequence[bytes]) -> Text:
    """The chunks on grounds of alternating colour; a line end is shown as ``\\n`` and also breaks the
    line."""
    text = Text(no_wrap=True, overflow="ignore", end="")
    for index, piece in enumerate(pieces):
        lines = piece.split(b"\n")
        for number, line in enumerate(lines, 1):
            ended = number < len(lines)
            text.append(visible(line) + ("\\n" if ended else ""), style=COLORS[index % 2])
            text.append("\n" if ended else "")
    return text


def segmentation(console: Console, found: Segmentation) -> None:
    """The chunks, in colour on a terminal and in brackets elsewhere."""
    pieces = chunks(found.data, found.boundaries)
    if console.is_terminal:
        console.print(colored(pieces), soft_wrap=True)
    else:
        console.print(brackets(pieces), soft_wrap=True)


def titled(console: Console, title: str, found: Segmentation) -> None:
    """The chunks below a headline with their number."""
    console.print(f"{title}, {len(found.offsets())} chunks:", style="bold", soft_wrap=True)
    segmentation(console, found)
