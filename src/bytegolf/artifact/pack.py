"""A trained model as one file: quantised weights, configuration, tokenizer identity; and back.

What ``read_artifact`` returns is all that a score may depend on: only scores of the reloaded file are reported.

Writing is ``artifact.pack``, reading ``artifact.payload``.

The data of all tensors come first, those of one quantiser together, then all scales: a compressor fits its code table
to what it has just seen. Reading back begins in ``artifact.payload``.
"""

from __future__ import annotations

import functools
import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bytegolf import __version__
from bytegolf.artifact import container, payload
from bytegolf.artifact.container import CoderName
from bytegolf.artifact.payload import (
    MAX_STEPS,
    NUMBERS,
    ROW_BITS,
    SCALE,
    as_words,
    form_of,
    header_of,
    not_finite,
    numbers_of,
    open_payload,
    primer_in,
    read_entries,
    steps_of,
)
from bytegolf.artifact.quantize import Plan, QuantizedTensor, dequantize, plan_of, quantize
from bytegolf.artifact.weight_coder import BitCounter, Encoder, TensorWriter, most_rows
from bytegolf.config import Config, stacks, to_dict
from bytegolf.errors import BytegolfError
from bytegolf.files import write_atomically
from bytegolf.mixing.primer import Primer
from bytegolf.model.layers import storage_kinds
from bytegolf.model.lm import outline


@dataclass(frozen=True)
class Summary:
    """The file that ``write_artifact`` wrote."""

    path: Path
    file_bytes: int
    sha256: str
    parameters: int
    """how many weights it holds"""


Stored = Tensor | QuantizedTensor
"""A weight as numbers, or as the file has it."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """A model as read from its file."""

    config: Config
    """of the run that made it"""
    tokenizer: Mapping[str, object]
    """the tokenizer's identity, as it was given to ``write_artifact``"""
    stored: Mapping[str, Stored]
    """the weights by name on the CPU: matrices that models compute with as they are stored are so, see ``codes_stay``;
    all others of a quantised file fp32 and finite, of another file in its dtypes"""
    info: dict[str, Any]
    """what else was noted (steps, seconds); nothing is computed from it"""
    digest: Callable[[], str]
    """gives ``sha256``"""
    file_bytes: int
    version: str
    """of the bytegolf that wrote it"""
    primer: Primer | None = None
    """text for contexts to read first, if it carries some"""

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights as numbers: what is stored as codes, which is large, is dequantised at each call."""
        return {
            name: dequantize(each) if isinstance(each, QuantizedTensor) else each for name, each in self.stored.items()
        }

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file, in hexadecimal: of a large one taken when it is asked for."""
        return self.digest()


def write_artifact(
    path: Path,
    state: Mapping[str, Tensor | QuantizedTensor],
    config: Config,
    tokenizer: Mapping[str, object],
    info: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    coder: CoderName = "zlib",
    primer: Primer | None = None,
) -> Summary:
    """Quantise ``state`` and write it atomically to ``path``; equal arguments give equal bytes.

    Args:
        path: the file; an existing one is replaced once the new one is complete.
        state: the weights by dotted name, of any floating dtype, on any device; or what was quantised already, which
            is stored as it is.
        config: the resolved configuration of the run.
        tokenizer: plain JSON that identifies the tokenizer.
        info: further plain JSON for people, such as steps and seconds.
        plan: how each tensor is stored; by default as ``config.export`` says and the model of ``config`` declares.
        coder: what the payload is compressed with.
        primer: training text for contexts to read before they score; see ``artifact.export``.

    Raises BytegolfError: a weight cannot be exported, a name or value cannot be stored, or writing failed.
    """
    for name in state:
        if not payload.NAME.fullmatch(name):
            raise BytegolfError(
                f"the tensor name {name!r} cannot be stored: use up to 200 ASCII letters, digits, _ and ."
            )
    kinds = storage_kinds(outline(config.model))
    plan = plan_of(state, kinds, config.export) if plan is None else plan
    stored = [pending(name, weight, plan) for name, weight in sorted(state.items())]
    header = {
        "bytegolf": __version__,
        "config": to_dict(config),
        "tokenizer": dict(tokenizer),
        "info": dict(info or {}),
    }
    rules = frozenset(name for name, kind in kinds.items() if kind == "rule")
    found: list[tuple[int, str]] = []
    write_atomically(path, lambda file: found.append(encode(file, path.parent, header, stored, coder, rules, primer)))
    parameters = sum(math.prod(weight.shape) for name, weight in state.items() if name not in rules)
    return Summary(path, *found[0], parameters)


def read_artifact(path: Path) -> Artifact:
    """Read the artifact at ``path``; the file may come from anywhere.

    The configuration is valid by its own rules, but may describe a model of any size: compare its weights'
    names and shapes with ``state`` before trusting it.

    Raises BytegolfError: the file is missing, no artifact, damaged, of an earlier format, or its configuration or a
    quantiser of its is unknown here.
    """
    opened, where = open_payload(path), str(path)
    box, header = opened.box, header_of(opened.box, where)
    stored: dict[str, Stored] = {}
    stays = codes_stay(header.config)
    for entry in opened.entries:
        data, scales = numbers_of(entry, opened.payload, where)
        scale = None if scales is None else torch.from_numpy(scales)
        quantized = QuantizedTensor(entry.name, entry.quantizer, torch.from_numpy(data), scale)
        found: Stored = quantized if stays(quantized) else dequantize(quantized)
        told = found.scale if isinstance(found, QuantizedTensor) else found
        if told is not None and not bool(torch.isfinite(told).all()):
            raise not_finite(entry, where)
        stored[entry.name] = found
    sha256 = box.sha256
    about = header.info, lambda: sha256, box.file_bytes, header.version, primer_in(box, where)
    return Artifact(header.config, header.tokenizer, stored, *about)


def codes_stay(config: Config) -> Callable[[QuantizedTensor], bool]:
    """Which tensors of a model are not dequantised when its file is read: matrices of codes with a scale for each row.

    They are those of models with pre-norm stacks (S4), as these can be large: the codes take a quarter of fp32, and are
    computed with where they lie in the file's payload.
    """
    large = any(stack.block == "prenorm" for stack in stacks(config.model.network))

    def stays(tensor: QuantizedTensor) -> bool:
        rows = tensor.quantizer in ROW_BITS and tensor.data.dim() == 2 and tensor.data.numel() > 0
        return large and rows and tensor.scale is not None and len(tensor.scale) == len(tensor.data)

    return stays


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
