"""A document, how documents are read, and how reading tells how far it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from bytegolf.errors import BytegolfError

MIN_CUT = 4
"""Bytes of the longest character: a piece must have room for it."""

Advance = Callable[[int], None]
"""Told how many bytes of the sources have been read since the last call."""

_VISIBLE = re.compile(rb"[!-~]")


class Document(NamedTuple):
    """One text, as its bytes: they are what is hashed, split by and encoded."""

    data: bytes
    """valid UTF-8"""
    group: str | None
    """what it belongs to (an author, a book, a site), for splits that keep groups together; its file's name, without
    the folders, if nothing says otherwise; None where the field that says it is null"""
    null: str = ""
    """where a row was whose text is null, which makes a document without text; else "" """

    @property
    def text(self) -> str:
        """The bytes' text."""
        return self.data.decode("utf-8")

    def has_text(self) -> bool:
        """Whether there is more in it than white space."""
        if _VISIBLE.search(self.data):
            return True
        text = self.text
        return bool(text) and not text.isspace()


@dataclass(frozen=True)
class Reading:
    """How documents are read."""

    field: str = "text"
    """the JSON field or Parquet column that holds the text"""
    group_field: str | None = None
    """the one that holds the group"""
    cut: int = 0
    """cut plain texts into documents of about so many bytes, at paragraph or line ends; 0 = a file is a document"""

    def __post_init__(self) -> None:
        if self.cut and self.cut < MIN_CUT:
            raise BytegolfError(f"documents cannot be cut to {self.cut} bytes: give {MIN_CUT} or more, or 0 for no cut")
