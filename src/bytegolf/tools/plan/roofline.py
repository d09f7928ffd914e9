"""How long work takes: an operation as long as its slower side, a part at least as long as starting its kernels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from bytegolf.tools.plan.devices import LINK, SCAN, SCATTER, Device
from bytegolf.tools.plan.work import Op


@dataclass
class PartTime:
    """A part of the model in one step of a rank."""

    name: str
    flops: float = 0.0
    bytes: float = 0.0
    kernels: float = 0.0
    computing: float = 0.0
    """seconds that the device is busy"""
    starting: float = 0.0
    """seconds that the processor takes to start the kernels, beside it"""

    @property
    def seconds(self) -> float:
        """The longer of both."""
        return max(self.computing, self.starting)


def seconds(op: Op, device: Device) -> float:
    """How long the device is busy with ``op``."""
    products, attention, passes = device.reached
    memory = op.bytes / (device.bandwidth * passes)
    if op.kind == "matmul":
        return max(op.flops / (device.flops * products), memory)
    if op.kind == "attention":
        return op.flops / (device.flops * attention)
    # fitted on one device, and bound by its processors and memory: taken to scale with the bandwidth
    scale = device.bandwidth / 3.35e12
    if op.kind == "scan":
        return op.flops / (SCAN * scale)
    if op.kind == "scatter":
        return op.flops / (SCATTER * scale)
    return memory


def part_times(work: list[Op], device: Device) -> list[PartTime]:
    """The parts of a step in the order in which they appear; a loop waits for its kernels beside everything else."""
    parts: dict[str, PartTime] = {}
    loops: dict[str, float] = defaultdict(float)
    for op in work:
        part = parts.setdefault(op.part, PartTime(op.part))
        if op.kind not in ("scan", "scatter"):
            part.flops += op.flops
        part.bytes += op.bytes
        part.kernels += op.kernels
        busy, start = seconds(op, device), op.kernels * device.launch
        if op.kind == "loop":  # a chain of tiny kernels: the device cannot run ahead, nor the processor
            loops[op.part] += max(busy, start)
        else:
            part.computing += busy
            part.starting += start
    for name, extra in loops.items():
        parts[name].computing = max(parts[name].computing, parts[name].starting) + extra
    return list(parts.values())


def step_seconds(parts: list[PartTime], link_bytes: float, hidden_bytes: float, device: Device) -> float:
    """A whole step: the parts, and communication as far as the backward pass does not hide it.

    Args:
        link_bytes: sent with nothing beside it (the optimiser's updates).
        hidden_bytes: sent while gradients are computed, two thirds of the time of the other parts.
    """
    busy = sum(part.seconds for part in parts)
    rate = device.link * LINK
    return busy + link_bytes / rate + max(0.0, hidden_bytes / rate - busy * 2 / 3)
