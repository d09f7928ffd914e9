"""The export quantiser of S0, the official baseline: int8 rows, fp16 for what is small, fp32 for what steers.

Three schemes, chosen by :func:`scheme_of`:

- ``int8_row``: matrices of more than 65,536 elements. Row r is ``scale[r] · codes[r]``, with codes in
  -127…127 and the scale in fp16.
- ``fp16``: everything smaller, the matrix of a small layer for instance.
- ``fp32``: control tensors (vectors, scalars, per-channel scales and mixes, q gains, skip weights), which
  cost little and act on whole streams of activations.

Two details are ours. A scale is rounded *up* to fp16 and the codes are taken with the rounded one, so that
no element within the clip is off by more than half a step of the scale that is really stored; and a small
tensor with a magnitude beyond fp16's largest number stays in fp32 instead of becoming infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor

from bytegolf.errors import BytegolfError

Scheme = Literal["int8_row", "fp16", "fp32"]

SMALL_NUMEL = 65_536
"""Tensors of at most so many elements are not worth quantising (S0)."""

CLIP_PERCENTILE = 99.99984
"""Percentile of a row's magnitudes at which the row is clipped (S0): hardly below the maximum of a usual
row."""

CONTROL_SUFFIXES = ("_scale", "_mix", "_gain", "skip_weights")
"""How the names of control tensors with two dimensions end: mixes of (2, D), skip weights of (n, D)."""


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A weight as it is stored.

    Attributes:
        name: the parameter's dotted name.
        scheme: how ``data`` encodes the weight.
        shape: the weight's shape.
        data: the codes (int8) or the values (fp16, fp32), of ``shape``, on the CPU.
        scale: for ``int8_row`` one fp16 number for each index of the first axis, ``(shape[0],)``; else None.
    """

    name: str
    scheme: Scheme
    shape: tuple[int, ...]
    data: Tensor
    scale: Tensor | None = None


def is_control(name: str, tensor: Tensor) -> bool:
    """Whether a tensor steers the network and so keeps fp32: vectors, scalars and ``CONTROL_SUFFIXES``."""
    return tensor.ndim < 2 or name.endswith(CONTROL_SUFFIXES)


def scheme_of(name: str, tensor: Tensor, control: Callable[[str, Tensor], bool] = is_control) -> Scheme:
    """The scheme S0's rules give a weight, before its values are looked at."""
    if control(name, tensor):
        return "fp32"
    return "int8_row" if tensor.numel() > SMALL_NUMEL else "fp16"


def quantize(name: str, tensor: Tensor, control: Callable[[str, Tensor], bool] = is_control) -> QuantizedTensor:
    """Quantise one weight of any floating dtype, shape and device.

    Args:
        name: the parameter's dotted name, for ``control`` and for errors.
        tensor: the weight; it is not changed.
        control: tells which tensors are kept in fp32.

    Raises:
        BytegolfError: the weight is not of a floating dtype, or holds a NaN, an infinity or a number beyond
        fp32,
            or a magnitude that an int8 row cannot reach (about 8.3 million, a diverged model).
    """
    if not tensor.is_floating_point():
        raise BytegolfError(f"the tensor {name} is of type {tensor.dtype}: only floating-point weights can be exported")
    weight = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
    if not bool(torch.isfinite(weight).all()):
        raise BytegolfError(
            f"the weight {name} holds NaN or infinite values: training diverged, so export an earlier checkpoint"
        )
    shape = tuple(weight.shape)
    scheme = scheme_of(name, tensor, control)
    if scheme == "int8_row":
        codes, scale = int8_rows(weight.flatten(1))
        if not bool(torch.isfinite(scale).all()):
            raise BytegolfError(
                f"the weight {name} reaches {weight.abs().max():.3g}, more than int8 rows with fp16 scales "
                "can hold: training diverged, so export an earlier checkpoint"
            )
        return QuantizedTensor(name, scheme, shape, codes.view(shape), scale)
    if scheme == "fp16" and bool(torch.isfinite(half := weight.to(torch.float16)).all()):
        return QuantizedTensor(name, "fp16", shape, half)
    return QuantizedTensor(name, "fp32", shape, weight.clone())


def dequantize(stored: QuantizedTensor) -> Tensor:
    """The fp32 weight, of ``stored.shape``, that a model computes with: a fresh tensor on the CPU."""
    values = stored.data.to(torch.float32)
    if stored.scale is not None:
        # 7-bit codes times 11-bit significands are exact in fp32, whatever the order of the operations
        values = values * stored.scale.to(torch.float32).view(-1, *[1] * (values.ndim - 1))
    return values.clone() if values is stored.data else values


def int8_rows(weight: Float[Tensor, "R K"]) -> tuple[Int8[Tensor, "R K"], Float16[Tensor, " R"]]:
    """Codes and fp16 scales of an fp32 matrix with K ≥ 1; a row of zeros gets the scale 0 and comes back
    exact.

    A scale is infinite where the row is beyond int8 × fp16; the caller answers that.
    """
    exact = row_clip(weight).to(torch.float64) / 127
    scale = exact.to(torch.float16)
    # The bit pattern after a non-negative half's is the next larger half.
    next_up = (scale.view(torch.int16) + 1).view(torch.float16)
    scale = torch.where(scale.to(torch.float64) < exact, next_up, scale)
    step = scale.to(torch.float32).unsqueeze(1)
    codes = torch.round(weight / torch.where(step > 0, step, 1.0)).clamp(-127, 127)
    codes = torch.where(step > 0, codes, 0.0)
    return codes.to(torch.int8), scale


def row_clip(weight: Float[Tensor, "R K"]) -> Float[Tensor, " R"]:
    """The ``CLIP_PERCENTILE`` of each row's magnitudes, linear between the two nearest.

    The same as ``torch.quantile``, which sorts whole rows and refuses tensors above 16 M elements; the top
    few numbers are enough.
    """
    columns = weight.shape[1]
    position = CLIP_PERCENTILE / 100 * (columns - 1)
    low, high = math.floor(position), math.ceil(position)
    top = weight.abs().topk(columns - low, dim=1).values
    below, above = top[:, columns - 1 - low].double(), top[:, columns - 1 - high].double()
    return (below + (above - below) * (position - low)).to(torch.float32)
