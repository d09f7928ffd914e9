"""The file of compressed bytes: a header, blocks, an end. docs/formats/compressed.md specifies it.

A small file is mostly its header, so there is little of it: 4 bytes and what a model needs. Every size is checked
against a limit before memory is taken for it, blocks have checksums, and the end has one of the original.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bytegolf.errors import BytegolfError
from bytegolf.infer.numerics import KINDS, MOST_THREADS, PROBE_BYTES, Numerics
from bytegolf.mixing.samples import KINDS as KINDS_OF_SAMPLES
from bytegolf.mixing.samples import Layout

MAGIC = b"\xb9Z"
VERSION = 3
MIB = 1 << 20
MOST_BLOCK, MOST_MEGABYTES = 16 * MIB, 1 << 12
STREAM_LIMIT = 4096
"""Streams of a block, at most."""

ID_BYTES = 8
"""Of an artifact's SHA-256, by which a file names its model."""

LEAST_CHECKED = 64
"""Bytes of a payload from which on it has a checksum of its own."""

_SIZED, _MODEL, _SINGLE = 1, 2, 4
_END, _CODED, _X86, _STORED, _LAID = range(5)
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
    single: bool = False
    """whether there is but one block, up to the last 4 bytes, and no model"""

    def pack(self) -> bytes:
        flags = _SIZED * (self.size is not None) | _MODEL * (self.model is not None) | _SINGLE * self.single
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
        if version != VERSION or flags not in (0, _SIZED, _MODEL, _SIZED | _MODEL, _SINGLE):
            raise BytegolfError(
                f"{where} has format version {version}, and this bytegolf reads version {VERSION}: use the bytegolf "
                "that compressed it"
            )
        block, megabytes = MIB << (sizes & 15), 1 << (sizes >> 4)
        if block > MOST_BLOCK or megabytes > MOST_MEGABYTES:
            raise damaged(where, f"it declares blocks of {block:,} bytes and {megabytes:,} MiB of memory")
        size = _read_varint(source, where) if flags & _SIZED else None
        if not flags & _MODEL:
            return Header(block, megabytes, 1, size, single=flags == _SINGLE)
        artifact, threads, kind, length, probe = _MODEL_PART.unpack(_exactly(source, _MODEL_PART.size, where))
        place = _exactly(source, length, where).decode("ascii", "replace")
        stride, streams = _read_varint(source, where), _read_varint(source, where)
        if not (1 <= threads <= MOST_THREADS and 1 <= streams <= STREAM_LIMIT and kind in KINDS):
            raise damaged(where, f"it declares {threads} threads and {streams} streams")
        model = ModelPart(artifact, stride, Numerics(threads, kind, place, probe))
        return Header(block, megabytes, streams, size, model)


@dataclass(frozen=True)
class Laid:
    """That a block has samples, and which (``mixing/samples.py``)."""

    layout: Layout | None
    """None: they go on where those of the last block ended"""
    order: int = 0
    """how they are written (``layouts.py``)"""

    def pack(self) -> bytes:
        if self.layout is None:
            return b"\0"
        one = self.layout
        first = KINDS_OF_SAMPLES.index(one.kind) + 1 | self.order << 2
        return bytes([first, one.channels | one.width << 4]) + _varint(one.row) + _varint(one.start)


@dataclass(frozen=True)
class Block:
    """``size`` bytes of the original: coded in ``streams``, or stored (0)."""

    streams: int
    size: int
    payload: bytes
    x86: bool = False
    """whether what was coded are the bytes as ``x86.absolute`` changes them"""
    laid: Laid | None = None
    """of a block of samples, as ``layouts.in_order`` changes them"""

    def single(self) -> bytes:
        """This as the only block of a file without a model, for a header that says so."""
        if not self.streams:
            return bytes([_STORED]) + self.payload
        return bytes([self._kind]) + (self.laid.pack() if self.laid else b"") + _varint(self.size) + self.payload

    @property
    def _kind(self) -> int:
        return _LAID if self.laid else _X86 if self.x86 else _CODED

    def pack(self) -> bytes:
        crc = _CRC.pack(zlib.crc32(self.payload)) if len(self.payload) >= LEAST_CHECKED else b""
        if not self.streams:
            return bytes([_STORED]) + _varint(self.size) + self.payload + crc
        sizes = _varint(self.size) + _varint(self.streams) + _varint(len(self.payload))
        return bytes([self._kind]) + (self.laid.pack() if self.laid else b"") + sizes + self.payload + crc


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
    laid = _read_laid(source, header, where) if kind == _LAID else None
    if kind > _LAID:
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
    return Block(streams, size, payload, kind == _X86, laid)


def read_parts(source: Readable, header: Header, where: str) -> Iterator[Block | End]:
    """All parts of ``source`` behind its header."""
    while True:
        yield read_part(source, header, where)


def read_single(source: Readable, header: Header, where: str) -> tuple[Block, End]:
    """The only block of a file and its end; raises BytegolfError if they are cut short or altered."""
    kind = _exactly(source, 1, where)[0]
    if kind not in (_CODED, _X86, _STORED, _LAID):
        raise damaged(where, f"a part of the kind {kind}")
    laid = _read_laid(source, header, where) if kind == _LAID else None
    size = None if kind == _STORED else _read_varint(source, where)
    rest = read_up_to(source, header.block + _CRC.size + 1)
    if len(rest) < _CRC.size:
        raise damaged(where, "it ends too early")
    payload, stored = rest[: -_CRC.size], len(rest) - _CRC.size
    if not (stored <= header.block if size is None else stored < size <= header.block):
        raise damaged(where, f"a block declares {stored if size is None else size:,} bytes in {stored:,}")
    block = Block(int(size is not None), stored if size is None else size, payload, kind == _X86, laid)
    return block, End(*_CRC.unpack(rest[-_CRC.size :]))


def _read_laid(source: Readable, header: Header, where: str) -> Laid:
    first = _exactly(source, 1, where)[0]
    if not first:
        return Laid(None)
    sizes = _exactly(source, 1, where)[0]
    kind, row, start = first & 3, _read_varint(source, where), _read_varint(source, where)
    if header.model or not kind or first >> 2 > 7 or start > header.block:
        raise damaged(where, "samples that cannot be")
    layout = Layout(KINDS_OF_SAMPLES[kind - 1], sizes & 15, sizes >> 4, row, start)
    if not layout.valid():
        raise damaged(where, f"it declares samples of {layout.channels} channels and rows of {row:,}")
    return Laid(layout, first >> 2)


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
