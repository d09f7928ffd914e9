"""What a plan says. Nothing here imports torch, so that the verb's help, made from these types, answers at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A part of the model in one step of a rank."""

    name: str
    gflop: float
    gigabytes: float
    """read and written"""
    kernels: int
    computing_ms: float
    """that the device is busy"""
    starting_ms: float
    """that the processor takes to start the kernels, beside it"""


@dataclass(frozen=True)
class MemoryBytes:
    """What a rank holds, in bytes."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    total: int


@dataclass(frozen=True)
class Sent:
    """Bytes that a rank sends in a step."""

    gradients: int
    """while they are computed"""
    updates: int
    """afterwards"""


@dataclass(frozen=True)
class Measured:
    """Real steps on this machine."""

    step_ms: float
    """median"""
    steps: int
    clock: str
    """wall or cpu"""
    error: float
    """of the prediction, relative"""


@dataclass(frozen=True)
class Plan:
    """What a run takes on some devices."""

    preset: str
    device: str
    count: int
    """of devices"""
    params: int
    artifact_estimate_bytes: int
    """before compression"""
    sequences: int
    """of a rank per step"""
    micro_batch: int
    """sequences in one forward pass"""
    accumulation: int
    """forward passes per step"""
    rates: list[float]
    """room for chunks per position, outermost level first"""
    flops: float
    """of a rank's step, as bytes and kernels"""
    bytes: float
    kernels: int
    parts: list[Part]
    memory_bytes: MemoryBytes
    communication_bytes: Sent
    step_ms: float
    steps: int
    """in the budget"""
    train_tokens: int
    measured: Measured | None
    """null unless --device here"""
    assumptions: list[str]


@dataclass(frozen=True)
class PublishedStep:
    """A published step time beside what the same arithmetic predicts for the code that took it."""

    what: str
    preset: str
    count: int
    """of H100 GPUs"""
    published_ms: float
    predicted_ms: float
    error: float
    """relative"""
    published_bytes: float | None
    """peak of what a GPU allocated; null where it is unknown"""
    predicted_bytes: int | None


@dataclass(frozen=True)
class Published:
    """What `bytegolf plan` without a preset prints."""

    published: list[PublishedStep]
