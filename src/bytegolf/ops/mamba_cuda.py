"""Mamba-2 by the kernels of causal-conv1d and mamba-ssm, on GPUs where these are installed.

Neither is needed: without them, and for shapes that they do not take, ``causal_conv`` and ``ssd`` run in their plain
forms, which torch.compile fuses.

Legend: B batch, L positions, X channels, K taps, H heads, P head width, N state size, C = H·P + 2N.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.ops.ssd import SsdShape

CONV, SCAN = "causal_conv1d", "mamba_ssm.ops.triton.ssd_combined"
"""The modules that have the kernels."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _module(name: str) -> Any:
    """A module, or None where it is not installed or cannot be imported here.

    Imports are written out, so that an auditor of a submission sees them.
    """
    try:
        if name == CONV:
            import causal_conv1d

            return causal_conv1d
        import mamba_ssm.ops.triton.ssd_combined

        return mamba_ssm.ops.triton.ssd_combined
    except Exception:  # whatever an extension built for another torch or driver raises
        return None


def _here(x: Tensor, name: str) -> bool:
    compiling = torch.compiler.is_compiling()  # graphs are made of the plain forms
    return x.device.type == "cuda" and x.dtype in _DTYPES and not compiling and _module(name) is not None


def conv_usable(x: Float[Tensor, "B L X"], taps: Float[Tensor, "K X"]) -> bool:
    """Whether causal-conv1d takes this convolution: 2 to 4 taps, channels in eights."""
    return 2 <= taps.shape[0] <= 4 and x.shape[2] % 8 == 0 and _here(x, CONV)


def scan_usable(channels: Float[Tensor, "B L C"], shape: SsdShape) -> bool:
    """Whether mamba-ssm takes this recurrence: chunks of a power of two."""
    return shape.chunk >= 16 and shape.chunk & (shape.chunk - 1) == 0 and _here(channels, SCAN)


def _numbers(first: Bool[Tensor, "B L"] | None) -> Int[Tensor, "B L"] | None:
    """Each position's document, as both packages have it."""
    return None if first is None else first.cumsum(1).to(torch.int32)


def conv(
    x: Float[Tensor, "B L X"],
    taps: Float[Tensor, "K X"],
    bias: Float[Tensor, " X"],
    first: Bool[Tensor, "B L"] | None,
) -> Float[Tensor, "B L X"]:
    """``ops.causal_conv.causal_conv``; channels last in memory, as documents ask for."""
    weight, bias = taps.t().contiguous().to(x.dtype), bias.to(x.dtype)
    found = _module(CONV).causal_conv1d_fn(
        x.contiguous().transpose(1, 2), weight, bias, seq_idx=_numbers(first), activation="silu"
    )
    y: Tensor = found.transpose(1, 2)
    return y


def scan(
    channels: Float[Tensor, "B L C"],
    dt: Float[Tensor, "B L H"],
    rate: Float[Tensor, " H"],
    skip: Float[Tensor, " H"],
    first: Bool[Tensor, "B L"] | None,
    before: Float[Tensor, "B H N P"] | None,
    shape: SsdShape,
) -> tuple[Float[Tensor, "B L HP"], Float[Tensor, "B H N P"]]:
    """``ops.ssd.ssd`` and the state behind the last position; log a is ``rate``·``dt``."""
    x, b, c = channels.split((shape.inner, shape.state, shape.state), -1)
    y, after = _module(SCAN).mamba_chunk_scan_combined(
        torch.unflatten(x, -1, (shape.heads, shape.width)),
        dt,
        rate,
        b.unsqueeze(2),
        c.unsqueeze(2),
        chunk_size=shape.chunk,
        D=skip.to(dt.dtype),
        initial_states=None if before is None else before.mT.contiguous(),
        seq_idx=_numbers(first),
        return_final_states=True,
    )
    return y.flatten(2), after.mT
