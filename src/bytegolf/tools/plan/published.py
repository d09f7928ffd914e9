"""The step times that were published for these systems, with what is known of the code that took them."""

from __future__ import annotations

from dataclasses import dataclass

from bytegolf.tools.plan.work import Code

MIB = 1 << 20

BASELINE = Code(compiled=True)
STUDY_1 = Code(compiled=False, smoothing="loop", atomics=True)
STUDY_2 = Code(compiled=True, smoothing="scan", atomics=True)


@dataclass(frozen=True)
class StepTime:
    """One published figure."""

    what: str
    preset: str
    overrides: tuple[str, ...]
    count: int
    """of H100 GPUs"""
    code: Code
    milliseconds: float
    rate: float | None = None
    """chunks per position, where they were published and no capacity says so"""
    passes: int = 1
    """micro-batches per step"""
    memory: float | None = None
    """peak of what a GPU allocated, in bytes"""


def _divided(preset: str, divisor: int, milliseconds: float) -> StepTime:
    override = (f"model.network.router.capacity_divisor={divisor}",)
    what = f"S3 {preset.split('-')[1]}, room for 1/{divisor}"
    return StepTime(what, preset, override, 8, STUDY_2, milliseconds)


_S2_RATE = 45 / 256
"""Boundaries after training, of 256 bytes: 42 to 47 (S2)."""
_S3_RATE = 461 / 2048
"""Raw boundaries of a sequence (S3)."""
_S3_EXACT = ("model.network.router.capacity=exact",)

STEP_TIMES = (
    StepTime("S0", "baseline-sp1024-10min", (), 8, BASELINE, 43.54, memory=10_184 * MIB),
    StepTime("S0, 4 GPUs", "baseline-sp1024-10min", (), 4, BASELINE, 84.45, passes=2, memory=10_257 * MIB),
    StepTime("S2 byte", "study1-byte-10min", (), 8, STUDY_1, 600e3 / 4520, _S2_RATE),
    StepTime("S2 sp1024", "study1-sp1024-10min", (), 8, STUDY_1, 600e3 / 4466, 39 / 256),
    StepTime("S3 byte, uncompiled", "study2-byte-10min", _S3_EXACT, 8, STUDY_1, 245.0, _S3_RATE),
    _divided("study2-byte-10min", 2, 175.9),
    _divided("study2-byte-10min", 4, 93.2),
    _divided("study2-byte-10min", 6, 76.9),
    _divided("study2-byte-10min", 8, 69.8),
    _divided("study2-sp1024-10min", 2, 172.4),
    _divided("study2-sp1024-10min", 4, 90.0),
)
"""PR #1104's, #1305's and the baseline's own (with a public repetition on 4 GPUs). S2's are 600 s over the steps taken;
its 245 ms, which PR #1305 gives for the code before it was compiled, cannot be of study 1's own model, which took 133:
it is read as study 2's model in study 1's way."""
