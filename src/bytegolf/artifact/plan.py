"""Which tensor is stored how: S0's rules by size, by what each module declares its tensors to be for
(``model.storage``), and by the bits that the configuration gives.

A plan is a mapping from names to :class:`Storage`; change single entries of it for mixed precision. Nothing of it needs
storing: every tensor in an artifact names its own quantiser.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor, nn

from bytegolf.artifact.quantize import ROWS, QuantizedTensor, quantizer
from bytegolf.artifact.quantizer import Storage
from bytegolf.config import ExportConfig
from bytegolf.model.storage import StorageKind, storage_kinds

Plan = Mapping[str, Storage]
Kinds = Mapping[str, StorageKind]
"""What tensors are for, by name; a name that is missing is a ``weight``."""

SMALL_NUMEL = 65_536
"""Tensors of at most so many elements are not worth quantising (S0)."""

TABLE_GROUP = 64
"""So many rows of a table share a scale below 8 bits: its rows are as narrow as 16 numbers, and at one fp16 scale each
the scales of a 4-bit table would take a fifth of it. A larger group costs less than fewer bits do (LOG.md)."""


def plan_of(state: Mapping[str, Tensor | QuantizedTensor], kinds: Kinds, export: ExportConfig) -> dict[str, Storage]:
    """How each tensor of a model is stored; only shapes, kinds and ``export`` count, so the meta device will do."""
    return {name: storage_of(kinds.get(name, "weight"), tuple(tensor.shape), export) for name, tensor in state.items()}


def estimated_bytes(model: nn.Module, export: ExportConfig) -> int:
    """An artifact's size before compression: codes barely compress before training has shaped them, and scales and
    header are small beside them. A primer counts as packed, to a quarter of its text."""
    state = model.state_dict()
    plan = plan_of(state, storage_kinds(model), export)
    bits = sum(math.prod(state[name].shape) * quantizer(how.quantizer).bits for name, how in plan.items())
    return int(bits / 8) + export.primer // 4


def storage_of(kind: StorageKind, shape: tuple[int, ...], export: ExportConfig) -> Storage:
    """How one tensor is stored: what steers in fp32, small tensors in fp16, all others as codes."""
    if steers(kind, shape):
        return Storage("fp32")
    return Storage("fp16") if math.prod(shape) <= SMALL_NUMEL else coded(kind, shape, export)


def steers(kind: StorageKind, shape: tuple[int, ...]) -> bool:
    """Whether a tensor steers the network and so keeps fp32: control tensors, vectors and scalars."""
    return kind == "control" or len(shape) < 2


def coded(kind: StorageKind, shape: tuple[int, ...], export: ExportConfig) -> Storage:
    """How a matrix is stored as codes, whatever its size."""
    if kind == "rule":  # −1, 0 and 1, which 3 bits hold exactly and no pruning may touch
        return Storage("int3_row")
    if kind == "table":  # whose rows are too narrow for a share of them to mean anything
        bits = export.ngram_bits or export.bits
        return Storage(ROWS[bits], group=math.gcd(TABLE_GROUP, shape[0]) if bits < 8 else 1)
    if kind == "embedding" and export.embedding_bits:
        return Storage(ROWS[export.embedding_bits], export.prune)
    return Storage(export.quantizer or ROWS[export.bits], export.prune)


def group_of(name: str) -> str:
    """The group of a tensor: its stage, and within the stage attention, MLP or the scales and mixes.

    >>> group_of("network.encoder.blocks.0.mixer.qkv.weight")
    'network.encoder mixer'
    >>> group_of("network.encoder.blocks.0.resid_mix")
    'network.encoder scales'
    >>> group_of("embedding.weight")
    'embedding'
    >>> group_of("network.chunk_hash.table")
    'network.chunk_hash'
    """
    block = re.match(r"(.*?)\.?blocks\.\d+\.(.+)", name)
    if block:
        part, dot, _ = block[2].partition(".")
        return f"{block[1]} {part if dot else 'scales'}".strip()
    parent, _, leaf = name.rpartition(".")
    return parent if leaf in ("weight", "table") and parent else f"{parent} scales" if parent else name
