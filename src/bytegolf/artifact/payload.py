"""An artifact's payload, opened without torch: what lies there of each tensor, in which form, at which place.

Nothing here needs torch, so that a file can be read, checked and counted without it; what the numbers mean is
``artifact.quantize``'s.

Whatever the file says is checked before memory is taken for it.

``zlib`` and ``zstd`` compress the laid-out payload as one string of bytes. ``range`` codes tensor
after tensor, each one's scales before its codes, and knows what they are (``artifact.weight_coder``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from bytegolf.artifact import container
from bytegolf.artifact.container import CODERS, MAX_PAYLOAD_BYTES, BadStreamError, Container, damaged
from bytegolf.artifact.weight_coder import BrokenStreamError, Decoder, TensorReader, count_steps, most_rows
from bytegolf.config import Config
from bytegolf.errors import BytegolfError
from bytegolf.mixing.primer import MOST_BYTES, BadPrimerError, Primer
from bytegolf.registry import QUANTIZERS, UnknownNameError

# -------------------------------------------------------------------------------------- what lies in a file of a tensor


NUMBERS: dict[str, np.dtype[Any]] = {
    "torch.int8": np.dtype("i1"),
    "torch.float16": np.dtype("<f2"),
    "torch.float32": np.dtype("<f4"),
}
"""What data of a dtype are in the file, in the order in which they lie there."""

SCALE: np.dtype[Any] = np.dtype("<f2")


def levels(bits: int) -> int:
    """L, the largest code: they go from −L to L."""
    return (1 << (bits - 1)) - 1


ROW_BITS = {f"int{bits}_row": bits for bits in range(8, 2, -1)}
"""The quantisers of rows, with the bits of a code."""


@dataclass(frozen=True)
class Form:
    """What a quantiser stores of a tensor."""

    largest_code: int
    """L of int8 codes −L…L; 0 where the data are values and no codes"""
    number: np.dtype[Any]
    """of the data"""
    scales_fit: Callable[[tuple[int, ...], int], bool]
    """whether a tensor of a shape may have so many scales"""
    built_in: bool = True
    """whether finite numbers and scales are all that a finite weight needs"""


def groups_fit(shape: tuple[int, ...], count: int) -> bool:
    """Whether so many scales are those of equal groups of a tensor's rows."""
    return (count == 0) == (shape[0] == 0) and (not count or shape[0] % count == 0)


def _no_scales(shape: tuple[int, ...], count: int) -> bool:
    return count == 0


_BUILT_IN = {
    **{name: Form(levels(bits), NUMBERS["torch.int8"], groups_fit) for name, bits in ROW_BITS.items()},
    "fp16": Form(0, NUMBERS["torch.float16"], _no_scales),
    "fp32": Form(0, NUMBERS["torch.float32"], _no_scales),
}


def form_of(name: str) -> Form:
    """What the quantiser called ``name`` stores: a built-in one, or one that ``register_quantizer`` registered.

    Raises UnknownNameError, a BytegolfError, if there is none.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    found = QUANTIZERS.find(name, None)
    if not all(hasattr(found, part) for part in ("largest_code", "dtype", "scales_fit")):
        raise BytegolfError(f"the quantizer {name!r} is no subclass of bytegolf.artifact.quantize.Quantizer")
    made = found()
    return Form(made.largest_code, NUMBERS[str(made.dtype)], made.scales_fit, built_in=False)


# -------------------------------------------------------------------------------------------------------- where it lies


MAX_DIMS = 8
NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")


@dataclass(frozen=True)
class TensorEntry:
    """A row of the header's list: a tensor, and where it lies in the decompressed payload.

    Its data, ``size`` bytes, begin at ``offset``, and its ``scales``, if there are any, at ``scale_offset``.
    """

    name: str
    quantizer: str
    shape: tuple[int, ...]
    counted: bool
    """whether its elements count as the model's parameters; a router's rule does not"""
    offset: int
    size: int
    scale_offset: int = 0
    scales: int = 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """Its rows, which are the indices of the first axis, and their length."""
        rows = self.shape[0] if self.numel else 0
        return rows, self.numel // rows if rows else 0

    def raw(self, payload: bytes | bytearray) -> bytes:
        """The tensor's stored bytes: its data, then its scales."""
        scales = payload[self.scale_offset : self.scale_offset + SCALE.itemsize * self.scales]
        return bytes(payload[self.offset : self.offset + self.size] + scales)


def read_entries(listed: Any, payload_bytes: int, where: str) -> list[TensorEntry]:
    """Check a header's list: known quantisers, sizes that fit the shapes, places that tile the payload exactly.

    Raises BytegolfError: naming the file ``where`` and what is wrong with it.
    """
    if not isinstance(listed, list):
        raise damaged(where, "its header lists no tensors")
    entries = [_entry(row, where) for row in listed]
    if len({entry.name for entry in entries}) != len(entries):
        raise damaged(where, "two of its tensors have the same name")
    coded = [entry for entry in entries if form_of(entry.quantizer).largest_code]
    places = [(entry.offset, entry.size) for entry in entries]
    places += [(entry.scale_offset, SCALE.itemsize * entry.scales) for entry in coded]
    # Sorted, each part has to begin where the one before it ends. So no byte is read twice, and none is left for
    # anything to hide in: a header of 1,000 tensors cannot make 1,000 times its payload of memory.
    end = 0
    for offset, size in sorted(places):
        if offset != end:
            raise damaged(where, "its tensors overlap or leave gaps")
        end += size
    if end != payload_bytes:
        raise damaged(where, "its tensors do not fill its payload")
    return entries


def numbers_of(
    entry: TensorEntry, payload: bytes | bytearray, where: str
) -> tuple[NDArray[Any], NDArray[np.float16] | None]:
    """The data of a tensor at a checked place of the payload, of its shape, and its scales, in the host's byte order.

    Raises BytegolfError: naming the file ``where``: a code is beyond its quantiser's largest.
    """
    form = form_of(entry.quantizer)
    top = form.largest_code
    # astype copies, as torch wants writable memory, and turns little-endian into the host's order; codes in a payload
    # that can be written to, as a large one can, stay where they are
    stored = np.frombuffer(memoryview(payload)[entry.offset : entry.offset + entry.size], form.number)
    lies = stored.flags.writeable and stored.itemsize == 1
    data = stored.astype(form.number.newbyteorder("="), copy=not lies)
    if not top:
        return data.reshape(entry.shape), None
    if data.size and (data.min() < -top or data.max() > top):
        raise damaged(where, f"its tensor {entry.name} holds a code beyond ±{top}")
    scales = payload[entry.scale_offset : entry.scale_offset + SCALE.itemsize * entry.scales]
    return data.reshape(entry.shape), np.frombuffer(scales, SCALE).astype(np.float16)


def _entry(row: Any, where: str) -> TensorEntry:
    if not isinstance(row, dict):
        raise damaged(where, "its header lists a tensor that is no object")
    name, shape = row.get("name"), row.get("shape")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise damaged(where, "one of its tensors has no valid name")
    by = _form(row.get("quantizer"), name, where)
    codes = by.largest_code > 0
    # the product without its zeros is bounded too, as strides are made of it
    if (
        not isinstance(shape, list)
        or not (2 if codes else 0) <= len(shape) <= MAX_DIMS
        or not all(map(is_size, shape))
        or math.prod(length or 1 for length in shape) > MAX_PAYLOAD_BYTES
    ):
        raise damaged(where, f"its tensor {name} has no valid shape")
    size = math.prod(shape) * by.number.itemsize
    offset, scale_offset = row.get("offset"), row.get("scale_offset") if codes else 0
    if not is_size(offset) or not is_size(scale_offset) or row.get("bytes") != size:
        raise damaged(where, f"its tensor {name} has no valid place")
    scales = row.get("scales", shape[0]) if codes else 0
    if not is_size(scales) or not by.scales_fit(tuple(shape), scales):
        raise damaged(where, f"its tensor {name} has no valid number of scales")
    counted = row.get("counted", True) is True
    return TensorEntry(name, row["quantizer"], tuple(shape), counted, offset, size, scale_offset, scales)


def _form(called: Any, name: str, where: str) -> Form:
    if not isinstance(called, str):
        raise damaged(where, f"its tensor {name} names no quantizer")
    try:
        return form_of(called)
    except UnknownNameError as error:
        raise BytegolfError(
            f"the artifact {where} stores {name} by the quantizer {called[:40]!r}, which is not registered: import the "
            "module that registers it, or name its file (--plugin FILE)"
        ) from error


def is_size(value: Any) -> TypeGuard[int]:
    """Whether a header's value is a number of bytes or elements within the format's limit; ``True`` is none."""
    return type(value) is int and 0 <= value <= MAX_PAYLOAD_BYTES


# -------------------------------------------------------------------------------------------------- the payload, opened


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
