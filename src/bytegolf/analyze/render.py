"""Chunks for people to read: brackets in a pipe, alternating colours on a terminal.

Nothing a text contains can garble the output. Backslashes are doubled, line ends and tabs are written
``\\n``, ``\\r``, ``\\t``, and whatever does not print, or is no valid UTF-8 within its chunk (a character
cut in two), is written as the bytes it is made of: ``\\xNN``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table
from rich.text import Text

from bytegolf.analyze.boundaries import BoundaryStats

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


def before_after(
    before: Sequence[bool] | npt.NDArray[np.bool_],
    after: Sequence[bool] | npt.NDArray[np.bool_],
    *,
    color: bool,
    data: bytes = STANDARD_TEXT,
) -> Text:
    """The segmentation of ``data`` by the untrained and by the trained model, each with its number of chunks.

    Args:
        before: one boolean for each byte of ``data``, from the model before training.
        after: the same, from the model after it.
        color: colours for a terminal, else brackets for a pipe.
        data: the text.

    Returns:
        a headline and the chunks, twice; print it with ``console.print(text, soft_wrap=True)``, or rich cuts
        long lines.
    """
    text = Text(no_wrap=True, overflow="ignore")
    for label, boundaries in (("before training", before), ("after training", after)):
        pieces = chunks(data, boundaries)
        plural = "" if len(pieces) == 1 else "s"
        mean = f", {len(data) / len(pieces):.1f} bytes each" if pieces else ""
        text.append("\n" if text else "")
        text.append(f"{label}: {len(pieces)} chunk{plural}{mean}\n", style="bold")
        text.append_text(colored(pieces) if color else Text(brackets(pieces)))
    return text


def stats_table(columns: Mapping[str, BoundaryStats]) -> Table:
    """The figures of :class:`BoundaryStats` side by side, a column for each label (a model, or before and
    after)."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("boundaries")
    for label in columns:
        table.add_column(Text(label), justify="right")
    stats = list(columns.values())
    table.add_row("touch whitespace", *(_percent(one.whitespace_agreement) for one in stats))
    table.add_row("  if placed at random", *(_percent(one.random_agreement) for one in stats))
    table.add_row("per 256 positions", *(_decimal(one.boundaries_per_256, 1) for one in stats))
    table.add_row("mean chunk, bytes", *(_decimal(one.mean_chunk_bytes, 2) for one in stats))
    table.add_row("CV of chunk sizes", *(_decimal(one.cv, 2) for one in stats))
    table.add_row("split a character", *(_percent(one.utf8_splits) for one in stats))
    table.add_row("counted", *(f"{one.boundaries:,}" for one in stats))
    table.add_row("in bytes", *(f"{one.bytes:,}" for one in stats))
    return table


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"


def _decimal(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
