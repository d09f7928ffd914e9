"""Which tensor is stored how: S0's rules by size and name, with the bits that the configuration gives rows of codes.

A plan is a mapping from names to :class:`Storage`; change single entries of it for mixed precision. Nothing of it needs
storing: every tensor in an artifact carries its own scheme.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from bytegolf.artifact.quantize import ROW_BITS, QuantizedTensor, Scheme, Storage
from bytegolf.config import ExportConfig

Plan = Mapping[str, Storage]

SMALL_NUMEL = 65_536
"""Tensors of at most so many elements are not worth quantising (S0)."""

CONTROL_SUFFIXES = ("_scale", "_mix", "_gain", "skip_weights")
"""How the names of control tensors with two dimensions end: mixes of (2, D), skip weights of (n, D)."""

EMBEDDING, TABLES = "embedding.weight", ("ngrams.table", "chunk_hash.table")
"""The tied embedding, and how the names of the tables of n-grams and chunks end, which may have bits of their own."""

VERDICTS = "router.verdicts"
"""How the name of an entropy router's table ends: −1, 0 or 1, which any bits hold and no pruning may touch."""

RULES = (VERDICTS, "router.pieces", "router.classes", "router.guide.classes")
"""How the names of the tables end that routers go by and training leaves alone: stored, but no weights."""

TABLE_GROUP = 64
"""So many rows of a table share a scale below 8 bits: its rows are as narrow as 16 numbers, and at one fp16 scale each
the scales of a 4-bit table would take a fifth of it. A larger group costs less than fewer bits do (LOG.md)."""

_STORED_BITS = {**ROW_BITS, "fp16": 16, "fp32": 32}

_SCHEMES: dict[int, Scheme] = {bits: scheme for scheme, bits in ROW_BITS.items()}


def plan_of(state: Mapping[str, Tensor | QuantizedTensor], export: ExportConfig) -> dict[str, Storage]:
    """How each tensor of a model is stored; only names, shapes and ``export`` count, so the meta device will do."""
    return {name: storage_of(name, tuple(tensor.shape), export) for name, tensor in state.items()}


def estimated_bytes(state: Mapping[str, Tensor | QuantizedTensor], export: ExportConfig) -> int:
    """An artifact's size before compression: codes barely compress before training has shaped them, and scales and
    header are small beside them."""
    bits = sum(math.prod(state[name].shape) * _STORED_BITS[how.scheme] for name, how in plan_of(state, export).items())
    return bits // 8


def storage_of(name: str, shape: tuple[int, ...], export: ExportConfig) -> Storage:
    """How one tensor is stored: control tensors in fp32, small ones in fp16, all others in rows of codes."""
    if is_control(name, shape):
        return Storage("fp32")
    if math.prod(shape) <= SMALL_NUMEL:
        return Storage("fp16")
    if name.endswith(VERDICTS):
        return Storage("int3_row")
    if name.endswith(TABLES):  # whose rows are too narrow for a share of them to mean anything
        bits = export.ngram_bits or export.bits
        return Storage(_SCHEMES[bits], group=math.gcd(TABLE_GROUP, shape[0]) if bits < 8 else 1)
    bits = export.embedding_bits if name == EMBEDDING else 0
    return Storage(_SCHEMES[bits or export.bits], export.prune)


def is_control(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor steers the network and so keeps fp32: vectors, scalars and ``CONTROL_SUFFIXES``."""
    return len(shape) < 2 or name.endswith(CONTROL_SUFFIXES)


def group_of(name: str) -> str:
    """The group of a tensor: its stage, and within the stage attention, MLP or the scales and mixes.

    >>> group_of("network.encoder.blocks.0.attn.qkv.weight")
    'network.encoder attn'
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
