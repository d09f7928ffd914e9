"""Documents from anywhere: text files, folders, JSON lines (plain, gzip, zstd), Parquet and stdin, as one stream.

Whatever the size, memory holds little more than one document: files are read a line, a row group or a piece at a time.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors

PIECE_BYTES = 64 << 20
"""A text longer than this is cut into several documents, so that none has to fit into memory whole."""

TEXT_SUFFIXES = (".txt", ".md", ".text", ".rst", ".tex", ".html", ".csv", ".tsv", ".py")
LINES_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)
STDIN_TEXT, STDIN_LINES = "-", "-.jsonl"

Advance = Callable[[int], None]
"""Told how many bytes of the sources have been read since the last call."""


@dataclass(frozen=True)
class Document:
    """One text."""

    text: str
    group: str
    """what it belongs to (an author, a book, a site), for splits that keep groups together; its file's name if nothing
    says otherwise"""
    where: str
    """where it came from, for messages"""


@dataclass(frozen=True)
class Reading:
    """How documents are read."""

    field: str = "text"
    """the JSON field or Parquet column that holds the text"""
    group_field: str | None = None
    """the one that holds the group"""
    cut: int = 0
    """cut plain texts into documents of about so many bytes, at paragraph or line ends; 0 = a file is a document"""


def expand(sources: Sequence[str]) -> list[str]:
    """The files behind ``sources``: folders become their readable files, recursively and sorted.

    Raises BytegolfError for a source that is not there, or a folder with nothing to read in it.
    """
    files: list[str] = []
    for source in sources:
        path = Path(source)
        if source in (STDIN_TEXT, STDIN_LINES):
            files.append(source)
        elif path.is_dir():
            known = TEXT_SUFFIXES + LINES_SUFFIXES + PARQUET_SUFFIXES
            found = sorted(str(file) for file in path.rglob("*") if file.is_file() and file.name.endswith(known))
            if not found:
                raise BytegolfError(f"the folder {source} holds no file to read ({', '.join(known)}): name files")
            files.extend(found)
        elif path.exists():
            files.append(source)
        else:
            raise BytegolfError(f"there is no file or folder {source}: check the path")
    return files


def total_bytes(files: Sequence[str]) -> int | None:
    """The size of ``files`` on disk; None where stdin is among them."""
    if any(file in (STDIN_TEXT, STDIN_LINES) for file in files):
        return None
    return sum(Path(file).stat().st_size for file in files)


def documents(files: Sequence[str], reading: Reading, advance: Advance = lambda count: None) -> Iterator[Document]:
    """The documents of ``files`` (from ``expand``), in order; blank ones are left out.

    Raises BytegolfError, with file and line, for text that is not UTF-8, malformed JSON or a missing field.
    """
    for file in files:
        for document in _of_file(file, reading, advance):
            if document.text.strip():
                yield document


def _of_file(file: str, reading: Reading, advance: Advance) -> Iterator[Document]:
    if file == STDIN_TEXT:
        yield from _texts(sys.stdin.buffer, "stdin", reading.cut, advance)
    elif file == STDIN_LINES:
        yield from _lines(sys.stdin.buffer, "stdin", reading, lambda: 0, advance)
    elif file.endswith(PARQUET_SUFFIXES):
        yield from _rows(Path(file), reading, advance)
    else:
        with disk_errors(Path(file), "read"), Path(file).open("rb") as raw:
            if file.endswith(LINES_SUFFIXES):
                yield from _lines(_decompressed(raw, file), file, reading, raw.tell, advance)
            else:
                yield from _texts(raw, file, reading.cut, advance)


def _decompressed(raw: IO[bytes], file: str) -> IO[bytes]:
    if file.endswith(".gz"):
        return gzip.open(raw, "rb")  # type: ignore[return-value]
    if file.endswith(".zst"):
        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True), 1 << 20)
    return raw


def _lines(
    stream: IO[bytes], file: str, reading: Reading, position: Callable[[], int], advance: Advance
) -> Iterator[Document]:
    number = done = 0
    try:
        for line in stream:
            number += 1
            where = f"{file}, line {number}"
            if line.strip():
                yield _record(_json(line, where), where, file, reading)
            if (now := position()) > done:
                advance(now - done)
                done = now
    except (EOFError, gzip.BadGzipFile) as error:
        raise BytegolfError(f"{file} breaks off or is damaged behind line {number} ({error}): get it again") from error
    except Exception as error:  # zstandard's error type is known only where it is imported
        if type(error).__name__ != "ZstdError":
            raise
        raise BytegolfError(f"{file} is damaged behind line {number} ({error}): get it again") from error


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise BytegolfError(f"{where} is not UTF-8: convert the file") from error
    except ValueError as error:
        raise BytegolfError(f"{where} is not JSON ({error}): one object a line is expected") from error


def _record(value: Any, where: str, file: str, reading: Reading) -> Document:
    if not isinstance(value, dict) or not isinstance(value.get(reading.field), str):
        raise BytegolfError(f"{where} has no text under {reading.field!r}: name the right field with --field")
    group = file
    if reading.group_field is not None:
        if reading.group_field not in value:
            raise BytegolfError(f"{where} has no {reading.group_field!r}: name the right field with --group-field")
        group = str(value[reading.group_field])
    text: str = value[reading.field]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON, but no text
        raise BytegolfError(f"{where} holds half a surrogate pair, which is no Unicode text: mend that line") from error
    return Document(text, group, where)


def _rows(path: Path, reading: Reading, advance: Advance) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    size = path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = [reading.field, *([reading.group_field] if reading.group_field else [])]
            for column in wanted:
                if column not in file.schema_arrow.names:
                    known = ", ".join(file.schema_arrow.names)
                    raise BytegolfError(f"{path} has no column {column!r} (it has {known}): name it with --field")
            rows, done, told = max(1, file.metadata.num_rows), 0, 0
            for batch in file.iter_batches(batch_size=256, columns=wanted):
                for offset, row in enumerate(batch.to_pylist()):
                    yield _record(row, f"{path}, row {done + offset + 1}", str(path), reading)
                done += batch.num_rows
                advance(size * done // rows - told)
                told = size * done // rows
    except (pyarrow.ArrowException, OSError) as error:
        raise BytegolfError(f"{path} is no readable Parquet file ({str(error)[:120]}): get it again") from error


def _texts(stream: IO[bytes], file: str, cut: int, advance: Advance) -> Iterator[Document]:
    """A plain text as documents: one, or pieces of ``cut`` or PIECE_BYTES bytes at the latest paragraph or line end."""
    size = min(cut or PIECE_BYTES, PIECE_BYTES)
    rest, number, start = b"", 0, 0
    while True:
        block = stream.read(max(1 << 20, size))
        advance(len(block))
        rest += block
        while len(rest) > size:
            end = _cut_at(rest, size)
            number += 1
            yield Document(_utf8(rest[:end], file, start), file, f"{file}, part {number}")
            rest, start = rest[end:], start + end
        if not block:
            break
    if rest:
        where = f"{file}, part {number + 1}" if number else file
        yield Document(_utf8(rest, file, start), file, where)


def _cut_at(data: bytes, size: int) -> int:
    """Where to cut: behind the last blank line, line or space among the first ``size`` bytes, or between characters."""
    for mark in (b"\n\n", b"\n", b" "):
        at = data.rfind(mark, size // 2, size)
        if at >= 0:
            return at + len(mark)
    end = size
    while end > 1 and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _utf8(data: bytes, file: str, start: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BytegolfError(
            f"{file} is not UTF-8 (at byte {start + error.start}): convert it, or leave it out"
        ) from error
