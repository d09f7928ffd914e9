"""How quantised tensors lie in an artifact's payload: the header's list of tensors and the bytes it points
to.

Data come first, grouped by scheme, then all scales: zlib fits its code table to what it has just seen, so
bytes of one kind belong together. Within a tensor they may lie in other orders than row by row
(:data:`Layout`), of which the writer takes the one that compresses best.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, get_args

import numpy as np
import torch

from bytegolf.artifact.container import MAX_PAYLOAD_BYTES, damaged
from bytegolf.artifact.quantize import ROW_BITS, QuantizedTensor, Scheme, levels

DTYPES: dict[Scheme, np.dtype[Any]] = {
    **{scheme: np.dtype("i1") for scheme in ROW_BITS},
    "fp16": np.dtype("<f2"),
    "fp32": np.dtype("<f4"),
}
"""What a scheme's data are in the file, in the order in which they lie there."""

SCALE_DTYPE: np.dtype[Any] = np.dtype("<f2")

Layout = Literal["rows", "columns", "planes", "delta"]
"""How a tensor's bytes lie: row by row; column by column; all first bytes of its numbers, all second ones and so on (of
codes, which have one byte: all lowest bits, 8 a byte); or each byte less the one before it, modulo 256, in planes."""

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Sizer = Callable[[bytes], int]

MAX_DIMS = 8
NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in the decompressed payload: a row of the header's list.

    Attributes:
        name, scheme, shape: as in ``QuantizedTensor``.
        offset, size: the place of its data, in bytes.
        scale_offset, scale_size: the place of its scales; both 0 where the scheme has none.
        layout, scale_layout: how the bytes of the two lie.
    """

    name: str
    scheme: Scheme
    shape: tuple[int, ...]
    offset: int
    size: int
    scale_offset: int = 0
    scale_size: int = 0
    layout: Layout = "rows"
    scale_layout: Layout = "rows"

    @property
    def numel(self) -> int:
        """The number of the tensor's elements."""
        return math.prod(self.shape)

    def raw(self, payload: bytes) -> bytes:
        """The tensor's stored bytes: its data, then its scales."""
        scales = payload[self.scale_offset : self.scale_offset + self.scale_size]
        return payload[self.offset : self.offset + self.size] + scales


def lay_out(stored: list[QuantizedTensor], sizer: Sizer | None = None) -> tuple[list[dict[str, Any]], bytes]:
    """The header's list and the payload; within a group, tensors keep the order of ``stored``.

    ``sizer`` tells how small some bytes will get, and each tensor then has the layout that is best by it.
    """
    listed: list[dict[str, Any]] = []
    parts: list[bytes] = []
    place = 0
    ordered = [tensor for scheme in DTYPES for tensor in stored if tensor.scheme == scheme]
    for tensor in ordered:
        data = tensor.data.numpy().astype(DTYPES[tensor.scheme], copy=False).tobytes()
        row: dict[str, Any] = {"name": tensor.name, "scheme": tensor.scheme, "shape": list(tensor.shape)}
        rows = tensor.shape[0] if tensor.shape else 1
        best, data = _arranged(data, rows, DTYPES[tensor.scheme].itemsize, sizer)
        row |= {"layout": best} if best != "rows" else {}
        listed.append({**row, "offset": place, "bytes": len(data)})
        parts.append(data)
        place += len(data)
    for entry, tensor in zip(listed, ordered, strict=True):
        if tensor.scale is not None:
            data = tensor.scale.numpy().astype(SCALE_DTYPE, copy=False).tobytes()
            best, data = _arranged(data, 1, SCALE_DTYPE.itemsize, sizer)
            entry |= {"scale_layout": best} if best != "rows" else {}
            entry["scale_offset"] = place
            if len(tensor.scale) != tensor.shape[0]:
                entry["scales"] = len(tensor.scale)
            parts.append(data)
            place += len(data)
    return listed, b"".join(parts)


def _arranged(data: bytes, rows: int, width: int, sizer: Sizer | None) -> tuple[Layout, bytes]:
    """The best layout and the data in it; of equal ones the first."""
    if sizer is None:
        return "rows", data
    ways = {way: arrange(data, way, rows, width) for way in LAYOUTS}
    best = min(LAYOUTS, key=lambda way: sizer(ways[way]))
    return best, ways[best]


def arrange(data: bytes, way: Layout, rows: int, width: int) -> bytes:
    """Bytes that lie row by row, in another layout.

    Args:
        data: of ``rows`` equal rows.
        way: the layout.
        rows: how many rows there are.
        width: bytes of each number.

    >>> arrange(b"abcdef", "columns", 2, 1), arrange(b"abcdef", "planes", 1, 2), arrange(b"abd", "delta", 1, 1)
    (b'adbecf', b'acebdf', b'a\\x01\\x02')
    """
    flat = np.frombuffer(data, np.uint8)
    if way == "columns" and flat.size:
        flat = flat.reshape(rows, -1, width).transpose(1, 0, 2)
    elif way == "delta":
        planes = flat.reshape(-1, width).T.ravel()
        flat = np.diff(planes, prepend=np.uint8(0))
    elif way == "planes" and width > 1:
        flat = flat.reshape(-1, width).T
    elif way == "planes":
        bits = np.unpackbits(flat, bitorder="little").reshape(-1, 8).T
        flat = np.packbits(bits, bitorder="little")
    return flat.tobytes()


def restore(data: bytes, way: Layout, rows: int, width: int) -> bytes:
    """What ``arrange`` made ``data`` of."""
    flat = np.frombuffer(data, np.uint8)
    if way == "columns" and flat.size:
        flat = flat.reshape(-1, rows, width).transpose(1, 0, 2)
    elif way == "delta":
        flat = flat.cumsum(dtype=np.uint8).reshape(width, -1).T
    elif way == "planes" and width > 1:
        flat = flat.reshape(width, -1).T
    elif way == "planes":
        bits = np.unpackbits(flat, bitorder="little").reshape(8, -1).T
        flat = np.packbits(bits, bitorder="little")
    return flat.tobytes()


def read_entries(listed: Any, payload_bytes: int, where: str) -> list[TensorEntry]:
    """Check a header's list: known schemes, sizes that fit the shapes, places that tile the payload exactly.

    Raises:
        BytegolfError: naming the file ``where`` and what is wrong with it.
    """
    if not isinstance(listed, list):
        raise damaged(where, "its header lists no tensors")
    entries = [_entry(row, where) for row in listed]
    if len({entry.name for entry in entries}) != len(entries):
        raise damaged(where, "two of its tensors have the same name")
    places = [(entry.offset, entry.size) for entry in entries]
    places += [(entry.scale_offset, entry.scale_size) for entry in entries if entry.scheme in ROW_BITS]
    end = 0
    for offset, size in sorted(places):
        if offset != end:
            raise damaged(where, "its tensors overlap or leave gaps")
        end += size
    if end != payload_bytes:
        raise damaged(where, "its tensors do not fill its payload")
    return entries


def load(entry: TensorEntry, payload: bytes, where: str) -> QuantizedTensor:
    """The stored tensor at a checked place of the payload.

    Raises:
        BytegolfError: naming the file ``where``: a code is beyond its scheme's bits.
    """
    dtype = DTYPES[entry.scheme]
    stored = payload[entry.offset : entry.offset + entry.size]
    rows = entry.shape[0] if entry.shape else 1
    # astype copies, as torch wants writable memory, and turns little-endian into the host's order
    data = np.frombuffer(restore(stored, entry.layout, rows, dtype.itemsize), dtype).astype(dtype.newbyteorder("="))
    scale = None
    if entry.scheme in ROW_BITS:
        stored = payload[entry.scale_offset : entry.scale_offset + entry.scale_size]
        scales = np.frombuffer(restore(stored, entry.scale_layout, 1, SCALE_DTYPE.itemsize), SCALE_DTYPE)
        scale = torch.from_numpy(scales.astype(np.float16))
        top = levels(ROW_BITS[entry.scheme])
        if data.size and (data.min() < -top or data.max() > top):
            raise damaged(where, f"its tensor {entry.name} holds a code beyond ±{top}")
    return QuantizedTensor(entry.name, entry.scheme, entry.shape, torch.from_numpy(data).view(entry.shape), scale)


def _entry(row: Any, where: str) -> TensorEntry:
    if not isinstance(row, dict):
        raise damaged(where, "its header lists a tensor that is no object")
    name, scheme, shape = row.get("name"), row.get("scheme"), row.get("shape")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise damaged(where, "one of its tensors has no valid name")
    if not isinstance(scheme, str) or scheme not in DTYPES:
        raise damaged(where, f"its tensor {name} has an unknown scheme")
    rows = scheme in ROW_BITS
    # the product without its zeros is bounded too, as strides are made of it
    if (
        not isinstance(shape, list)
        or not (2 if rows else 0) <= len(shape) <= MAX_DIMS
        or not all(map(_is_size, shape))
        or math.prod(length or 1 for length in shape) > MAX_PAYLOAD_BYTES
    ):
        raise damaged(where, f"its tensor {name} has no valid shape")
    size = math.prod(shape) * DTYPES[scheme].itemsize
    offset, scale_offset = row.get("offset"), row.get("scale_offset") if rows else 0
    if not _is_size(offset) or not _is_size(scale_offset) or row.get("bytes") != size:
        raise damaged(where, f"its tensor {name} has no valid place")
    scales = row.get("scales", shape[0]) if rows else 0
    if not _is_size(scales) or (rows and (scales == 0) != (shape[0] == 0)) or (scales and shape[0] % scales):
        raise damaged(where, f"its tensor {name} has no valid number of scales")
    ways = [row.get(key, "rows") for key in ("layout", "scale_layout")]
    if not all(isinstance(way, str) and way in LAYOUTS for way in ways):
        raise damaged(where, f"its tensor {name} has an unknown layout")
    return TensorEntry(name, scheme, tuple(shape), offset, size, scale_offset, scales * SCALE_DTYPE.itemsize, *ways)


def _is_size(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_PAYLOAD_BYTES
