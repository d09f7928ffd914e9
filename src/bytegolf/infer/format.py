"""The file of compressed bytes: a header, blocks, an end. docs/formats/compressed.md specifies it.

A small file is mostly its header, so there is little of it: 4 bytes and what a model needs. Every size is checked
against a limit before memory is taken for it, blocks have checksums, and the end has one of the original.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bytegolf.errors import BytegolfError
from bytegolf.infer.numerics import KINDS, MOST_THREADS, PROBE_BYTES, Numerics

MAGIC = b"\xb9Z"
VERSION = 2
MIB = 1 << 20
MOST_BLOCK, MOST_MEGABYTES = 16 * MIB, 1 << 12
STREAM_LIMIT = 4096
"""Streams of a block, at most."""

ID_BYTES = 8
"""Of an artifact's SHA-256, by which a file names its model."""

LEAST_CHECKED = 64
"""Bytes of a payload from which on it has a checksum of its own."""

_SIZED, _MODEL = 1, 2
_END, _CODED, _X86, _STORED = range(4)
_MODEL_PART = struct.Struct(
    f"<{ID_BYTES}sBBB{PROBE_BYTES}s"
)  # artifact, threads, kind of numerics, bytes of the place, probe
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
class ModelPart:
    """What a file says of the model that it was compressed with."""

    artifact: bytes
    """the beginning of the SHA-256 of its file"""
    stride: int
    """new tokens per window (``streams.Mode``)"""
    numerics: Numerics
    """how the compressing process computed"""


@dataclass(frozen=True)
class Header:
    """What a file says before its first block."""

    block: int
    """bytes of the original in every block but the last, a multiple of 1 MiB"""
    megabytes: int
    """memory for what mixing learns, a power of 2"""
    streams: int
    """the most of any block"""
    size: int | None = None
    """of the original in bytes, where that was known before and needs more than one block; the end knows it all"""
    model: ModelPart | None = None
    """None: context mixing alone"""

    def pack(self) -> bytes:
        flags = _SIZED * (self.size is not None) | _MODEL * (self.model is not None)
        sizes = (self.block // MIB).bit_length() - 1 | (self.megabytes.bit_length() - 1) << 4
        parts = [MAGIC, bytes([VERSION << 4 | flags, sizes])]
        if self.size is not None:
            parts.append(_varint(self.size))
        if self.model is not None:
            how = self.model.numerics
            place = how.place.encode("ascii", "replace")[:255]
            parts += [_MODEL_PART.pack(self.model.artifact, how.threads, how.kind, len(place), how.probe), place]
            parts += [_varint(self.model.stride), _varint(self.streams)]
        return b"".join(parts)

    @staticmethod
    def read(source: Readable, where: str) -> Header:
        """The header at the beginning of ``source``; raises BytegolfError if there is none that can be read."""
        start = read_up_to(source, 4)
        if start[:2] != MAGIC or len(start) < 4:
            raise BytegolfError(f"{where} was not compressed by bytegolf (its first bytes differ): name another file")
        version, flags, sizes = start[2] >> 4, start[2] & 15, start[3]
        if version != VERSION or flags & ~(_SIZED | _MODEL):
            raise BytegolfError(
                f"{where} has format version {version}, and this bytegolf reads version {VERSION}: use the bytegolf "
                "that compressed it"
            )
        block, megabytes = MIB << (sizes & 15), 1 << (sizes >> 4)
        if block > MOST_BLOCK or megabytes > MOST_MEGABYTES:
            raise damaged(where, f"it declares blocks of {block:,} bytes and {megabytes:,} MiB of memory")
        size = _read_varint(source, where) if flags & _SIZED else None
        if not flags & _MODEL:
            return Header(block, megabytes, 1, size)
        artifact, threads, kind, length, probe = _MODEL_PART.unpack(_exactly(source, _MODEL_PART.size, where))
        place = _exactly(source, length, where).decode("ascii", "replace")
        stride, streams = _read_varint(source, where), _read_varint(source, where)
        if not (1 <= threads <= MOST_THREADS and 1 <= streams <= STREAM_LIMIT and kind in KINDS):
            raise damaged(where, f"it declares {threads} threads and {streams} streams")
        model = ModelPart(artifact, stride, Numerics(threads, kind, place, probe))
        return Header(block, megabytes, streams, size, model)


@dataclass(frozen=True)
class Block:
    """``size`` bytes of the original: coded in ``streams``, or stored (0)."""

    streams: int
    size: int
    payload: bytes
    x86: bool = False
    """whether what was coded are the bytes as ``x86.absolute`` changes them"""

    def pack(self) -> bytes:
        crc = _CRC.pack(zlib.crc32(self.payload)) if len(self.payload) >= LEAST_CHECKED else b""
        if not self.streams:
            return bytes([_STORED]) + _varint(self.size) + self.payload + crc
        sizes = _varint(self.size) + _varint(self.streams) + _varint(len(self.payload))
        return bytes([_X86 if self.x86 else _CODED]) + sizes + self.payload + crc


@dataclass(frozen=True)
class End:
    """The last part: the CRC-32 of the header and the original, one behind the other."""

    crc: int

    def pack(self) -> bytes:
        return bytes([_END]) + _CRC.pack(self.crc)


def read_part(source: Readable, header: Header, where: str) -> Block | End:
    """The next part of ``source``; raises BytegolfError if it is cut short or altered."""
    kind = _exactly(source, 1, where)[0]
    if kind == _END:
        (crc,) = _CRC.unpack(_exactly(source, _CRC.size, where))
        if source.read(1):
            raise damaged(where, "something follows its end")
        return End(crc)
    if kind > _STORED:
        raise damaged(where, f"a part of the kind {kind}")
    size = _read_varint(source, where)
    streams = 0 if kind == _STORED else _read_varint(source, where)
    stored = size if kind == _STORED else _read_varint(source, where)
    coded = kind != _STORED and 1 <= streams <= header.streams and stored < size
    if not 1 <= size <= header.block or not (coded or kind == _STORED):
        raise damaged(where, f"a block declares {size:,} bytes in {stored:,}")
    payload = _exactly(source, stored, where)
    if stored >= LEAST_CHECKED and _exactly(source, _CRC.size, where) != _CRC.pack(zlib.crc32(payload)):
        raise damaged(where, "a checksum does not match")
    return Block(streams, size, payload, kind == _X86)


def damaged(where: str, why: str) -> BytegolfError:
    """The error for a file that began as one of these and is none."""
    return BytegolfError(f"{where} is damaged ({why}): copy it again, or compress the original again")


def _varint(number: int) -> bytes:
    """7 bits per byte, the lowest first; all bytes but the last have their highest bit set.

    >>> _varint(300).hex()
    'ac02'
    """
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _read_varint(source: Readable, where: str) -> int:
    number = shift = 0
    while True:
        byte = _exactly(source, 1, where)[0]
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number
        if shift > 63:
            raise damaged(where, "a number without an end")


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
