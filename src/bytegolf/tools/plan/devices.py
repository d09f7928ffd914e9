"""What computes: devices by their data sheets, step times that were published, and this machine measured."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bytegolf.tools.plan.work import Code

# ---------------------------------------------------------------------------------------------------------- data sheets


MATMUL, ATTENTION, MEMORY = 0.55, 0.25, 0.7
"""Shares that programs reach of data sheets' peaks: products with an inner width of 512, unless memory is slower
still; fused causal attention with heads of 64, forward and backward together; passes over activations. Guessed as 0.7,
0.35 and 0.8, which made S0's published step 31 % too short, and lowered once."""

HERE = 0.9, 0.5, 0.9
"""The same of peaks that were measured by the kind of work they limit. Guessed."""

LAUNCH = 10e-6
"""Eager PyTorch with autograd, forward and backward alike: 5 to 15 µs are usual."""


@dataclass(frozen=True)
class Device:
    """One accelerator, or a machine's processor."""

    name: str
    flops: float
    """matrix products of dense bf16, FLOP/s"""
    bandwidth: float
    """of its memory, bytes/s"""
    memory: float
    """bytes"""
    link: float
    """to the others in its machine, bytes/s each way"""
    launch: float
    """seconds from one kernel to the next where Python starts each: the least a kernel takes, however small"""
    reached: tuple[float, float, float] = (MATMUL, ATTENTION, MEMORY)
    """shares of the peaks that products, attention and passes over memory reach"""


DEVICES = {
    device.name: device
    for device in (
        Device("h100", 989e12, 3.35e12, 80e9, 450e9, LAUNCH),
        Device("h200", 989e12, 4.8e12, 141e9, 450e9, LAUNCH),
        Device("a100", 312e12, 2.04e12, 80e9, 300e9, LAUNCH),
        Device("rtx4090", 165e12, 1.01e12, 24e9, 25e9, LAUNCH),
    )
}
"""From the makers' data sheets: SXM modules, dense bf16; a consumer card talks through PCIe."""

LINK = 0.7
"""Share of the link's bandwidth that collectives reach."""

SCAN = 3.6e11
"""Elements per second of the published S3's smoothing backward, which forms a C × C matrix per channel. Fitted: the
second difference of its step times at C = 256, 341, 512 and 1,024 chunks (69.8, 76.9, 93.2 and 175.9 ms)."""

SCATTER = 2e9
"""Elements per second that many positions add into few by atomic operations: the published gathers' backward pass.
Fitted: what the same series leaves over at C = 0, beside what two thirds of S0's blocks take."""


# ------------------------------------------------------------------------------------------------- published step times


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


# ----------------------------------------------------------------------------------------------- this machine, measured


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(work: Callable[[], object], device: torch.device, clock: str = "wall") -> float:
    """Seconds that ``work`` takes, its work on the device included."""
    now = CLOCKS[clock]
    started = now()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return now() - started


def matmul_peak(device: torch.device, dtype: torch.dtype, clock: str) -> float:
    """FLOP/s of the best of a few products of the shapes that models use."""
    best = 0.0
    for rows, inner, columns in ((8192, 512, 512), (8192, 512, 1024), (4096, 1024, 1024)):
        a, b = (torch.randn(n, inner, device=device, dtype=dtype) for n in (rows, columns))
        seconds = min(timed(functools.partial(F.linear, a, b), device, clock) for _ in range(10))
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def bandwidth(device: torch.device, clock: str) -> float:
    """Bytes/s of a copy too large for caches, counted once read and once written."""
    source = torch.zeros(1 << 25, device=device)
    target = torch.empty_like(source)
    seconds = min(timed(lambda: target.copy_(source), device, clock) for _ in range(5))
    return 2 * source.numel() * source.element_size() / seconds


def launch(device: torch.device, clock: str) -> float:
    """Seconds an operation on almost nothing takes, forward and backward with autograd between."""
    count = 200
    x = torch.ones(8, device=device, requires_grad=True)

    def chain() -> None:
        y = x
        for _ in range(count):
            y = y * 1.5
        torch.autograd.backward(y.sum())

    return min(timed(chain, device, clock) for _ in range(5)) / (2 * count)


def this_machine(device: torch.device, dtype: torch.dtype, clock: str) -> Device:
    """The device that programs here compute on."""
    cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else float("inf")
    name = torch.cuda.get_device_name(device) if cuda else f"here, {torch.get_num_threads()} threads"
    peak = matmul_peak(device, dtype, clock)
    return Device(name, peak, bandwidth(device, clock), memory, float("inf"), launch(device, clock), HERE)
