"""The file around an artifact: a JSON header and a compressed payload, hashed, safe to read from a stranger.

The layout is specified in docs/formats/artifact.md, precisely enough to write another reader. Nothing in a file is
executed, and every size it declares is checked against a limit before memory is taken for it.

The general compressors of the payload are here too, at their smallest and read within limits: zlib (S0) and zstd (S3).
The third coder, ``range``, has to know what the bytes are: ``artifact.weight_coder``.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zstandard

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors

MAGIC = b"BYTEGOLF"
VERSION, WITH_PRIMER = 3, 4
"""Of the format, without a primer and with one; 1 and 2 were read by nothing that was released."""

# A file may come from anywhere, and every one of its sizes is checked against these before memory is taken for it.
# The header's limit bounds what json.loads may build (some ten times its text); the payload's bounds what a
# decompressor may unpack and what the shapes of tensors may ask for: 2³⁰ bytes, and more only in files that hold a fair
# share of them themselves. So no small file takes more memory than a model that is golfed may.
MAX_HEADER_BYTES = 1 << 24
MAX_PAYLOAD_BYTES = 1 << 36
MAX_FILE_BYTES = MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES
UNASKED_BYTES, MOST_RATIO = 1 << 30, 20
"""What any file's payload may have, and how many times its own size a larger one's."""

MAPPED_BYTES = 1 << 26
"""Files from this size on are mapped, and not read into memory."""

_PRELUDE = struct.Struct("<8sII")  # magic, format version, bytes of the header
PRELUDE_BYTES = _PRELUDE.size
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Container:
    """What a file holds."""

    header: dict[str, Any]
    packed: memoryview
    """the payload as it lies in the file"""
    primer: memoryview
    """the primer's code behind it; empty if there is none"""
    file_bytes: int
    sha256: str
    """of the whole file, in hexadecimal, as ``sha256sum`` prints it"""


def begin(header: Mapping[str, Any], packed_bytes: int, payload_bytes: int) -> bytes:
    """What comes before the packed payload of ``packed_bytes``, which is ``payload_bytes`` once decompressed.

    A header with ``primer_bytes`` is that of a file with a primer behind the payload.

    Equal input gives equal bytes: JSON keys are sorted and no date is written.

    Raises BytegolfError: the header is not plain JSON (a NaN, a tensor), or a part exceeds the format's limits.
    """
    try:
        text = json.dumps(dict(header), ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        encoded = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BytegolfError(
            f"the artifact's header takes only plain, finite JSON values ({error}): change what goes into it"
        ) from error
    for what, size, limit in (
        ("header", len(encoded), MAX_HEADER_BYTES),
        ("payload", max(payload_bytes, packed_bytes), payload_limit(packed_bytes)),
    ):
        if size > limit:
            raise BytegolfError(
                f"the artifact's {what} has {size:,} bytes, over the format's {limit:,}: export a smaller one"
            )
    version = WITH_PRIMER if header.get("primer_bytes") else VERSION
    return _PRELUDE.pack(MAGIC, version, len(encoded)) + encoded


def payload_limit(packed_bytes: int) -> int:
    """How many bytes a payload may unpack to."""
    return min(MAX_PAYLOAD_BYTES, max(UNASKED_BYTES, MOST_RATIO * packed_bytes))


def read(path: Path) -> Container:
    """Read and check the file at ``path``.

    Raises BytegolfError: the file is missing, no artifact, of another version, cut short, altered or malformed.
    """
    with disk_errors(path, "read the artifact"):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise BytegolfError(f"{path} is a device or a pipe, not a file: name an artifact's file")
        if status.st_size > MAX_FILE_BYTES:
            raise BytegolfError(
                f"{path} is no artifact ({status.st_size:,} bytes, the format allows {MAX_FILE_BYTES:,}): "
                "name a file written by `bytegolf export`"
            )
        if status.st_size < MAPPED_BYTES:
            return decode(path.read_bytes(), str(path))
        with path.open("rb") as file:
            return decode(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))


def decode(data: bytes | mmap.mmap, where: str) -> Container:
    """Check and open a file's bytes; ``where`` is the file's name in errors."""
    if data[: len(MAGIC)] != MAGIC:
        raise BytegolfError(
            f"{where} is not a bytegolf artifact (its first bytes differ): name a file written by `bytegolf export`"
        )
    if len(data) < PRELUDE_BYTES + DIGEST_BYTES:
        raise damaged(where, f"it ends after {len(data)} bytes")
    _, version, header_bytes = _PRELUDE.unpack_from(data)
    if version not in (VERSION, WITH_PRIMER):
        raise BytegolfError(
            f"the artifact {where} has format version {version} and this bytegolf reads {VERSION} and {WITH_PRIMER} "
            "only: use the bytegolf that wrote it, or export it again from its run"
        )
    payload_at, payload_end = PRELUDE_BYTES + header_bytes, len(data) - DIGEST_BYTES
    if header_bytes > MAX_HEADER_BYTES or payload_at > payload_end:
        raise damaged(where, f"it declares a header of {header_bytes:,} bytes")
    view = memoryview(data)
    found = _hashed(view[:payload_end])
    if found.digest() != data[payload_end:]:
        raise damaged(where, "its hash does not match its contents")
    found.update(view[payload_end:])
    header = _header(data[PRELUDE_BYTES:payload_at], where)
    size = header.get("primer_bytes") if version == WITH_PRIMER else 0
    if type(size) is not int or not 0 <= size <= payload_end - payload_at:
        raise damaged(where, "its header declares no valid size of its primer")
    primer_at = payload_end - size
    packed, primer = view[payload_at:primer_at], view[primer_at:payload_end]
    return Container(header, packed, primer, len(data), found.hexdigest())


def _hashed(view: memoryview) -> hashlib._Hash:
    """The SHA-256 so far of ``view``; of a mapped file, its pages are let go of on the way."""
    found = hashlib.sha256()
    for at in range(0, len(view), MAPPED_BYTES):
        found.update(view[at : at + MAPPED_BYTES])
        _let_go(view)
    return found


def _let_go(view: memoryview) -> None:
    """Have the pages of a mapped file that were read not count as this process's memory; they can be read again."""
    if isinstance(view.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        view.obj.madvise(mmap.MADV_DONTNEED)


def damaged(where: str, why: str) -> BytegolfError:
    """The error for a file that began as an artifact and is none."""
    return BytegolfError(f"the artifact {where} is damaged ({why}): copy or export it again")


def _header(text: bytes, where: str) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), parse_constant=_refuse)
        json.dumps(header, ensure_ascii=False).encode()  # lone surrogates cannot be printed later on
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise damaged(where, "its header is no JSON object")
    return header


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


CoderName = Literal["zlib", "zstd", "range"]

CODERS: tuple[CoderName, ...] = ("zlib", "zstd", "range")


class BadStreamError(Exception):
    """A stream that does not decompress to what was declared; the reason in words."""


def compress(coder: CoderName, data: bytes) -> bytes:
    """The smallest that ``coder`` makes of ``data``."""
    if coder == "zstd":
        return zstandard.ZstdCompressor(level=22).compress(data)
    stream = compressor()
    return bytes(stream.compress(data) + stream.flush())


def compressor() -> Any:
    """A stream of zlib's.

    It is at level 9 and tuned for noise: weights repeat no strings, so only long matches pay (``Z_FILTERED``). That
    and the larger block (``memLevel`` 9) save 0.3 % on normal and 0.7 % on heavy-tailed int8 weights over
    ``zlib.compress(data, 9)``, and any zlib reads it.
    """
    return zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)


def decompress(coder: CoderName, packed: memoryview, size: int) -> bytes | bytearray:
    """The ``size`` bytes that ``packed`` holds; no more than one byte beyond them is ever unpacked.

    Raises BadStreamError if it holds something else.
    """
    data: bytes | bytearray | None = None
    try:
        if coder == "zlib":
            data = _inflated(packed, size)
        elif zstandard.frame_content_size(packed) == size:  # which is what would be allocated
            data = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except (zlib.error, zstandard.ZstdError, MemoryError) as error:
        raise BadStreamError(f"its payload does not decompress: {error}") from error
    if data is None or len(data) != size:
        raise BadStreamError(f"its payload is not the declared {size:,} bytes")
    return data


def _inflated(packed: memoryview, size: int) -> bytes | bytearray | None:
    """What zlib unpacks, piece by piece into its own place; None where that is not ``size`` bytes and the end."""
    if size < MAPPED_BYTES:
        whole = zlib.decompressobj()
        # one byte more than declared: a bomb of 1,000 times its size is noticed, and not unpacked
        found = whole.decompress(packed, size + 1)
        return found if whole.eof and not whole.unused_data else None
    stream, data = zlib.decompressobj(), bytearray()
    for at in range(0, len(packed), _PIECE):
        rest: bytes | memoryview = packed[at : at + _PIECE]
        while len(rest) and not stream.eof and len(data) <= size:
            data += stream.decompress(rest, size + 1 - len(data))
            rest = stream.unconsumed_tail
        if at % MAPPED_BYTES == 0:
            _let_go(packed)
        if stream.eof and (stream.unused_data or at + _PIECE < len(packed)):
            return None
    return data if stream.eof else None


_PIECE = 1 << 20
"""Bytes of a large payload that are unpacked at a time."""
