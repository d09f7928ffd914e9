"""This machine as a device: its products, its memory and its overhead, measured."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bytegolf.tools.plan.devices import HERE, Device

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
