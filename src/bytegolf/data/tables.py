"""Files of rows as documents: JSON lines and arrays, CSV and TSV, Parquet; which field is the text, which the group."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson

from bytegolf.data.document import Advance, Document, Reading
from bytegolf.errors import BytegolfError
from bytegolf.files import MOST_BYTES, parse_json

# --------------------------------------------------------------------------------------- rows: where text and group are


MISSING = object()


def lookup(value: Any, path: str) -> Any:
    """The value under a field's name, or under a path of names with dots between; null where a part of it is null.

    A field whose own name has dots comes first. MISSING if there is none.

    >>> lookup({"meta": {"text": "a"}}, "meta.text")
    'a'
    """
    if not isinstance(value, dict):
        return MISSING
    if path in value:
        return value[path]
    for at, char in enumerate(path):
        if char == "." and path[:at] in value:
            inner = value[path[:at]]
            found = None if inner is None else lookup(inner, path[at + 1 :])
            if found is not MISSING:
                return found
    return MISSING


def record(value: Any, where: str, group: str, reading: Reading) -> Document:
    """The document in a parsed object; ``where`` it is, for errors, and its ``group`` if no field names one.

    A null is a document without text, which says where it was (`Document.null`).
    """
    text = lookup(value, reading.field)
    its_group: str | None = group
    if reading.group_field is not None:
        found = lookup(value, reading.group_field)
        if found is MISSING:
            raise BytegolfError(f"{where} has no {reading.group_field!r}: name the right field with --group-field")
        its_group = group_name(found)
    if text is None:
        return Document(b"", its_group, where)
    if not isinstance(text, str):
        raise BytegolfError(f"{where} has no text under {reading.field!r}{_instead(value, text)} with --field")
    try:
        return Document(text.encode("utf-8"), its_group)
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON, but no text
        raise BytegolfError(f"{where} holds half a surrogate pair, which is no Unicode text: mend that line") from error


def _instead(value: Any, found: Any) -> str:
    """What there is instead of a text, as a part of a sentence."""
    if not isinstance(value, dict):
        return f" ({_kind(value)}): one object a line is expected; name the right field"
    if found is MISSING:
        return f" (it has {_names(value)}): name the right field"
    if isinstance(found, dict) and found:
        return f", but an object of {_names(found)}: name one of these, FIELD.{next(iter(found))} for instance,"
    return f", but {_kind(found)}: name the right field"


def _names(value: dict[str, Any]) -> str:
    shown = ", ".join(list(value)[:8])
    return (f"{shown}, …" if len(value) > 8 else shown) or "no fields"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds: dict[type, str] = {int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return kinds.get(type(value), "null")


def group_name(value: Any) -> str | None:
    """The group that a value stands for: a string is its own name, null is a group without one, apart from "None".

    >>> group_name("a"), group_name(None), group_name(7), group_name(True), group_name({"b": 1})
    ('a', None, '7', 'true', '{"b": 1}')
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


# ---------------------------------------------------------------------------------------------------------- CSV and TSV


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


def table_documents(
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


# -------------------------------------------------------------------------------------------------------------- Parquet


BATCH_ROWS = 256


def parquet_documents(path: Path, reading: Reading, advance: Advance) -> Iterator[Document]:
    """The rows of a file, one by one: text, or bytes that are UTF-8; a null is a document without text.

    Raises:
        BytegolfError: it is no Parquet file or damaged, it lacks a column, or a column holds something else than text.
    """
    import pyarrow
    import pyarrow.parquet

    done = 0
    try:
        size = path.stat().st_size
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            text = _place(schema, reading.field, path, "--field")
            group = None if reading.group_field is None else _place(schema, reading.group_field, path, "--group-field")
            _check_text(schema, text, path)
            rows, told = max(1, file.metadata.num_rows), 0
            columns = list({".".join(place) for place in (text, group) if place is not None})
            for batch in _batches(file, columns):
                groups = [path.name] * batch.num_rows if group is None else _groups(_column(batch, group), path)
                for number, (data, its) in enumerate(zip(_texts(_column(batch, text)), groups, strict=True), done + 1):
                    yield _document(data, its, f"{path}, row {number}")
                done += batch.num_rows
                advance(size * done // rows - told)
                told = size * done // rows
    except (pyarrow.ArrowException, OSError) as error:
        raise BytegolfError(
            f"{path} is no readable Parquet file ({' '.join(str(error).split())[:120]}): get it again"
        ) from error


def _batches(file: Any, columns: list[str]) -> Iterator[Any]:
    """Rows by the hundred. A batch over two row groups is more than Arrow can do for dictionaries inside of structs."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=columns)


def _document(data: bytes | None, group: str | None, where: str) -> Document:
    if data is None:
        return Document(b"", group, where)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BytegolfError(f"{where} is not UTF-8 (at its byte {error.start}): convert it, or leave it out") from error
    return Document(data, group)


def _place(schema: Any, name: str, path: Path, option: str) -> list[str]:
    """The names that lead to a column, or to a field inside of columns of structs: ``meta.text`` is one or two."""
    found = _steps(schema, name)
    if found is None:
        known = ", ".join(schema.names)
        raise BytegolfError(f"{path} has no column {name!r} (it has {known}): name it with {option}")
    if len(schema.get_all_field_indices(found[0])) > 1:
        raise BytegolfError(f"{path} has two columns called {found[0]!r}: rename one of them")
    return found


def _steps(fields: Any, name: str) -> list[str] | None:
    """Like ``lookup``, in the fields of a schema or of a struct's type."""
    import pyarrow

    inside = {field.name: field.type for field in fields}
    if name in inside:
        return [name]
    for at, char in enumerate(name):
        if char == "." and name[:at] in inside and pyarrow.types.is_struct(inside[name[:at]]):
            below = _steps(inside[name[:at]], name[at + 1 :])
            if below is not None:
                return [name[:at], *below]
    return None


def _check_text(schema: Any, place: list[str], path: Path) -> None:
    """Raise unless the column may hold text."""
    from pyarrow import types

    kind = schema.field(place[0]).type
    for name in place[1:]:
        kind = kind.field(name).type
    plain = kind.value_type if types.is_dictionary(kind) else kind
    strings = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    if any(test(plain) for test in (*strings, *binary)):
        return
    hint = f": name one of its fields, --field {'.'.join(place)}.{kind.field(0).name}" if types.is_struct(kind) else ""
    raise BytegolfError(
        f"{path} has no text in column {'.'.join(place)!r}, but {kind}{hint or ': name the right one with --field'}"
    )


def _column(batch: Any, place: list[str]) -> Any:
    """An array of a batch; a null struct has null fields."""
    import pyarrow
    from pyarrow import compute

    found = batch.column(place[0])
    if len(place) > 1:
        found = compute.struct_field(found, place[1:])
    return found.dictionary_decode() if pyarrow.types.is_dictionary(found.type) else found


def _texts(column: Any) -> list[bytes | None]:
    """The bytes of each text; those of a string column are looked at here, since Arrow believes what a file says."""
    import pyarrow
    from pyarrow import types

    if types.is_null(column.type):
        return [None] * len(column)
    if types.is_string(column.type) or types.is_large_string(column.type) or types.is_string_view(column.type):
        column = column.cast(pyarrow.large_binary())
    values: list[bytes | None] = column.to_pylist()
    return values


def _groups(column: Any, path: Path) -> list[str | None]:
    """The group of each row. Dates and times are Arrow's text: Python's have no nanoseconds and no year 10,000.

    Times with a zone are in UTC; one whose year is beyond Arrow's own calendar is its number in words.
    """
    import pyarrow
    from pyarrow import types

    if types.is_timestamp(column.type):
        column = column.cast(pyarrow.timestamp(column.type.unit))  # without its zone, whose table may not be here
    if types.is_temporal(column.type) and not types.is_interval(column.type):
        column = column.cast(pyarrow.string())
    elif _has_times(column.type):  # Python's form of which depends on whether pandas is installed
        raise BytegolfError(
            f"{path} has {column.type} in the column of groups, which make no names: name another with --group-field"
        )
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pyarrow.large_binary()).to_pylist()
    return [_group(value) for value in values]


def _has_times(kind: Any) -> bool:
    """Whether there are times inside of a list, struct or map."""
    from pyarrow import types

    inner = [kind.field(number).type for number in range(kind.num_fields)]
    return any((types.is_temporal(each) and not types.is_interval(each)) or _has_times(each) for each in inner)


def _group(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="surrogateescape")
    try:
        return group_name(value)
    except TypeError:  # decimals, and times inside of lists
        return str(value)


# ----------------------------------------------------------------------------------------------------------- JSON lines


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
