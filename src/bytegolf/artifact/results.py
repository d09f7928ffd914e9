"""What exports come to; nothing here imports torch, so that a verb's help, which is made from these types, is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LIMIT = 16_000_000
"""Bytes of code and model together; decimal, not 16 MiB (the rules of Parameter Golf)."""


@dataclass(frozen=True)
class Written:
    """An artifact that was written."""

    artifact: Path
    """the file"""
    checkpoint: Path
    """what it was made of"""
    sha256: str
    """of the file"""
    params: int
    """weights"""
    model_bytes: int
    """of the file"""


@dataclass(frozen=True)
class ExportResult(Written):
    """What a plain export comes to."""

    gptq_seconds: float
    """training time that GPTQ took, as it looks at training data; 0 without it"""


@dataclass(frozen=True)
class FrontierPoint:
    """A way to store the model, as it was found on the disk."""

    model_bytes: int
    total_bytes: int
    """with code"""
    sample_loss: float
    """nats per token of training text"""
    added_loss_expected: float
    """what quantising should cost by the sum over the groups"""
    bpb: float
    """of a subset of the validation split"""
    tokens: int
    """of that subset"""
    widths: dict[str, str]
    """label by group"""


@dataclass(frozen=True)
class FitResult(Written):
    """What an export into so many bytes comes to."""

    fit_bytes: int
    """the limit"""
    coder: str
    coders: dict[str, int]
    """bytes by coder: range, zstd, zlib"""
    gptq: bool
    """whether it paid"""
    widths: dict[str, str]
    """label by group"""
    sample_tokens: int
    """of training text, on which the choice was made"""
    sample_loss: float
    """nats per token of that text"""
    sample_loss_unquantised: float
    frontier: list[FrontierPoint] = field(default_factory=list)
    """from the largest to the smallest"""


@dataclass(frozen=True)
class LedgerRow:
    """One group of bytes, or one tensor."""

    group: str
    """tensors that belong together, a tensor's name and quantizer, the header, the code"""
    tensors: int
    """0 for what is no weight"""
    parameters: int
    """0 for what is no weight"""
    raw_bytes: int
    """before compression"""
    packed_bytes: int
    """its part of the total"""
    bits_per_weight: float | None = None
    """of the packed bytes; null for what is no weight"""


@dataclass(frozen=True)
class Ledger:
    """The account of one artifact: where every byte goes."""

    model_bytes: int
    code_bytes: int
    total_bytes: int
    """code and model together"""
    limit: int
    """of Parameter Golf"""
    fits: bool
    """whether the total keeps within the limit"""
    rows: tuple[LedgerRow, ...]
    """in the file's order; their packed bytes add up to the total"""


@dataclass(frozen=True)
class ImportResult:
    """A public model that was imported."""

    weights: Path
    """the file that was written"""
    source: str
    commit: str
    """of the repository on the hub; empty for local files"""
    params: int
    """weights"""
    weights_bytes: int
    """of the file"""
    dtypes: list[str]
    """of the weights, as they were published"""
    levels: int
    """of chunking"""
    sha256: str
    """of the file"""


@dataclass(frozen=True)
class HnetResult:
    """A model that was written in the public H-Nets' layout."""

    folder: Path
    """with config.json and model.safetensors"""
    source: Path
    params: int
    """weights"""
    weights_bytes: int
    """of model.safetensors"""
    sha256: str
    """of model.safetensors"""
