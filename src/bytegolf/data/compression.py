"""Compressed files (gzip, xz, bzip2, zstd), known by the end of their names; and what a file is by its first bytes.

Python's own readers take garbage behind a stream (xz, bzip2), or the end of half a frame (zstd), for the end of the
file. This one does not, for any of the four.
"""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zstandard

from bytegolf.errors import BytegolfError

INPUT_BYTES, MOST_OUTPUT = 1 << 14, 1 << 20
"""Read at once, and taken out at once: a few kilobytes may stand for gigabytes."""

MEMORY_BYTES = 1 << 30
"""That unpacking xz may take; `xz -9` needs 65 MiB."""

HEAD_BYTES = 512
"""Of a file, by which its kind is known."""


class DamagedError(Exception):
    """A compressed file breaks off, or is not what its checksums say."""


class _Gzip:
    """zlib's decompressor with the interface of the others: it says when it wants more."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, most: int) -> bytes:
        text = self._stream.decompress(self._stream.unconsumed_tail + data, most)
        self.needs_input = not self._stream.unconsumed_tail
        return text


class _Zstd:
    """zstandard's decompressor likewise, also of what `zstd --long=31` wrote; all of a block's output comes at once.

    Such a window of 2 GiB takes memory only as it fills: 2,000 short lines with it are read in 45 MB.
    """

    needs_input = True

    def __init__(self) -> None:
        self._stream = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._stream.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._stream.unused_data)

    def decompress(self, data: bytes, most: int) -> bytes:
        return bytes(self._stream.decompress(data)) if data else b""


@dataclass(frozen=True)
class Format:
    """One way of compressing files."""

    name: str
    ending: str
    begins: re.Pattern[bytes]
    stream: Callable[[], Any]
    """a decompressor of one member (stream, frame); a file may have several, one behind the other"""
    padded: bool = False
    """whether zeros may lie between and behind its members"""


FORMATS = (
    Format("gzip", ".gz", re.compile(rb"\x1f\x8b"), _Gzip, padded=True),
    Format(
        "xz",
        ".xz",
        re.compile(rb"\xfd7zXZ\0"),
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY_BYTES),
        padded=True,
    ),
    Format("bzip2", ".bz2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor),
    # or with a frame that holds no text, as seekable files do
    Format("zstd", ".zst", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _Zstd),
)

_OTHERS = (
    (re.compile(rb"PK\x03\x04"), "a zip archive", "unpack it and name what is in it"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07"), "an archive", "unpack it and name what is in it"),
    (re.compile(rb".{257}ustar", re.DOTALL), "a tar archive", "unpack it and name what is in it"),
    (re.compile(rb"\x04\x22\x4d\x18|\x1f\x9d|LZIP\x01"), "compressed (lz4, compress or lzip)", "unpack it"),
    (re.compile(rb"%PDF-"), "a PDF", "convert it to text"),
    (re.compile(rb"PAR1"), "Parquet", "give its name the ending .parquet"),
    (re.compile(rb"ARROW1|\xff\xff\xff\xff"), "an Arrow file", "write it as Parquet"),
    (re.compile(rb"SQLite format 3\0|\x89HDF\r\n"), "a database", "write its texts as JSON lines or Parquet"),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8"), "a picture", "leave it out"),
    (
        re.compile(rb"\xff\xfe|\xfe\xff"),
        "UTF-16 text",
        "convert it to UTF-8, by `iconv -f UTF-16 -t UTF-8` for instance",
    ),
)


def split_ending(name: str) -> tuple[str, Format | None]:
    """A file's name in lower case without the ending of a compressed file, and that format; None if it has none.

    >>> split_ending("News.JSONL.xz")[0]
    'news.jsonl'
    """
    name = name.lower()
    found = next((one for one in FORMATS if name.endswith(one.ending)), None)
    return (name.removesuffix(found.ending) if found else name), found


def check_head(head: bytes, file: str) -> None:
    """Raise if ``head``, what ``file`` begins with once it is unpacked as its name says, is of no kind of text.

    So text that is valid UTF-8 may begin with any of these letters; a tar archive of texts has zero bytes, too.
    """
    if b"\0" not in head:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(head)  # the end may cut a character in two
            return
        except UnicodeDecodeError:
            pass
    for one in FORMATS:
        if one.begins.match(head):
            unpack = f"`{one.name} -d`"
            remedy = (
                f"pipe it through {unpack}" if file == "stdin" else f"end its name in {one.ending}, or run {unpack}"
            )
            raise BytegolfError(f"{file} is {one.name} by its first bytes, not text: {remedy}")
    for begins, what, remedy in _OTHERS:
        if begins.match(head):
            raise BytegolfError(f"{file} is {what} by its first bytes, not text: {remedy}")


def unpacked(raw: io.BufferedReader, file: str) -> io.BufferedReader:
    """The contents of ``file``, which is open as ``raw``, unpacked as the end of its name says.

    What is damaged raises `DamagedError`, here or when it is read.

    Raises:
        BytegolfError: its first bytes are those of something else.
    """
    name, form = split_ending(file)
    if form is None:
        return raw
    head = raw.peek(HEAD_BYTES)[:HEAD_BYTES]
    if not head:
        raise DamagedError("it is empty")
    if not form.begins.match(head):
        check_head(head, file)
        raise BytegolfError(f"{file} is not {form.name}, as its name says: give it the ending of what it is")
    if name.endswith((".tar", ".parquet")):
        raise BytegolfError(f"{file} is read only when it is unpacked: run `{form.name} -d` on it")
    return io.BufferedReader(_Unpacked(raw, form, file), MOST_OUTPUT)


class _Unpacked(io.RawIOBase):
    """The text of the members of a compressed file."""

    def __init__(self, raw: io.BufferedReader, form: Format, file: str) -> None:
        self._raw, self._format, self._file = raw, form, file
        self._stream: Any = None
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            if not self._advance():
                return 0
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count

    def _advance(self) -> bool:
        """Take a step; False at the end of the file."""
        ended = False
        if not self._input and (self._stream is None or self._stream.needs_input):
            self._input = self._raw.read(INPUT_BYTES)
            ended = not self._input
        if self._stream is None:
            if self._format.padded:
                self._input = self._input.lstrip(b"\0")
            if not self._input:
                return not ended
            self._stream = self._format.stream()
        data, self._input = self._input, b""
        try:
            self._output = self._stream.decompress(data, MOST_OUTPUT)
        except (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
            said = " ".join(str(error).split())
            if "memory" in said.lower():
                raise BytegolfError(
                    f"{self._file} needs more memory to be unpacked than it gets ({said}): unpack it with "
                    f"`{self._format.name} -d` before"
                ) from error
            raise DamagedError(said) from error
        if self._stream.eof:
            self._input, self._stream = self._stream.unused_data, None
        elif ended and not self._output:
            raise DamagedError(f"the last {self._format.name} stream is not complete")
        return True
