"""A trained model as one file: quantised weights, configuration, tokenizer identity; and back.

What ``read_artifact`` returns is all that a score may depend on: only scores of the reloaded file are reported.

The data of all tensors come first, those of one quantiser together, then all scales: a compressor fits its code table
to what it has just seen. Reading back begins in ``artifact.payload``.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bytegolf import __version__
from bytegolf.artifact import container, layout
from bytegolf.artifact.container import CoderName
from bytegolf.artifact.layout import numbers_of, read_entries
from bytegolf.artifact.payload import MAX_STEPS, as_words, header_of, not_finite, open_payload, steps_of
from bytegolf.artifact.plan import Plan, plan_of
from bytegolf.artifact.quantize import QuantizedTensor, dequantize, quantize
from bytegolf.artifact.range_coder import BitCounter, Encoder
from bytegolf.artifact.stored import NUMBERS, SCALE, form_of
from bytegolf.artifact.weight_coder import TensorWriter, most_rows
from bytegolf.config import Config, to_dict
from bytegolf.errors import BytegolfError
from bytegolf.files import write_bytes
from bytegolf.model.outline import outline
from bytegolf.model.storage import storage_kinds


def encode(
    header: Mapping[str, Any],
    stored: Sequence[QuantizedTensor],
    coder: CoderName = "zlib",
    not_counted: frozenset[str] = frozenset(),
) -> bytes:
    """The bytes of a file with ``stored`` in it; ``header`` is the rest of its header.

    ``not_counted`` are the names of tensors that are no parameters. Raises BytegolfError: see ``container.encode``.
    """
    ordered = in_order(stored)
    listed, payload = lay_out(ordered, not_counted)
    if coder == "range":
        most = most_rows(len(payload))
        if steps_of(read_entries(listed, len(payload), "the new artifact"), most) > MAX_STEPS:
            raise BytegolfError("the model has too many matrices of few and long rows for the range coder: use zstd")
        encoder = Encoder()
        writer = TensorWriter(encoder, most)
        for tensor in ordered:
            _write(writer, tensor)
        packed = encoder.finish()
    else:
        packed = container.compress(coder, payload)
    full = {**header, "tensors": listed, "compression": coder, "payload_bytes": len(payload)}
    return container.encode(full, packed, len(payload))


def coded_bits(stored: Sequence[QuantizedTensor]) -> dict[str, float]:
    """What ``range`` makes of each tensor, in bits by name, without writing a stream."""
    counter = BitCounter()
    writer = TensorWriter(counter)
    found = {}
    for tensor in in_order(stored):
        before = counter.bits
        _write(writer, tensor)
        found[tensor.name] = counter.bits - before
    return found


def _write(writer: TensorWriter, tensor: QuantizedTensor) -> None:
    data = data_of(tensor)
    if tensor.scale is None:
        writer.values(_as_bytes(data))
        return
    scales = scales_of(tensor)
    writer.values(_as_bytes(scales))
    rows = data.shape[0] if data.size else 0
    codes = data.reshape(rows, data.size // rows if rows else 0)
    writer.matrix(codes, form_of(tensor.quantizer).largest_code, as_words(scales))


def in_order(stored: Sequence[QuantizedTensor]) -> list[QuantizedTensor]:
    """As tensors lie in the file: codes, then fp16, then fp32; those of one quantiser together, else as given."""
    dtypes = list(NUMBERS)
    return sorted(stored, key=lambda tensor: (dtypes.index(str(tensor.data.dtype)), tensor.quantizer))


def lay_out(
    ordered: Sequence[QuantizedTensor], not_counted: frozenset[str] = frozenset()
) -> tuple[list[dict[str, Any]], bytes]:
    """The header's list and the payload: the data of all tensors, then the scales of all."""
    listed: list[dict[str, Any]] = []
    parts: list[bytes] = []
    place = 0
    for tensor in ordered:
        parts.append(data_of(tensor).tobytes())
        row: dict[str, Any] = {"name": tensor.name, "quantizer": tensor.quantizer, "shape": list(tensor.shape)}
        row |= {"counted": False} if tensor.name in not_counted else {}
        listed.append({**row, "offset": place, "bytes": len(parts[-1])})
        place += len(parts[-1])
    for row, tensor in zip(listed, ordered, strict=True):
        if tensor.scale is not None:
            parts.append(scales_of(tensor).tobytes())
            row["scale_offset"] = place
            row |= {"scales": len(tensor.scale)} if len(tensor.scale) != tensor.shape[0] else {}
            place += len(parts[-1])
    return listed, b"".join(parts)


def data_of(tensor: QuantizedTensor) -> NDArray[Any]:
    """Its data as the numbers of the file."""
    return tensor.data.contiguous().numpy().astype(NUMBERS[str(tensor.data.dtype)], copy=False)


def scales_of(tensor: QuantizedTensor) -> NDArray[Any]:
    """Its scales as the numbers of the file."""
    assert tensor.scale is not None
    return tensor.scale.contiguous().numpy().astype(SCALE, copy=False)


def _as_bytes(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    return numbers.reshape(-1).view(np.uint8).reshape(numbers.size, numbers.itemsize)


@dataclass(frozen=True)
class Summary:
    """The file that ``write_artifact`` wrote."""

    path: Path
    file_bytes: int
    sha256: str
    parameters: int
    """how many weights it holds"""


@dataclass(frozen=True, eq=False)
class Artifact:
    """A model as read from its file."""

    config: Config
    """of the run that made it"""
    tokenizer: dict[str, Any]
    """the tokenizer's identity, as it was given to ``write_artifact``"""
    state: dict[str, Tensor]
    """the weights by name on the CPU: of a quantised file dequantised, fp32 and finite; else in the file's dtypes"""
    info: dict[str, Any]
    """what else was noted (steps, seconds); nothing is computed from it"""
    digest: Callable[[], str]
    """gives ``sha256``"""
    file_bytes: int
    version: str
    """of the bytegolf that wrote it"""

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file, in hexadecimal: of a large one taken when it is asked for."""
        return self.digest()


def write_artifact(
    path: Path,
    state: Mapping[str, Tensor | QuantizedTensor],
    config: Config,
    tokenizer: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    coder: CoderName = "zlib",
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

    Raises BytegolfError: a weight cannot be exported, a name or value cannot be stored, or writing failed.
    """
    for name in state:
        if not layout.NAME.fullmatch(name):
            raise BytegolfError(
                f"the tensor name {name!r} cannot be stored: use up to 200 ASCII letters, digits, _ and ."
            )
    kinds = storage_kinds(outline(config.model))
    plan = plan_of(state, kinds, config.export) if plan is None else plan
    stored = [
        weight if isinstance(weight, QuantizedTensor) else quantize(name, weight, plan[name])
        for name, weight in sorted(state.items())
    ]
    header = {
        "bytegolf": __version__,
        "config": to_dict(config),
        "tokenizer": dict(tokenizer),
        "info": dict(info or {}),
    }
    rules = frozenset(name for name, kind in kinds.items() if kind == "rule")
    data = encode(header, stored, coder, rules)
    write_bytes(path, data)
    parameters = sum(math.prod(tensor.shape) for tensor in stored if tensor.name not in rules)
    return Summary(path, len(data), hashlib.sha256(data).hexdigest(), parameters)


def read_artifact(path: Path) -> Artifact:
    """Read the artifact at ``path``; the file may come from anywhere.

    The configuration is valid by its own rules, but may describe a model of any size: compare its weights'
    names and shapes with ``state`` before trusting it.

    Raises BytegolfError: the file is missing, no artifact, damaged, of an earlier format, or its configuration or a
    quantiser of its is unknown here.
    """
    opened, where = open_payload(path), str(path)
    box, header = opened.box, header_of(opened.box, where)
    state: dict[str, Tensor] = {}
    for entry in opened.entries:
        data, scales = numbers_of(entry, opened.payload, where)
        scale = None if scales is None else torch.from_numpy(scales)
        weight = dequantize(QuantizedTensor(entry.name, entry.quantizer, torch.from_numpy(data), scale))
        if not bool(torch.isfinite(weight).all()):
            raise not_finite(entry, where)
        state[entry.name] = weight
    return Artifact(
        header.config, header.tokenizer, state, header.info, lambda: box.sha256, box.file_bytes, header.version
    )
