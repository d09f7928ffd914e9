"""Rows of a Parquet file as documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bytegolf.data.document import Advance, Document, Reading
from bytegolf.data.rows import group_name
from bytegolf.errors import BytegolfError

BATCH_ROWS = 256


def documents(path: Path, reading: Reading, advance: Advance) -> Iterator[Document]:
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
    """Like ``rows.lookup``, in the fields of a schema or of a struct's type."""
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
