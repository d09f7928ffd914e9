"""The file of compressed bytes: a header, blocks, an end. docs/formats/compressed.md specifies it.

Every part carries a checksum of its own, so that an altered file is refused before a model works on it, and every size
is checked against a limit before memory is taken for it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bytegolf.errors import BytegolfError
from bytegolf.infer.numerics import MOST_THREADS, PROBE_BYTES, Numerics

MAGIC = b"BGOLFZIP"
VERSION = 1
BLOCK = 1 << 23
"""Bytes of the original in a block, at most."""

STREAM_LIMIT = 4096
"""Streams of a block, at most."""

_END, _CODED, _STORED = range(3)
_PRELUDE = struct.Struct("<8sH")  # magic, format version
_HEADER = struct.Struct(f"<32sQIHHB{PROBE_BYTES}sB")
# artifact, bytes of the original, stride, threads, streams, native, probe, bytes of the place
_UNKNOWN = (1 << 64) - 1
_BLOCK = struct.Struct("<BHII")  # kind, streams, bytes of the original, bytes of the payload
_END_PART = struct.Struct("<BQI")  # kind, bytes of the original, their CRC
_CRC = struct.Struct("<I")


@runtime_checkable
class Readable(Protocol):
    """A file or a pipe to read bytes from; less than ``size`` may come, and nothing at the end."""

    def read(self, size: int, /) -> bytes: ...


@runtime_checkable
class Writable(Protocol):
    """A file or a pipe to write bytes to."""

    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True)
class Header:
    """What a file says before its first block."""

    artifact: bytes
    """the SHA-256 of the model's file"""
    size: int | None
    """of the original in bytes, where that was known before (not of a pipe); the end has what it came to"""
    stride: int
    """new tokens per window (``codec.Mode``)"""
    streams: int
    """the most of any block, which the probe was made with"""
    numerics: Numerics
    """how the compressing process computed"""

    def pack(self) -> bytes:
        how = self.numerics
        place = how.place.encode("ascii", "replace")[:255]
        size = _UNKNOWN if self.size is None else self.size
        values = (self.artifact, size, self.stride, how.threads, self.streams, how.native, how.probe, len(place))
        return _sealed(_PRELUDE.pack(MAGIC, VERSION) + _HEADER.pack(*values) + place)

    @staticmethod
    def read(source: Readable, where: str) -> Header:
        """The header at the beginning of ``source``; raises BytegolfError if there is none that can be read."""
        prelude = read_up_to(source, _PRELUDE.size)
        if prelude[: len(MAGIC)] != MAGIC or len(prelude) < _PRELUDE.size:
            raise BytegolfError(f"{where} was not compressed by bytegolf (its first bytes differ): name another file")
        version = _PRELUDE.unpack(prelude)[1]
        if version != VERSION:
            raise BytegolfError(
                f"{where} has format version {version}, and this bytegolf reads version {VERSION}: use the bytegolf "
                "that compressed it"
            )
        fixed = _exactly(source, _HEADER.size, where)
        artifact, size, stride, threads, streams, on, probe, place_bytes = _HEADER.unpack(fixed)
        place = _exactly(source, place_bytes, where)
        _check(source, prelude + fixed + place, where)
        if not 1 <= threads <= MOST_THREADS or not 1 <= streams <= STREAM_LIMIT:
            raise damaged(where, f"it declares {threads} threads and {streams} streams")
        numerics = Numerics(threads, bool(on), place.decode("ascii", "replace"), probe)
        return Header(artifact, None if size == _UNKNOWN else size, stride, streams, numerics)


@dataclass(frozen=True)
class Block:
    """``size`` bytes of the original: coded in ``streams``, or stored (0)."""

    streams: int
    size: int
    payload: bytes

    def pack(self) -> bytes:
        kind = _CODED if self.streams else _STORED
        return _sealed(_BLOCK.pack(kind, self.streams, self.size, len(self.payload)) + self.payload)


@dataclass(frozen=True)
class End:
    """The last part: how many bytes the original has, and their CRC-32."""

    size: int
    crc: int

    def pack(self) -> bytes:
        return _sealed(_END_PART.pack(_END, self.size, self.crc))


def read_part(source: Readable, most_streams: int, where: str) -> Block | End:
    """The next part of ``source``; raises BytegolfError if it is cut short or altered."""
    kind = _exactly(source, 1, where)
    if kind[0] == _END:
        rest = _exactly(source, _END_PART.size - 1, where)
        _check(source, kind + rest, where)
        if source.read(1):
            raise damaged(where, "something follows its end")
        return End(*_END_PART.unpack(kind + rest)[1:])
    rest = _exactly(source, _BLOCK.size - 1, where)
    _, streams, size, stored = _BLOCK.unpack(kind + rest)
    coded = kind[0] == _CODED and 1 <= streams <= most_streams and stored < size and stored % 4 == 0
    if not (1 <= size <= BLOCK and (coded or (kind[0] == _STORED and not streams and stored == size))):
        raise damaged(where, f"a block declares {size:,} bytes in {stored:,}")
    payload = _exactly(source, stored, where)
    _check(source, kind + rest + payload, where)
    return Block(streams, size, payload)


def damaged(where: str, why: str) -> BytegolfError:
    """The error for a file that began as one of these and is none."""
    return BytegolfError(f"{where} is damaged ({why}): copy it again, or compress the original again")


def _sealed(part: bytes) -> bytes:
    return part + _CRC.pack(zlib.crc32(part))


def _check(source: Readable, part: bytes, where: str) -> None:
    if zlib.crc32(part) != _CRC.unpack(_exactly(source, _CRC.size, where))[0]:
        raise damaged(where, "a checksum does not match")


def _exactly(source: Readable, size: int, where: str) -> bytes:
    found = read_up_to(source, size)
    if len(found) < size:
        raise damaged(where, "it ends too early")
    return found


def read_up_to(source: Readable, size: int) -> bytes:
    """``size`` bytes, or what there is until the end: a pipe may hand out less at a time."""
    parts, missing = [], size
    while missing and (part := source.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
