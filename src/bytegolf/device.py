"""Which device and which compute dtype: the choice is the same for training, scoring and generation."""

from __future__ import annotations

import math
import os

import torch

from bytegolf.errors import BytegolfError


def choose_device(wanted: str) -> torch.device:
    """The device that ``wanted`` names (see ``pick_device``), with torch's switches set for it."""
    return prepare_device(pick_device(wanted))


def pick_device(wanted: str) -> torch.device:
    """The device that ``wanted`` names; auto takes cuda, then mps, then cpu."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, there in available.items() if there)
    kind = wanted.partition(":")[0]
    if not available.get(kind, False):
        choices = ", ".join(name for name, there in available.items() if there)
        raise BytegolfError(f"the device {wanted!r} is not available here: choose auto or one of {choices}")
    if kind == "cuda" and ":" not in wanted:
        wanted = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise BytegolfError(f"{wanted!r} names no device: write for instance cuda:0") from error
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise BytegolfError(
            f"there is no device {wanted}, as this machine has {torch.cuda.device_count()} of them: name another, or "
            "start as many processes as there are devices"
        )
    return device


def device_memory(device: torch.device) -> float:
    """Bytes that a process on ``device`` may count on: an accelerator's own, or its share of the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):  # Windows
        return math.inf
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def prepare_device(device: torch.device) -> torch.device:
    """Set torch's switches for ``device``, the same for training and scoring; ``device`` itself."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # fp32 products, where any are left, in TF32
        torch.backends.cudnn.allow_tf32 = True
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bf16. A CPU without units for it would do so by a loop, far slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # both names are private, but nothing public tells
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def pick_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The compute dtype: bf16 where the device multiplies in it, else fp32, unless ``wanted`` says which."""
    return torch.bfloat16 if wanted == "bf16" or (wanted == "auto" and has_bf16(device)) else torch.float32
