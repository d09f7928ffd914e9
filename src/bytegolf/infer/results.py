"""What compressing and sampling come to; nothing here imports torch, so that a verb's help answers at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Compression:
    """A file that was compressed."""

    source: str
    """"-": stdin"""
    target: str
    """"-": stdout"""
    original_bytes: int
    compressed_bytes: int
    """headers included"""
    bits_per_byte: float | None
    """of the original; null for an empty file"""
    streams: int
    """the most of a block"""
    coded_blocks: int
    stored_blocks: int
    """blocks that do not get smaller"""
    stride: int
    """new bytes per window of the model; 0: windows do not overlap"""
    seconds: float
    bytes_per_second: float
    artifact_sha256: str | None
    """of the model; null for context mixing alone"""


@dataclass(frozen=True)
class CompressedFiles:
    """Files that were compressed."""

    files: list[Compression]
    original_bytes: int
    """of all of them"""
    compressed_bytes: int


@dataclass(frozen=True)
class Decompression:
    """A file that was decompressed."""

    source: str
    """"-": stdin"""
    target: str
    """"-": stdout"""
    original_bytes: int
    seconds: float
    bytes_per_second: float


@dataclass(frozen=True)
class DecompressedFiles:
    """Files that were decompressed."""

    files: list[Decompression]
    original_bytes: int
    """of all of them"""


@dataclass(frozen=True)
class CompressorResult:
    """What one compressor made of one source."""

    source: str
    compressor: str
    bytes: int
    compressed_bytes: int
    bits_per_byte: float
    mb_per_second: float


@dataclass(frozen=True)
class CompressorComparison:
    """Several compressors on several sources."""

    rows: list[CompressorResult]


@dataclass(frozen=True)
class Sample:
    """One continuation of a prompt."""

    prompt: str
    text: str
    """what was added"""
    bytes: int
    """drawn for it"""
    seed: int


@dataclass(frozen=True)
class Samples:
    """Continuations, and how fast they were drawn."""

    samples: list[Sample]
    bytes: int
    """of all of them"""
    seconds: float
    bytes_per_second: float
    temperature: float
    top_p: float
    acceptance: float | None = None
    """share of drafted tokens that the whole model drew as well; None without drafts"""
    tokens_per_pass: float | None = None
    """tokens that a pass of the whole model over a draft brought; None without drafts"""
