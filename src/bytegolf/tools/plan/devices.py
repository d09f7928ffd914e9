"""What computes: peaks from data sheets, and the few constants that say how much of them programs reach."""

from __future__ import annotations

from dataclasses import dataclass

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
