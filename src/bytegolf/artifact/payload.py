"""The way between quantised tensors and the payload's bytes in the file: laid out and compressed, and back.

Version 1 of the format has one layout and zlib. In version 2 a header's ``compression`` names one of ``CODERS``: all
but ``range`` compress the laid-out payload as one stream; ``range`` codes tensor after tensor and knows what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytegolf.artifact import coders, container, layout
from bytegolf.artifact.coders import CODERS, BadStreamError, CoderName
from bytegolf.artifact.codes import WeightCoder, count_steps
from bytegolf.artifact.container import MAX_PAYLOAD_BYTES, Container, damaged
from bytegolf.artifact.layout import TensorEntry
from bytegolf.artifact.quantize import ROW_BITS, QuantizedTensor, levels
from bytegolf.artifact.rans import MAX_LANES, BrokenStreamError, Coder, Decoder, Encoder
from bytegolf.errors import BytegolfError

LANE_BYTES = 16_384
"""One lane of ``range`` for so many bytes of payload: its state, 8 bytes, is then about 0.1 % of what it codes."""

MAX_STEPS = 1 << 23
"""The most steps that ``range`` takes: minutes. A model of 25 million weights takes less than a tenth of them."""


@dataclass(frozen=True)
class Payload:
    """An artifact's file, read, checked and decompressed.

    Attributes:
        box: the file around it.
        entries: its tensors, checked.
        payload: the decompressed payload.
        bits: how many bits of the payload each tensor takes; None where it is one stream that cannot be told apart.
    """

    box: Container
    entries: list[TensorEntry]
    payload: bytes
    bits: list[float] | None


def encode(header: dict[str, Any], stored: list[QuantizedTensor], coder: CoderName = "zlib") -> bytes:
    """The bytes of a file with ``stored`` in it; ``header`` is the rest of its header.

    zlib makes a file of version 1, which every bytegolf reads; the others one of version 2.

    Raises:
        BytegolfError: see ``container.encode``; or brotli is not installed.
    """
    listed, payload = layout.lay_out(stored, _sizer if coder in ("zstd", "brotli", "lzma") else None)
    full = {**header, "tensors": listed, "compression": coder, "payload_bytes": len(payload)}
    if coder == "range":
        entries = layout.read_entries(listed, len(payload), "the new artifact")
        lanes = full["lanes"] = max(1, min(MAX_LANES, len(payload) // LANE_BYTES))
        if _steps(entries, lanes) > MAX_STEPS:
            raise BytegolfError("the model has too many matrices of few and long rows for the range coder: use zstd")
        encoder = Encoder(lanes)
        _walk(encoder, lanes, entries, np.frombuffer(payload, np.uint8), decode=False)
        packed = encoder.finish()
    else:
        packed = coders.compress(coder, payload)
    return container.encode(full, packed, len(payload), version=1 if coder == "zlib" else 2)


def open_payload(path: Path) -> Payload:
    """Read and check the file at ``path``.

    Raises:
        BytegolfError: it is missing, no artifact, damaged, or declares what it does not hold.
    """
    box, where = container.read(path), str(path)
    header, coder = box.header, box.header.get("compression")
    if coder not in CODERS or (box.version == 1 and coder != "zlib"):
        raise damaged(where, f"its compression {str(coder)[:40]!r} is unknown")
    size = header.get("payload_bytes")
    if type(size) is not int or not 0 <= size <= MAX_PAYLOAD_BYTES:
        raise damaged(where, "its header declares no valid payload size")
    try:
        if coder == "range":
            entries = layout.read_entries(header.get("tensors"), size, where)
            return Payload(box, entries, *_read_range(box, entries, size))
        payload = coders.decompress(coder, box.packed, size)
        return Payload(box, layout.read_entries(header.get("tensors"), size, where), payload, None)
    except (BadStreamError, BrokenStreamError) as error:
        raise damaged(where, str(error)) from error


def _sizer(data: bytes) -> int:
    """How well bytes laid out in some way will do, judged by the fastest of the general compressors."""
    return len(coders.compress("zlib", data))


def _read_range(box: Container, entries: list[TensorEntry], size: int) -> tuple[bytes, list[float]]:
    lanes = box.header.get("lanes")
    if type(lanes) is not int or not 1 <= lanes <= MAX_LANES:
        raise BadStreamError("its header declares no valid number of lanes")
    if any(entry.layout != "rows" or entry.scale_layout != "rows" for entry in entries):
        raise BadStreamError("it has a layout that its coder knows nothing of")
    if _steps(entries, lanes) > MAX_STEPS:
        raise BadStreamError("it declares tensors that would take too many steps")
    payload = np.zeros(size, np.uint8)
    decoder = Decoder(box.packed, lanes)
    bits = _walk(decoder, lanes, entries, payload, decode=True)
    decoder.close()
    return payload.tobytes(), bits


def _steps(entries: list[TensorEntry], lanes: int) -> int:
    values = sum((entry.scale_size or entry.size) // lanes + 4 for entry in entries)
    return values + sum(count_steps(*_matrix_shape(entry), lanes) for entry in entries if entry.scheme in ROW_BITS)


def _matrix_shape(entry: TensorEntry) -> tuple[int, int]:
    rows = entry.shape[0] if entry.numel else 0
    return rows, entry.numel // rows if rows else 0


def _walk(
    coder: Coder, lanes: int, entries: list[TensorEntry], payload: NDArray[np.uint8], decode: bool
) -> list[float]:
    """Code the tensors in the header's order, each's scales before its codes; how many bits each took."""
    weights = WeightCoder(coder, lanes)
    bits = []
    for entry in entries:
        before = coder.bits
        data = payload[entry.offset : entry.offset + entry.size]
        if entry.scheme in ROW_BITS:
            scales = payload[entry.scale_offset : entry.scale_offset + entry.scale_size]
            weights.values(scales.reshape(-1, 2), decode)
            rows, length = _matrix_shape(entry)
            codes = data.view(np.int8).reshape(rows, length)
            weights.matrix(codes, levels(ROW_BITS[entry.scheme]), scales.view("<u2").astype(np.int64), decode)
        else:
            weights.values(data.reshape(-1, layout.DTYPES[entry.scheme].itemsize), decode)
        bits.append(coder.bits - before)
    return bits


def coded_bits(stored: list[QuantizedTensor]) -> list[float]:
    """What ``range`` makes of each tensor, in bits, without writing a stream."""
    listed, payload = layout.lay_out(stored)
    entries = layout.read_entries(listed, len(payload), "the new artifact")
    encoder = Encoder(MAX_LANES)
    bits = _walk(encoder, MAX_LANES, entries, np.frombuffer(payload, np.uint8), decode=False)
    by_name = dict(zip((entry.name for entry in entries), bits, strict=True))
    return [by_name[tensor.name] for tensor in stored]
