"""Documents in blocks, what a worker encodes at once. The sources alone decide where one ends, never the workers.

So the same sources give the same blocks in the same order with any number of workers, and a number of blocks says how
far an export is. Example: lines of 1.5, 1 and 0.7 MiB in a plain file are two blocks, since a block ends with the line
that brings it to 2 MiB: bytes 0 to 2.5 Mi and 2.5 to 3.2 Mi. Of such a file only the two places are sent to a worker,
which reads the bytes itself; lines from stdin or a compressed file, which can be read once and in order, are sent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from bytegolf.data import corpus
from bytegolf.data.corpus import Remark
from bytegolf.data.document import Advance, Document, Reading
from bytegolf.data.tables import block_records, records
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors

BLOCK_BYTES = 2 << 20
"""A block ends with the document that brings it to so many bytes: enough to hide what handing one over costs, little
enough to keep many in memory and every core busy."""


@runtime_checkable
class Block(Protocol):
    """Documents that follow one another, somewhere."""

    @property
    def size(self) -> int:
        """How many bytes of the sources it is, for the progress bar."""

    def documents(self) -> Iterator[Document]:
        """Those without text among them. Raises BytegolfError, with file and line, for what is no text."""


@dataclass(frozen=True)
class Texts:
    """Documents that are already read."""

    texts: list[Document]
    size: int

    def documents(self) -> Iterator[Document]:
        return iter(self.texts)


@dataclass(frozen=True)
class RawLines:
    """JSON lines that are read and not parsed: from stdin, or decompressed."""

    file: str
    first: int
    """the number of the first line in the file"""
    lines: list[bytes]
    size: int
    reading: Reading

    def documents(self) -> Iterator[Document]:
        return records(self.lines, self.file, self.reading, self.first)


@dataclass(frozen=True)
class LineRange:
    """Whole JSON lines of a plain file, by their place in it: the worker reads them."""

    file: str
    start: int
    stop: int
    reading: Reading

    @property
    def size(self) -> int:
        return self.stop - self.start

    def documents(self) -> Iterator[Document]:
        path = Path(self.file)
        with disk_errors(path, "read"), path.open("rb") as raw:
            raw.seek(self.start)
            data = raw.read(self.size)
        if len(data) < self.size:
            raise BytegolfError(f"{self.file} has become shorter since prepare began: run prepare again")
        try:
            return iter(block_records(data, self.file, self.reading))
        except BytegolfError:  # the message must count from the beginning of the file
            with path.open("rb") as raw:
                pieces = iter(lambda: raw.read(min(1 << 20, self.start - raw.tell())), b"")
                first = 1 + sum(piece.count(b"\n") for piece in pieces)
            list(records(data.split(b"\n"), self.file, self.reading, first))
            raise


def of_files(files: Sequence[str], reading: Reading, remark: Remark = lambda said: None) -> Iterator[Block]:
    """The blocks of ``files`` (from ``corpus.expand``), in order; ``remark`` is told what is odd in one."""
    for file in files:
        if corpus.is_plain_lines(file):
            yield from _ranges(file, reading)
        elif corpus.is_lines(file):
            yield from _raw(file, reading)
        else:
            yield from of_documents(functools.partial(corpus.documents, file, reading, remark=remark))


def documents(blocks: Iterator[Block], advance: Advance) -> Iterator[Document]:
    """The documents of blocks one by one, without blank ones."""
    for block in blocks:
        yield from filter(Document.has_text, block.documents())
        advance(block.size)
        del block  # or it would be held while the next one is read


def of_documents(documents: Callable[[Advance], Iterator[Document]]) -> Iterator[Texts]:
    """The blocks of documents that are read here; ``documents`` is told whom to tell."""
    read = 0

    def advance(count: int) -> None:
        nonlocal read
        read += count

    texts: list[Document] = []
    held = told = 0
    for document in documents(advance):
        texts.append(document)
        held += len(document.data)
        if held >= BLOCK_BYTES:
            yield Texts(texts, read - told)
            texts, held, told = [], 0, read
    yield Texts(texts, read - told)


def _ranges(file: str, reading: Reading) -> Iterator[LineRange]:
    path = Path(file)
    corpus.check_start(file)
    with disk_errors(path, "read"), path.open("rb") as raw:
        size = path.stat().st_size
        start = 0
        while start < size:
            raw.seek(start + BLOCK_BYTES)
            raw.readline()  # the block ends with the line in which it reaches its size
            stop = min(raw.tell(), size)
            yield LineRange(file, start, stop, reading)
            start = stop


def _raw(file: str, reading: Reading) -> Iterator[RawLines]:
    name = "stdin" if file == corpus.STDIN_LINES else file
    with corpus.open_lines(file) as (stream, position):
        lines: list[bytes] = []
        first, held, told = 1, 0, 0
        for line in stream:
            lines.append(line)
            held += len(line)
            if held >= BLOCK_BYTES:
                yield RawLines(name, first, lines, position() - told, reading)
                first, lines, held, told = first + len(lines), [], 0, position()
        yield RawLines(name, first, lines, position() - told, reading)
