"""CSV and TSV files as documents: a header row that names the columns, and one document per row."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from bytegolf.data.document import Advance, Document, Reading
from bytegolf.errors import BytegolfError
from bytegolf.files import MOST_BYTES

ENDINGS = (".csv", ".tsv")

_SEPARATORS = (",", ";", "\t", "|")
_ROWS = 1000
"""After so many rows it is told how far reading is."""


def columns(head: bytes, file: str, reading: Reading) -> tuple[str, list[str]] | None:
    """The separator and the columns in the first line of a table; None if it has no column for the text.

    Raises BytegolfError where a field other than "text" was asked for, and the first line does not name it.
    """
    text = head.decode("utf-8", errors="replace").removeprefix("\ufeff")
    line = text.partition("\n")[0].rstrip("\r")
    own = ("\t", *_SEPARATORS) if ".tsv" in Path(file).name.lower() else _SEPARATORS
    found = {separator: next(csv.reader([line], delimiter=separator), []) for separator in own}
    for separator, names in found.items():
        if reading.field in names:
            return separator, names
    widest = max(found.values(), key=len)
    if reading.field != Reading.field or reading.group_field is not None:
        shown = ", ".join(name[:40] for name in widest[:8])
        raise BytegolfError(
            f"{file} has no column {reading.field!r} (its first line has {shown}): name one with --field"
        )
    return None


def documents(
    stream: io.BufferedIOBase,
    file: str,
    table: tuple[str, list[str]],
    reading: Reading,
    advance: Advance,
    position: Callable[[], int],
) -> Iterator[Document]:
    """The documents of a ``table``, whose first line ``columns`` has looked at. An empty cell is one without text.

    Raises BytegolfError, with file and row, for what is not UTF-8, a row that is too short, or a quote that never ends.
    """
    separator, names = table
    place = names.index(reading.field)
    if reading.group_field is not None and reading.group_field not in names:
        raise BytegolfError(f"{file} has no column {reading.group_field!r}: name the right one with --group-field")
    group_place = None if reading.group_field is None else names.index(reading.group_field)
    csv.field_size_limit(MOST_BYTES)  # a text may be longer than the 128 kB that are allowed by default
    lines = io.TextIOWrapper(cast("io.BufferedReader", stream), encoding="utf-8-sig", newline="")
    rows = csv.reader(lines, delimiter=separator, strict=True)
    number, told, group = 0, 0, Path(file).name
    try:
        for number, row in enumerate(rows):
            if number == 0 or not row:
                continue
            if number % _ROWS == 0:
                advance(position() - told)
                told = position()
            where = f"{file}, row {number}"
            if len(row) <= max(place, group_place or 0):
                raise BytegolfError(f"{where} has {len(row)} columns, and the first line {len(names)}: mend that row")
            its_group = group if group_place is None else row[group_place] or None
            text = row[place]
            yield Document(text.encode(), its_group, "" if text else where)
    except UnicodeDecodeError as error:
        raise BytegolfError(f"{file} is not UTF-8 (behind row {number}): convert or omit it") from error
    except csv.Error as error:
        raise BytegolfError(f"{file} is no table that can be read behind row {number} ({error}): mend it") from error
    finally:
        lines.detach()  # whoever opened the stream closes it
