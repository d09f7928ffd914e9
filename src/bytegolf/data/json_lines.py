"""JSON lines, an object each, as documents."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bytegolf.data.document import Document, Reading
from bytegolf.data.rows import record
from bytegolf.errors import BytegolfError
from bytegolf.files import parse_json

ARROW_BYTES = range(1 << 18, 1 << 30)
"""Sizes of blocks for Arrow: importing it takes longer than a smaller one, and its columns end at 2 GiB."""
_MARK = b"\xef\xbb\xbf"
"""Of byte order: Arrow would skip it, and JSON has none."""


def records(lines: Iterable[bytes], file: str, reading: Reading, first: int = 1) -> Iterator[Document]:
    """The documents of JSON lines, the first of which is line ``first`` of ``file``.

    Raises BytegolfError, with file and line, for what is not UTF-8, not JSON, or has something else than text.
    """
    group = Path(file).name
    for number, line in enumerate(lines, first):
        if line and not line.isspace():
            where = f"{file}, line {number}"
            yield record(_json(line, where, reading), where, group, reading)


def array(data: bytes, file: str, reading: Reading) -> Iterator[Document]:
    """The documents of a JSON array of objects, as ``.json`` files of data sets hold; each is called an item."""
    group = Path(file).name
    for number, value in enumerate(_json(data, file, reading, "an array of objects"), 1):
        yield record(value, f"{file}, item {number}", group, reading)


def block_records(data: bytes, file: str, reading: Reading) -> list[Document]:
    """The documents of whole lines together: what ``records`` gives, sooner where lines are well-formed.

    Raises what it raises, with the lines counted from the beginning of ``data``.
    """
    simple = reading.group_field is None and "." not in reading.field
    simple = simple and len(data) in ARROW_BYTES and not data.startswith(_MARK)
    texts = _columns(data, reading.field) if simple else None
    if texts is None:
        return list(records(data.split(b"\n"), file, reading))
    group = Path(file).name
    return [Document(text, group) for text in texts]


def _columns(data: bytes, field: str) -> list[bytes] | None:
    """The texts of lines by Arrow, which parses a block into one column without making objects; None if in doubt.

    In doubt is whatever Arrow refuses (errors are worded elsewhere) or may read otherwise: a null, a line without an
    object, text that is not UTF-8. What it takes means the same to both readers. It takes a little more, though: any
    bytes in fields that nobody asked for, and an object over two lines if another line makes up for it with two.
    """
    import pyarrow
    import pyarrow.json

    schema = pyarrow.schema([(field, pyarrow.string())])
    try:
        table = pyarrow.json.read_json(
            pyarrow.BufferReader(data),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        column = table.column(0)
        column.validate(full=True)  # UTF-8
    except (pyarrow.ArrowException, UnicodeError):
        return None
    rows = data.count(b"\n") + (not data.endswith(b"\n"))
    if column.num_chunks != 1 or len(column) != rows or column.null_count:
        return None
    chunk = column.chunk(0)
    _, places, characters = chunk.buffers()
    ends = np.frombuffer(places, np.int32, rows + 1, 4 * chunk.offset).tolist()
    whole = memoryview(characters)
    return [bytes(whole[start:end]) for start, end in itertools.pairwise(ends)]


def _json(line: bytes, where: str, reading: Reading, what: str = "one object a line") -> Any:
    # orjson is six times as fast, and stricter: what it refuses (NaN, for instance) the standard library may take or
    # will explain. But it makes floats of integers beyond 64 bits, and a group may have such a number.
    if reading.group_field is None:
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError:
            pass
    try:
        return parse_json(line)
    except UnicodeDecodeError as error:
        raise BytegolfError(f"{where} is not UTF-8 (at its byte {error.start}): convert the file") from error
    except ValueError as error:
        raise BytegolfError(f"{where} is not JSON ({error}): {what} is expected") from error
