"""An artifact's file, opened: its hash checked, its payload decompressed, each tensor at its place; without torch.

``zlib`` and ``zstd`` compress the laid-out payload (``artifact.layout``) as one string of bytes. ``range`` codes tensor
after tensor, each one's scales before its codes, and knows what they are (``artifact.weight_coder``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytegolf.artifact import container
from bytegolf.artifact.container import CODERS, BadStreamError, Container, damaged
from bytegolf.artifact.layout import TensorEntry, is_size, numbers_of, read_entries
from bytegolf.artifact.range_coder import BrokenStreamError, Decoder
from bytegolf.artifact.stored import SCALE, form_of
from bytegolf.artifact.weight_coder import TensorReader, count_steps, most_rows
from bytegolf.config import Config
from bytegolf.errors import BytegolfError
from bytegolf.mixing.primer import MOST_BYTES, BadPrimerError, Primer
from bytegolf.registry import UnknownNameError

MAX_STEPS = 1 << 23
"""The most steps that ``range`` takes: minutes. A model of 25 million weights takes less than a tenth of them. A file
of a few hundred bytes may declare a tensor of 2³⁰ elements, and a range decoder never runs out of symbols."""


@dataclass(frozen=True)
class Payload:
    """An artifact's file, read, checked and decompressed."""

    box: Container
    entries: list[TensorEntry]
    payload: bytes | bytearray
    bits: list[float] | None
    """how many bits of the file each tensor takes; None where it is one stream that cannot be told apart, or where
    nobody asked"""


def as_words(scales: NDArray[Any]) -> NDArray[np.int64]:
    """fp16 scales as integers, by their bits."""
    return scales.view("<u2").astype(np.int64)


def open_payload(path: Path, counting: bool = False) -> Payload:
    """Read and check the file at ``path``; with ``counting``, also how many bits each tensor takes.

    Raises BytegolfError: it is missing, no artifact, damaged, or declares what it does not hold; or a quantiser of its
    is not registered.
    """
    box, where = container.read(path), str(path)
    header, coder = box.header, box.header.get("compression")
    if coder not in CODERS:
        raise damaged(where, f"its compression {str(coder)[:40]!r} is unknown")
    size = header.get("payload_bytes")
    if not is_size(size) or size > container.payload_limit(len(box.packed)):
        raise damaged(where, "its header declares no valid payload size")
    try:
        if coder == "range":
            entries = read_entries(header.get("tensors"), size, where)
            return Payload(box, entries, *_read(box.packed, entries, size, counting))
        # compared with what the list says only after it has its declared size: a bomb is told as one
        payload = container.decompress(coder, box.packed, size)
        return Payload(box, read_entries(header.get("tensors"), size, where), payload, None)
    except (BadStreamError, BrokenStreamError) as error:
        raise damaged(where, str(error)) from error


def _read(
    packed: memoryview, entries: list[TensorEntry], size: int, counting: bool
) -> tuple[bytes, list[float] | None]:
    """The payload from a stream of the range coder, and the bits of each tensor if they are counted."""
    most = most_rows(size)
    if steps_of(entries, most) > MAX_STEPS:
        raise BadStreamError("it declares tensors that would take too many steps")
    payload = bytearray(size)
    decoder = Decoder(packed, counting)
    reader = TensorReader(decoder, most)
    bits = []
    for entry in entries:
        before = decoder.bits
        form = form_of(entry.quantizer)
        if form.largest_code:
            scales = reader.values(entry.scales, SCALE.itemsize)
            payload[entry.scale_offset : entry.scale_offset + scales.size] = scales.tobytes()
            codes = reader.matrix(*entry.matrix, form.largest_code, as_words(scales.reshape(-1)))
            payload[entry.offset : entry.offset + entry.size] = codes.tobytes()
        else:
            values = reader.values(entry.numel, form.number.itemsize)
            payload[entry.offset : entry.offset + entry.size] = values.tobytes()
        bits.append(decoder.bits - before)
    decoder.close()
    return bytes(payload), bits if counting else None


def steps_of(entries: list[TensorEntry], most: int) -> int:
    """How many steps ``range`` takes, rounded up; a value's bytes are at most four."""
    values = sum((entry.scales + (0 if entry.scales else entry.numel)) // 256 + 4 for entry in entries)
    return values + sum(count_steps(*entry.matrix, most) for entry in entries if entry.scales)


def config_of(table: dict[str, Any], version: str, where: str) -> Config:
    """The configuration in the header of the artifact ``where``, written by the bytegolf ``version``.

    Raises BytegolfError: this version does not know it.
    """
    try:
        return Config.from_tables(table)
    except UnknownNameError as error:
        raise UnknownNameError(f"the artifact {where} needs what is missing: {str(error)[:400]}") from error
    except (BytegolfError, RecursionError, OverflowError) as error:
        raise BytegolfError(
            f"the configuration in the artifact {where} is not one this bytegolf knows ({str(error)[:300]}): "
            f"use bytegolf {version[:40]}, which wrote it"
        ) from error


@dataclass(frozen=True)
class Header:
    """What an artifact's header says besides its tensors."""

    config: Config
    tokenizer: Mapping[str, object]
    info: dict[str, Any]
    version: str
    """of the bytegolf that wrote it"""


def header_of(box: Container, where: str) -> Header:
    """The checked header of the artifact ``where``. Raises BytegolfError where something is missing or unknown here."""
    tables: dict[str, dict[str, Any]] = {}
    for key in ("config", "tokenizer", "info"):
        table = box.header.get(key)
        if not isinstance(table, dict):
            raise damaged(where, f"its header has no {key}")
        tables[key] = table
    version = box.header.get("bytegolf")
    if not isinstance(version, str):
        raise damaged(where, "its header names no bytegolf version")
    return Header(config_of(tables["config"], version, where), tables["tokenizer"], tables["info"], version)


def primer_in(box: Container, where: str) -> Primer | None:
    """The primer of the artifact ``where``, unpacked; None if it has none.

    Raises BytegolfError if it is not what the header says.
    """
    if not box.primer:
        return None
    told = box.header.get("primer")
    size, digest = (told.get("bytes"), told.get("sha256")) if isinstance(told, dict) else (None, None)
    if type(size) is not int or not 0 < size <= MOST_BYTES or not isinstance(digest, str):
        raise damaged(where, "its header does not say what its primer is")
    found = Primer(bytes(box.primer), size, digest)
    try:
        found.check()
    except BadPrimerError as error:
        raise damaged(where, str(error)) from error
    return found


def not_finite(entry: TensorEntry, where: str) -> BytegolfError:
    """The error for a tensor that holds a NaN or an infinite value."""
    return damaged(where, f"its tensor {entry.name} holds NaN or infinite values")


def verify(path: Path) -> Payload:
    """Check the artifact at ``path`` as ``pack.read_artifact`` would, without its weights.

    A weight of our own quantisers is scale · code or the value itself, so it is finite if these are: codes are at most
    127 and an fp16 scale 65,504. Entries of other quantisers are checked by their numbers alone.

    Raises BytegolfError: the same as ``pack.read_artifact``.
    """
    opened, where = open_payload(path), str(path)
    header_of(opened.box, where)
    primer_in(opened.box, where)
    for entry in opened.entries:
        data, scales = numbers_of(entry, opened.payload, where)
        finite = bool(np.isfinite(data).all()) and (scales is None or not data.size or bool(np.isfinite(scales).all()))
        if not finite:
            raise not_finite(entry, where)
    return opened
