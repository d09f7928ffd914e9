"""A trained model as one file: quantised weights, configuration, tokenizer identity; and back.

What ``read_artifact`` returns is all that a score may depend on: only scores of the reloaded file are reported.

``zlib`` and ``zstd`` compress the laid-out payload (``artifact.layout``) as one string of bytes. ``range`` codes tensor
after tensor, each one's scales before its codes, and knows what they are (``artifact.weight_coder``).
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
from bytegolf.artifact.container import CODERS, BadStreamError, CoderName, Container, damaged
from bytegolf.artifact.layout import (
    NUMBERS,
    SCALE,
    TensorEntry,
    data_of,
    in_order,
    is_size,
    lay_out,
    read_entries,
    scales_of,
)
from bytegolf.artifact.plan import Plan, plan_of
from bytegolf.artifact.quantize import QuantizedTensor, dequantize, quantize, quantizer
from bytegolf.artifact.range_coder import BitCounter, BrokenStreamError, Decoder, Encoder
from bytegolf.artifact.weight_coder import TensorReader, TensorWriter, count_steps, most_rows
from bytegolf.config import Config, to_dict
from bytegolf.errors import BytegolfError
from bytegolf.files import write_bytes
from bytegolf.model.lm import outline
from bytegolf.model.storage import storage_kinds
from bytegolf.registry import UnknownNameError

MAX_STEPS = 1 << 23
"""The most steps that ``range`` takes: minutes. A model of 25 million weights takes less than a tenth of them. A file
of a few hundred bytes may declare a tensor of 2³⁰ elements, and a range decoder never runs out of symbols."""


@dataclass(frozen=True)
class Payload:
    """An artifact's file, read, checked and decompressed."""

    box: Container
    entries: list[TensorEntry]
    payload: bytes
    bits: list[float] | None
    """how many bits of the file each tensor takes; None where it is one stream that cannot be told apart, or where
    nobody asked"""


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
        if _steps(read_entries(listed, len(payload), "the new artifact"), most) > MAX_STEPS:
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
    writer.matrix(codes, quantizer(tensor.quantizer).largest_code, _words(scales))


def _as_bytes(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    return numbers.reshape(-1).view(np.uint8).reshape(numbers.size, numbers.itemsize)


def _words(scales: NDArray[Any]) -> NDArray[np.int64]:
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
    if not is_size(size):
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
    if _steps(entries, most) > MAX_STEPS:
        raise BadStreamError("it declares tensors that would take too many steps")
    payload = bytearray(size)
    decoder = Decoder(packed, counting)
    reader = TensorReader(decoder, most)
    bits = []
    for entry in entries:
        before = decoder.bits
        by = quantizer(entry.quantizer)
        if by.largest_code:
            scales = reader.values(entry.scales, SCALE.itemsize)
            payload[entry.scale_offset : entry.scale_offset + scales.size] = scales.tobytes()
            codes = reader.matrix(*entry.matrix, by.largest_code, _words(scales.reshape(-1)))
            payload[entry.offset : entry.offset + entry.size] = codes.tobytes()
        else:
            values = reader.values(entry.numel, NUMBERS[by.dtype].itemsize)
            payload[entry.offset : entry.offset + entry.size] = values.tobytes()
        bits.append(decoder.bits - before)
    decoder.close()
    return bytes(payload), bits if counting else None


def _steps(entries: list[TensorEntry], most: int) -> int:
    """How many steps ``range`` takes, rounded up; a value's bytes are at most four."""
    values = sum((entry.scales + (0 if entry.scales else entry.numel)) // 256 + 4 for entry in entries)
    return values + sum(count_steps(*entry.matrix, most) for entry in entries if entry.scales)


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


def read_artifact(path: Path) -> Artifact:
    """Read the artifact at ``path``; the file may come from anywhere.

    The configuration is valid by its own rules, but may describe a model of any size: compare its weights'
    names and shapes with ``state`` before trusting it.

    Raises BytegolfError: the file is missing, no artifact, damaged, of an earlier format, or its configuration or a
    quantiser of its is unknown here.
    """
    opened, where = open_payload(path), str(path)
    box = opened.box
    tables: dict[str, dict[str, Any]] = {}
    for key in ("config", "tokenizer", "info"):
        table = box.header.get(key)
        if not isinstance(table, dict):
            raise container.damaged(where, f"its header has no {key}")
        tables[key] = table
    version = box.header.get("bytegolf")
    if not isinstance(version, str):
        raise container.damaged(where, "its header names no bytegolf version")
    config = config_of(tables["config"], version, where)
    state: dict[str, Tensor] = {}
    for entry in opened.entries:
        weight = dequantize(layout.load(entry, opened.payload, where))
        if not bool(torch.isfinite(weight).all()):
            raise container.damaged(where, f"its tensor {entry.name} holds NaN or infinite values")
        state[entry.name] = weight
    return Artifact(config, tables["tokenizer"], state, tables["info"], lambda: box.sha256, box.file_bytes, version)
