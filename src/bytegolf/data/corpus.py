"""Files of documents, read a line, a batch of rows or a piece at a time: text, JSON lines (plain, gzip, zstd), Parquet
and stdin. Whatever the size, memory holds little more than one document.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import zstandard

from bytegolf.data.document import MIN_CUT, Advance, Document, Reading
from bytegolf.data.json_lines import record
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors

PIECE_BYTES = 8 << 20
"""A plain text longer than this is cut into several documents: SentencePiece needs fifty bytes of memory for each byte
of the document that it encodes."""

TEXT_SUFFIXES = (".txt", ".md", ".text", ".rst", ".tex", ".html", ".csv", ".tsv", ".py")
LINES_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)
STDIN_TEXT, STDIN_LINES = "-", "-.jsonl"


def expand(sources: Sequence[str]) -> list[str]:
    """The files behind ``sources``: folders become their readable files, recursively and sorted.

    What is hidden in a folder (``.git``, ``.venv``) is left out. A file named by itself is read whatever its ending is.

    Raises BytegolfError for a source that is not there, or a folder with nothing to read in it.
    """
    files: list[str] = []
    for source in sources:
        path = Path(source)
        if source in (STDIN_TEXT, STDIN_LINES):
            files.append(source)
            continue
        with disk_errors(path, "read"):
            if path.is_dir():
                files.extend(_in_folder(path))
            elif path.exists():
                files.append(source)
            else:
                raise BytegolfError(f"there is no file or folder {source}: check the path")
    return files


def _in_folder(folder: Path) -> list[str]:
    known = TEXT_SUFFIXES + LINES_SUFFIXES + PARQUET_SUFFIXES
    found = [
        str(file)
        for file in folder.rglob("*")
        if file.name.lower().endswith(known)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    ]
    if not found:
        raise BytegolfError(f"the folder {folder} holds no file to read ({', '.join(known)}): name files")
    return sorted(found)


def total_bytes(files: Sequence[str]) -> int | None:
    """The size of ``files`` on disk; None where stdin or a pipe is among them, which come once and without a size."""
    if any(file in (STDIN_TEXT, STDIN_LINES) or not Path(file).is_file() for file in files):
        return None
    return sum(Path(file).stat().st_size for file in files)


def is_plain_lines(file: str) -> bool:
    """Whether it is a file of JSON lines that can be read from anywhere: not compressed, no pipe."""
    return file.lower().endswith((".jsonl", ".ndjson")) and Path(file).is_file()


def is_lines(file: str) -> bool:
    """Whether it holds JSON lines, in whatever form."""
    return file == STDIN_LINES or file.lower().endswith(LINES_SUFFIXES)


@contextlib.contextmanager
def open_lines(file: str) -> Iterator[tuple[Iterator[bytes], Callable[[], int]]]:
    """JSON lines as they come, decompressed, and how far they are read in the file."""
    if file == STDIN_LINES:
        yield _lines(cast("io.BufferedIOBase", sys.stdin.buffer), "stdin"), lambda: 0
        return
    with disk_errors(Path(file), "read"), Path(file).open("rb") as raw:
        yield _lines(_decompressed(raw, file.lower()), file), raw.tell if raw.seekable() else lambda: 0


def documents(file: str, reading: Reading, advance: Advance) -> Iterator[Document]:
    """The documents of a plain text or a Parquet file; BytegolfError where it is not UTF-8 or lacks a field."""
    if file == STDIN_TEXT:
        yield from _texts(cast("io.BufferedIOBase", sys.stdin.buffer), "stdin", reading.cut, advance)
    elif file.lower().endswith(PARQUET_SUFFIXES):
        yield from _rows(Path(file), reading, advance)
    else:
        with disk_errors(Path(file), "read"), Path(file).open("rb") as raw:
            yield from _texts(raw, file, reading.cut, advance)


def _decompressed(raw: io.BufferedReader, file: str) -> io.BufferedIOBase:
    if file.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if file.endswith(".zst"):
        return io.BufferedReader(_Frames(raw), 1 << 20)
    return raw


class _Frames(io.RawIOBase):
    """The text of zstd frames that follow one another.

    Unlike zstandard's own reader it raises EOFError for a frame that breaks off, which must not pass for the end.
    """

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # also what `zstd --long=31` wrote
        self._frame: Any = None
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            block = self._input or self._raw.read(1 << 14)
            if not block and self._frame is not None:
                raise EOFError("the last zstd frame is not complete")
            if not block:
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._output, self._input = self._frame.decompress(block), b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


def _lines(stream: io.BufferedIOBase, file: str) -> Iterator[bytes]:
    number = 0
    try:
        for line in stream:
            number += 1
            yield line
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise BytegolfError(f"{file} breaks off or is damaged behind line {number} ({error}): get it again") from error


def _rows(path: Path, reading: Reading, advance: Advance) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    done = 0
    try:
        size = path.stat().st_size
        with pyarrow.parquet.ParquetFile(path) as file:
            options = {"--field": reading.field, "--group-field": reading.group_field}
            wanted = {column: option for option, column in options.items() if column is not None}
            for column, option in wanted.items():
                if column not in file.schema_arrow.names:
                    known = ", ".join(file.schema_arrow.names)
                    raise BytegolfError(f"{path} has no column {column!r} (it has {known}): name it with {option}")
            rows, told = max(1, file.metadata.num_rows), 0
            for batch in file.iter_batches(batch_size=256, columns=list(wanted)):
                for offset, row in enumerate(batch.to_pylist()):
                    yield record(row, f"{path}, row {done + offset + 1}", path.name, reading)
                done += batch.num_rows
                advance(size * done // rows - told)
                told = size * done // rows
    except UnicodeDecodeError as error:
        raise BytegolfError(f"{path} is not UTF-8 behind row {done}: convert it, or leave it out") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise BytegolfError(
            f"{path} is no readable Parquet file ({' '.join(str(error).split())[:120]}): get it again"
        ) from error


def _texts(stream: io.BufferedIOBase, file: str, cut: int, advance: Advance) -> Iterator[Document]:
    """A plain text as documents: one, or pieces of ``cut`` or PIECE_BYTES bytes at the latest paragraph or line end."""
    size = min(cut or PIECE_BYTES, PIECE_BYTES)
    group = Path(file).name
    rest, start = b"", 0  # start: where the rest begins in the file
    while block := stream.read(max(1 << 20, size)):
        advance(len(block))
        rest += block
        begin = 0
        while len(rest) - begin > size:
            end = _cut_at(rest, begin, size)
            yield Document(_utf8(rest[begin:end], file, start + begin), group)
            begin = end
        rest, start = rest[begin:], start + begin
    if rest:
        yield Document(_utf8(rest, file, start), group)


def _cut_at(data: bytes, begin: int, size: int) -> int:
    """Where a piece of at most ``size`` bytes ends: behind a blank line, line or space in its second half, if any."""
    end = begin + size
    for mark in (b"\n\n", b"\n", b" "):
        at = data.rfind(mark, begin + size // 2, end)
        if at >= 0:
            return at + len(mark)
    for at in range(end, end - MIN_CUT, -1):
        if data[at] & 0xC0 != 0x80:  # the first byte of a character
            return at
    return end  # no UTF-8: the decoder will say where


def _utf8(data: bytes, file: str, start: int) -> bytes:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BytegolfError(f"{file} is not UTF-8 (at byte {start + error.start}): convert or omit it") from error
    return data
