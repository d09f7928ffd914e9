"""An artifact's file written: one tensor after the other is quantised, coded and forgotten.

The data of all tensors come first, those of one quantiser together, then all scales: a compressor fits its code table
to what it has just seen. Reading back begins in ``artifact.payload``.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bytegolf.artifact import container
from bytegolf.artifact.container import CoderName
from bytegolf.artifact.layout import read_entries
from bytegolf.artifact.payload import MAX_STEPS, as_words, steps_of
from bytegolf.artifact.plan import Plan
from bytegolf.artifact.quantize import QuantizedTensor, quantize
from bytegolf.artifact.range_coder import BitCounter, Encoder
from bytegolf.artifact.stored import NUMBERS, SCALE, form_of
from bytegolf.artifact.weight_coder import TensorWriter, most_rows
from bytegolf.errors import BytegolfError
from bytegolf.mixing.primer import Primer


@dataclass(frozen=True)
class Pending:
    """A tensor that is going to be stored: only those in use are held quantised."""

    name: str
    quantizer: str
    make: Callable[[], QuantizedTensor]


def pending(name: str, weight: Tensor | QuantizedTensor, plan: Plan) -> Pending:
    """``weight`` as ``plan`` has it stored. Codes are made when they are asked for; values, which are few, at once, as
    they may turn out to need fp32.
    """
    if isinstance(weight, QuantizedTensor):
        return _made(weight)
    how = plan[name]
    if form_of(how.quantizer).largest_code:
        return Pending(name, how.quantizer, functools.partial(quantize, name, weight, how))
    return _made(quantize(name, weight, how))


def _made(tensor: QuantizedTensor) -> Pending:
    return Pending(tensor.name, tensor.quantizer, lambda: tensor)


def encode(
    out: IO[bytes],
    folder: Path,
    header: Mapping[str, Any],
    stored: Sequence[Pending],
    coder: CoderName = "zlib",
    not_counted: frozenset[str] = frozenset(),
    primer: Primer | None = None,
) -> tuple[int, str]:
    """Write a file with ``stored`` in it, and perhaps a ``primer``, to ``out``; its size and SHA-256. ``header`` is the
    rest of its header.

    zlib takes one tensor after the other, and what it makes of them waits in ``folder`` until the header is known: no
    more than a tensor is in memory. The other coders need all.

    ``not_counted`` are the names of tensors that are no parameters. Raises BytegolfError: see ``container.begin``.
    """
    ordered = in_order(stored)
    with tempfile.SpooledTemporaryFile(_SPOOLED, dir=str(folder)) as packed:
        if coder == "zlib":
            stream = container.compressor()

            def put_packed(data: bytes) -> None:
                packed.write(stream.compress(data))

            listed, size = lay_out(ordered, put_packed, not_counted)
            packed.write(stream.flush())
        else:
            listed, size = _pack_whole(ordered, packed, coder, not_counted)
        full = {**header, "tensors": listed, "compression": coder, "payload_bytes": size}
        if primer:
            full |= {"primer_bytes": len(primer.packed), "primer": {"bytes": primer.size, "sha256": primer.sha256}}
        digest, written = hashlib.sha256(), 0

        def put(data: bytes) -> None:
            nonlocal written
            digest.update(data)
            written += out.write(data)

        put(container.begin(full, packed.tell(), size))
        packed.seek(0)
        while data := packed.read(1 << 20):
            put(data)
        if primer:
            put(primer.packed)
        put(digest.digest())
    return written, digest.hexdigest()


_SPOOLED = 1 << 26
"""Bytes of a packed payload that wait in memory; more wait in a file."""


def _pack_whole(
    ordered: Sequence[Pending], packed: IO[bytes], coder: CoderName, not_counted: frozenset[str]
) -> tuple[list[dict[str, Any]], int]:
    """The header's list and the payload's size, with all of the payload in memory."""
    tensors = [pending.make() for pending in ordered]
    parts: list[bytes] = []
    listed, size = lay_out([_made(tensor) for tensor in tensors], parts.append, not_counted)
    if coder != "range":
        packed.write(container.compress(coder, b"".join(parts)))
        return listed, size
    most = most_rows(size)
    if steps_of(read_entries(listed, size, "the new artifact"), most) > MAX_STEPS:
        raise BytegolfError("the model has too many matrices of few and long rows for the range coder: use zstd")
    encoder = Encoder()
    writer = TensorWriter(encoder, most)
    for tensor in tensors:
        write_codes(writer, tensor)
    packed.write(encoder.finish())
    return listed, size


def coded_bits(stored: Sequence[QuantizedTensor]) -> dict[str, float]:
    """What ``range`` makes of each tensor, in bits by name, without writing a stream."""
    counter = BitCounter()
    writer = TensorWriter(counter)
    found = {}
    for tensor in in_order([_made(each) for each in stored]):
        before = counter.bits
        write_codes(writer, tensor.make())
        found[tensor.name] = counter.bits - before
    return found


def write_codes(writer: TensorWriter, tensor: QuantizedTensor) -> None:
    """Code one tensor: its scales, then its codes; or its values."""
    data = data_of(tensor)
    if tensor.scale is None:
        writer.values(_as_bytes(data))
        return
    scales = scales_of(tensor)
    writer.values(_as_bytes(scales))
    rows = data.shape[0] if data.size else 0
    codes = data.reshape(rows, data.size // rows if rows else 0)
    writer.matrix(codes, form_of(tensor.quantizer).largest_code, as_words(scales))


def _as_bytes(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    return numbers.reshape(-1).view(np.uint8).reshape(numbers.size, numbers.itemsize)


def in_order(stored: Sequence[Pending]) -> list[Pending]:
    """As tensors lie in the file: codes, then fp16, then fp32; those of one quantiser together, else as given."""
    numbers = list(NUMBERS.values())
    return sorted(stored, key=lambda tensor: (numbers.index(form_of(tensor.quantizer).number), tensor.quantizer))


def lay_out(
    ordered: Sequence[Pending], put: Callable[[bytes], None], not_counted: frozenset[str] = frozenset()
) -> tuple[list[dict[str, Any]], int]:
    """The header's list and the size of the payload, whose parts go to ``put``: the data of all tensors, one at a time,
    then the scales of all.
    """
    listed: list[dict[str, Any]] = []
    scales: list[tuple[dict[str, Any], bytes]] = []
    place = 0
    for each in ordered:
        tensor = each.make()
        data = data_of(tensor).tobytes()
        row: dict[str, Any] = {"name": tensor.name, "quantizer": tensor.quantizer, "shape": list(tensor.shape)}
        row |= {"counted": False} if tensor.name in not_counted else {}
        listed.append({**row, "offset": place, "bytes": len(data)})
        place += len(data)
        put(data)
        if tensor.scale is not None:
            count = {"scales": len(tensor.scale)} if len(tensor.scale) != tensor.shape[0] else {}
            listed[-1] |= {"scale_offset": 0, **count}
            scales.append((listed[-1], scales_of(tensor).tobytes()))
    for row, data in scales:
        row["scale_offset"] = place
        place += len(data)
        put(data)
    return listed, place


def data_of(tensor: QuantizedTensor) -> NDArray[Any]:
    """Its data as the numbers of the file."""
    return tensor.data.contiguous().numpy().astype(NUMBERS[str(tensor.data.dtype)], copy=False)


def scales_of(tensor: QuantizedTensor) -> NDArray[Any]:
    """Its scales as the numbers of the file."""
    assert tensor.scale is not None
    return tensor.scale.contiguous().numpy().astype(SCALE, copy=False)
