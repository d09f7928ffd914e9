"""Which documents are held out for validation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from bytegolf.data.document import Document
from bytegolf.errors import BytegolfError

DEFAULT = "hash:0.05"

_HELP = "give first:K, hash:FRACTION, group:FRACTION or groups:NAME,NAME"


@dataclass(frozen=True)
class Split:
    """A rule that holds documents out; equal documents always fall on the same side of ``hash`` and ``group`` rules.

    ``first:K``: the first K documents (as the published data). ``hash:F``: a share F of the documents, by the hash of
    their text. ``group:F``: a share F of the groups, by the hash of their names. ``groups:A,B``: the named groups,
    where ``\\,`` is a comma in a name, and ``\\`` takes any other character as it is.

    Example, ``hash:0.1``: the first 8 bytes of the SHA-256 of "Hello" are 0.0952 of 2⁶⁴, below 0.1, so that "Hello" is
    for validation wherever it stands; "some text" (0.7239) is for training. A larger share holds the same documents out
    and some more.
    """

    kind: str
    first: int = 0
    fraction: float = 0.0
    groups: frozenset[str] = frozenset()

    @staticmethod
    def parse(text: str) -> Split:
        """The rule that ``text`` spells; an error in words where it spells none."""
        kind, colon, value = text.partition(":")
        try:
            if colon and kind == "first" and int(value) > 0:
                return Split(kind, first=int(value))
            if colon and kind in ("hash", "group") and 0 < float(value) < 1:
                return Split(kind, fraction=float(value))
        except ValueError:
            pass
        if kind == "groups" and (names := frozenset(_names(value))):
            return Split(kind, groups=names)
        raise BytegolfError(f"{text!r} is no validation split: {_HELP} (K from 1, FRACTION between 0 and 1)")

    def __str__(self) -> str:
        if self.kind == "first":
            return f"first:{self.first}"
        if self.kind == "groups":
            return "groups:" + ",".join(map(_escaped, sorted(self.groups)))
        return f"{self.kind}:{self.fraction!r}"

    def holds_out(self, number: int, document: Document) -> bool:
        """Whether ``document``, the ``number``-th of all (from 0), is for validation."""
        if self.kind == "first":
            return number < self.first
        if self.kind == "groups":
            return document.group in self.groups
        digest = hashlib.sha256(document.data if self.kind == "hash" else _key(document.group)).digest()
        return int.from_bytes(digest[:8], "big") < self.fraction * 2**64

    def check(self, training: int, validation: int, absent: Collection[str] = ()) -> None:
        """Raise unless both sides got documents, and every group that the rule names; ``absent`` ones had none."""
        if absent:
            comma = "; a comma in a name is written \\," if len(self.groups) > 1 else ""
            names = ", ".join(map(_escaped, sorted(absent)))
            raise BytegolfError(f"{self} names groups without documents ({names}): correct --val{comma}")
        if training and validation:
            return
        side = "validation" if training else "training"
        raise BytegolfError(
            f"the split {self} of {training + validation} documents leaves none for {side}: choose another --val, or "
            "cut long texts into documents with --cut BYTES"
        )


_PIECES = re.compile(r"\\(.)|,|[^\\,]+|\\", re.DOTALL)


def _names(value: str) -> Iterator[str]:
    r"""The names in a list with commas; white space around a name is no part of it, unless a backslash is before it.

    >>> list(_names(r"a, b\,c ,,\ d\\"))
    ['a', 'b,c', ' d\\']
    """
    name, kept = "", 0  # kept: the end of what a backslash protects
    for found in [*_PIECES.finditer(value), None]:
        if found is None or found[0] == ",":
            name = name[:kept] + (name[kept:].rstrip() if kept else name.strip())
            if name:
                yield name
            name, kept = "", 0
        elif found[1] is None:
            name += found[0]
        else:
            name = (name if kept else name.lstrip()) + found[1]
            kept = len(name)


def _escaped(name: str) -> str:
    """A name as `_names` reads it."""
    ends = (0, len(name) - 1)
    return "".join(
        f"\\{char}" if char in "\\," or (at in ends and char.isspace()) else char for at, char in enumerate(name)
    )


def _key(group: str | None) -> bytes:
    """What is hashed of a group; no name has the byte of the group without one, as UTF-8 has no such byte."""
    return b"\xff" if group is None else group.encode("utf-8", errors="surrogatepass")
