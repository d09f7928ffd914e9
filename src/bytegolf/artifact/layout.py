"""Where tensors lie in an artifact's payload: the header's list of them, read from a stranger's file.

Whatever it says is checked before memory is taken for it; torch is not needed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from bytegolf.artifact.container import MAX_PAYLOAD_BYTES, damaged
from bytegolf.artifact.stored import SCALE, Form, form_of
from bytegolf.errors import BytegolfError
from bytegolf.registry import UnknownNameError

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
