"""Files of documents, read a line, a batch of rows or a piece at a time: text and JSON lines (plain, gzip, xz, bzip2 or
zstd), Parquet and stdin. Whatever the size, memory holds little more than one document.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from bytegolf.data import tables
from bytegolf.data.compression import HEAD_BYTES, DamagedError, check_head, split_ending, unpacked
from bytegolf.data.document import MIN_CUT, Advance, Document, Reading
from bytegolf.errors import BytegolfError
from bytegolf.files import MOST_BYTES, disk_errors
from bytegolf.folders import Tally, check_file, in_words, walk

PIECE_BYTES = 8 << 20
"""A plain text longer than this is cut into several documents: SentencePiece needs fifty bytes of memory for each byte
of the document that it encodes."""

TEXT_ENDINGS = (".txt", ".md", ".text", ".rst", ".tex", ".html", ".csv", ".tsv", ".py")
LINES_ENDINGS = (".jsonl", ".ndjson")
JSON_ENDING, PARQUET_ENDING = ".json", ".parquet"
"""JSON in folders is mostly something else (settings, notebooks); a file that is named itself is read."""
STDIN_TEXT, STDIN_LINES = "-", "-.jsonl"

Remark = Callable[[str], None]
"""Told, in a sentence, what is odd and no error."""

_LONGEST_HEADER = 1 << 13
"""Bytes of a table's first line, which a buffer holds."""
_LIKE_JSON = re.compile(rb'\s*(\{\s*"|\[\s*\{)')


def expand(sources: Sequence[str], tally: Tally) -> list[str]:
    """The files behind ``sources``: folders become their readable files, recursively and sorted.

    What is left out of folders is counted in ``tally``: files of other endings, what is hidden (``.git``, ``.venv``),
    pipes, devices, links that lead nowhere or to what is read anyway. A file named by itself is read whatever its
    ending is.

    Raises:
        BytegolfError: a source is not there or no file, a folder holds nothing to read, or something may not be read.
    """
    files: list[str] = []
    for source in sources:
        path = Path(source)
        if source in (STDIN_TEXT, STDIN_LINES):
            files.append(source)
            continue
        with disk_errors(path, "read"):
            if path.is_dir():
                files.extend(_in_folder(path, tally))
            elif path.exists():
                check_file(path, "name files of text, and - for stdin", pipes=True)
                files.append(source)
            else:
                raise BytegolfError(f"there is no file or folder {source}: check the path")
    for file in files:
        if file not in (STDIN_TEXT, STDIN_LINES) and not os.access(file, os.R_OK):
            with disk_errors(Path(file), "read"), Path(file).open("rb"):
                pass
    return files


def _in_folder(folder: Path, tally: Tally) -> list[str]:
    inside = Tally()
    found = sorted(str(file) for _, files in walk(folder, inside, _is_read) for file in files)
    tally.include(inside.all())
    if not found:
        known = ", ".join((*TEXT_ENDINGS, *LINES_ENDINGS, PARQUET_ENDING))
        said = in_words(inside.all())
        raise BytegolfError(
            f"the folder {folder} holds no file to read ({known}{f'; {said}' if said else ''}): name files"
        )
    return found


def _is_read(path: Path) -> bool:
    """Whether a file in a folder is read, by its ending."""
    name, form = split_ending(path.name)
    return name.endswith(TEXT_ENDINGS + LINES_ENDINGS) or (form is None and name.endswith(PARQUET_ENDING))


def total_bytes(files: Sequence[str]) -> int | None:
    """The size of ``files`` on disk; None where stdin or a pipe is among them, which come once and without a size."""
    if any(file in (STDIN_TEXT, STDIN_LINES) or not Path(file).is_file() for file in files):
        return None
    total = 0
    for file in files:
        with disk_errors(Path(file), "read"):
            total += Path(file).stat().st_size
    return total


def is_plain_lines(file: str) -> bool:
    """Whether it is a file of JSON lines that can be read from anywhere: not compressed, no pipe."""
    return file.lower().endswith(LINES_ENDINGS) and Path(file).is_file()


def is_lines(file: str) -> bool:
    """Whether it holds JSON lines, in whatever form."""
    return file == STDIN_LINES or split_ending(file)[0].endswith(LINES_ENDINGS)


@contextlib.contextmanager
def open_lines(file: str) -> Iterator[tuple[Iterator[bytes], Callable[[], int]]]:
    """JSON lines as they come, unpacked, and how far they are read in the file."""
    with _opened(file) as (stream, name, position):
        yield _lines(stream, name), position or (lambda: 0)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[tuple[io.BufferedIOBase, str, Callable[[], int] | None]]:
    """What a file or stdin holds, unpacked; what to call it in errors; and how far it is read, where that is known.

    Raises BytegolfError for the first bytes of anything that cannot be text.
    """
    if file in (STDIN_TEXT, STDIN_LINES):
        stdin = cast("io.BufferedIOBase", sys.stdin.buffer)
        check_head(_head(stdin), "stdin")
        yield stdin, "stdin", None
        return
    with disk_errors(Path(file), "read"), Path(file).open("rb") as raw:
        try:
            stream = unpacked(raw, file)
            check_head(_head(stream), file)
        except DamagedError as error:
            raise _damaged(file, "line 0" if is_lines(file) else "byte 0", error) from error
        yield stream, file, raw.tell if raw.seekable() else None


def _head(stream: io.BufferedIOBase, size: int = HEAD_BYTES) -> bytes:
    """The first bytes of a stream, which stay in it; none where that cannot be (a stdin that somebody has replaced)."""
    return stream.peek(size)[:size] if hasattr(stream, "peek") else b""


def _damaged(file: str, where: str, error: Exception) -> BytegolfError:
    return BytegolfError(f"{file} breaks off or is damaged behind {where} of its text ({error}): get it again")


def check_start(file: str) -> None:
    """Raise if plain JSON lines begin with the first bytes of something else."""
    with _opened(file):
        pass


def documents(file: str, reading: Reading, advance: Advance, remark: Remark = lambda said: None) -> Iterator[Document]:
    """The documents of a plain text, a table, a ``.json`` or a Parquet file.

    Raises BytegolfError where it is not UTF-8, lacks a field, breaks off or is of no kind of text.
    """
    if file.lower().endswith(PARQUET_ENDING):
        yield from tables.parquet_documents(Path(file), reading, advance)
        return
    with _opened(file) as (stream, name, position):
        table = None
        if split_ending(file)[0].endswith(tables.ENDINGS):
            table = tables.columns(_head(stream, _LONGEST_HEADER), file, reading)
            if table is None:
                remark(f"{file} is read as plain text: --field COLUMN makes a document of each of its rows")
        if table is not None:
            try:
                yield from tables.table_documents(stream, name, table, reading, advance, position or (lambda: 0))
            except DamagedError as error:
                raise _damaged(file, "the beginning", error) from error
        elif split_ending(file)[0].endswith(JSON_ENDING):
            yield from _json(stream, name, reading)
            advance(position() if position else 0)
        else:
            yield from _texts(stream, name, reading.cut, advance, remark, position)


def _json(stream: io.BufferedIOBase, file: str, reading: Reading) -> Iterator[Document]:
    """An array of objects, which is read as a whole, or an object a line, as some call ``.json`` as well."""
    if _head(stream).lstrip()[:1] != b"[":
        yield from tables.records(_lines(stream, file), file, reading)
        return
    try:
        data = stream.read(MOST_BYTES + 1)
    except DamagedError as error:
        raise _damaged(file, "the beginning", error) from error
    if len(data) > MOST_BYTES:
        raise BytegolfError(
            f"{file} is an array of more than {MOST_BYTES:,} bytes: make JSON lines of it, as `jq -c '.[]'` does"
        )
    yield from tables.array(data, file, reading)


def _lines(stream: io.BufferedIOBase, file: str) -> Iterator[bytes]:
    number = 0
    try:
        for line in stream:
            number += 1
            yield line
    except DamagedError as error:
        raise _damaged(file, f"line {number}", error) from error


def _texts(
    stream: io.BufferedIOBase,
    file: str,
    cut: int,
    advance: Advance,
    remark: Remark = lambda said: None,
    position: Callable[[], int] | None = None,
) -> Iterator[Document]:
    """A plain text as documents: one, or pieces of ``cut`` or PIECE_BYTES bytes at the latest paragraph or line end.

    ``position``: how far its file is read, if that is not how much text came.
    """
    size = min(cut or PIECE_BYTES, PIECE_BYTES)
    group = Path(file).name
    rest, start, told = b"", 0, 0  # start: where the rest begins in the text
    try:
        while block := stream.read(max(1 << 20, size)):
            at = position() if position else told + len(block)
            advance(at - told)
            told = at
            if not start and not rest and _LIKE_JSON.match(block):
                remark(f"{file} begins like JSON and is read as plain text: JSON lines end in .jsonl (stdin: -.jsonl)")
            rest += block
            begin = 0
            while len(rest) - begin > size:
                end = _cut_at(rest, begin, size)
                yield Document(_utf8(rest[begin:end], file, start + begin), group)
                begin = end
            rest, start = rest[begin:], start + begin
    except DamagedError as error:
        raise _damaged(file, f"byte {start + len(rest)}", error) from error
    if rest or not start:  # an empty file is a document without text
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
