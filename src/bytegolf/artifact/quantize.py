"""How tensors are stored: what a quantiser is, those of the package, and which tensor gets which.

The package has rows of 3 to 8 bits, fp16 and fp32. One of your own lies in your own file::

    from bytegolf import register_quantizer
    from bytegolf.artifact.quantize import Quantizer

    @register_quantizer("ternary")
    class Ternary(Quantizer):
        largest_code, bits = 1, 1.6

        def quantize(self, weight, storage): ...
        def dequantize(self, data, scale): ...

and is chosen by ``export.quantizer = "ternary"``, or for single tensors by a plan. Training with quantised weights, the
export, ``--fit``'s accounts and the ``range`` coder then use it as they use ours; with ``round_column``, GPTQ does too.

Training with quantised weights, GPTQ and the export all take their scales and codes from here.

- ``int8_row``, ``int7_row`` … ``int3_row``: row r is ``scale[r] · codes[r]``, with codes of b bits in −L…L,
  L = 2^(b−1) − 1, and the scale in fp16. For 8 bits the scale is S0's: the row's clip percentile / 127. For fewer it is
  the one of a few clips (``CLIPS``) with the least squared error, since the widest costs too much there. Rows of a
  table, which are narrow, may share a scale in groups.
- ``fp16`` and ``fp32``: the values.

Three details are ours. A scale is rounded *up* to fp16 and the codes are taken with the rounded one, so that no
element within the clip is off by more than half a step of the scale that is really stored. There is no floor on a scale
but fp16's own smallest number (S3's floor of 1/31 coarsened small rows). And a small tensor with a magnitude beyond
fp16's largest number stays in fp32 instead of becoming infinite.

A plan is a mapping from names to :class:`Storage`; change single entries of it for mixed precision. Nothing of it needs
storing: every tensor in an artifact names its own quantiser.

Legend: R indices of a tensor's first axis, K elements of each, S scales.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor, nn

from bytegolf.artifact.payload import ROW_BITS, groups_fit, levels
from bytegolf.config import ExportConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import StorageKind, storage_kinds
from bytegolf.registry import QUANTIZERS

# -------------------------------------------------------------------------------------------------- what a quantiser is


@dataclass(frozen=True)
class Storage:
    """How a tensor is to be stored."""

    quantizer: str
    """the name of what encodes it"""
    prune: float = 0.0
    """share of each row's elements, the smallest, that become 0; for rows of codes"""
    group: int = 1
    """so many consecutive rows count as one and share a scale; it divides their number"""


class Quantizer(ABC):
    """One way to store a tensor: as many numbers as it has elements, and perhaps fp16 scales.

    It has no state, and the methods run on any device.
    """

    largest_code: int = 0
    """L of int8 codes −L…L, 1 to 127; 0 where the data are values and no codes."""

    dtype: torch.dtype = torch.int8
    """Of the data: int8 for codes, float16 or float32 for values."""

    bits: float = 8.0
    """What a weight takes before it is coded, roughly: for estimates of a file's size."""

    gptq: bool = False
    """Whether ``round_column`` and ``column_values`` are there."""

    @abstractmethod
    def quantize(self, weight: Float[Tensor, ...], storage: Storage) -> tuple[Tensor, Float16[Tensor, " S"] | None]:
        """The data, of the weight's shape, and the scales.

        Args:
            weight: fp32, finite, contiguous, with two axes or more where the data are codes.
            storage: with ``prune`` and ``group``, which a quantiser may ignore.
        """

    @abstractmethod
    def dequantize(self, data: Tensor, scale: Float16[Tensor, " S"] | None) -> Float[Tensor, ...]:
        """The fp32 weight, of the data's shape. For codes from a file, which may be any within −L…L."""

    def fake_quantize(self, weight: Float[Tensor, ...], storage: Storage) -> Float[Tensor, ...]:
        """The weight that comes back from the file, without the way through it: what QAT computes with."""
        return self.dequantize(*self.quantize(weight, storage))

    def scales_fit(self, shape: tuple[int, ...], count: int) -> bool:
        """Whether a tensor of ``shape`` may have so many scales: by default one per index of the first axis."""
        return count == (shape[0] if self.largest_code else 0)

    def round_column(
        self, values: Float[Tensor, "R 1"], scale: Float16[Tensor, " S"], column: int
    ) -> Int8[Tensor, "R 1"]:
        """For GPTQ: the codes of one column of a matrix, which is given in fp32, at scales that are given."""
        raise NotImplementedError

    def column_values(
        self, codes: Int8[Tensor, "R 1"], scale: Float16[Tensor, " S"], column: int
    ) -> Float[Tensor, "R 1"]:
        """For GPTQ: the fp32 weights that such codes stand for."""
        raise NotImplementedError


# ---------------------------------------------------------------------------------------------------- the package's own


CLIP_PERCENTILE = 99.99984
"""Percentile of a row's magnitudes at which 8 bits clip it (S0): hardly below the maximum of a usual row."""

CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
"""Shares of a row's largest magnitude at which fewer bits may clip it; of equal errors the first wins."""

_BLOCK = 1 << 17
"""Elements whose error is worked out at a time: they stay in a CPU's cache."""


class Rows(Quantizer):
    """Rows of codes of some bits, each row, or group of rows, with a scale."""

    gptq = True

    def __init__(self, bits: int) -> None:
        self.code_bits, self.largest_code, self.bits = bits, levels(bits), bits

    def quantize(self, weight: Tensor, storage: Storage) -> tuple[Tensor, Float16[Tensor, " S"]]:
        """Codes and scales; a scale is infinite where a row is beyond codes × fp16."""
        codes, scale = quantize_rows(grouped(weight, storage.group), self.code_bits, storage.prune)
        return codes.view(weight.shape), scale

    def dequantize(self, data: Tensor, scale: Float16[Tensor, " S"] | None) -> Tensor:
        """scale · codes, which is exact."""
        assert scale is not None
        if not data.numel():
            return data.to(torch.float32)
        return dequantize_rows(data.view(len(scale), -1), scale).view(data.shape)

    def scales_fit(self, shape: tuple[int, ...], count: int) -> bool:
        """Whether they are those of equal groups of rows."""
        return groups_fit(shape, count)

    def round_column(self, values: Float[Tensor, "R 1"], scale: Tensor, column: int) -> Int8[Tensor, "R 1"]:
        """The nearest codes; a row's scale is that of each of its columns."""
        return round_rows(values, scale, self.code_bits)

    def column_values(self, codes: Int8[Tensor, "R 1"], scale: Tensor, column: int) -> Float[Tensor, "R 1"]:
        """scale · codes."""
        return dequantize_rows(codes, scale)


class Values(Quantizer):
    """The values themselves, as numbers of a floating dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.bits = dtype, 8 * dtype.itemsize

    def quantize(self, weight: Tensor, storage: Storage) -> tuple[Tensor, None]:
        """Rounded to the dtype; infinite where that cannot hold them."""
        return weight.to(self.dtype), None

    def dequantize(self, data: Tensor, scale: Tensor | None) -> Tensor:
        """The same in fp32."""
        return data.to(torch.float32)

    def fake_quantize(self, weight: Tensor, storage: Storage) -> Tensor:
        """The same; the weight itself where the dtype cannot hold it, as ``quantize`` below then stores it in fp32."""
        values = self.dequantize(*self.quantize(weight, storage))
        return torch.where(values.isfinite().all(), values, weight)


ROWS = {bits: name for name, bits in ROW_BITS.items()}
"""The quantiser of rows of so many bits."""

_BUILT_IN: dict[str, Quantizer] = {
    **{name: Rows(bits) for name, bits in ROW_BITS.items()},
    "fp16": Values(torch.float16),
    "fp32": Values(torch.float32),
}


def quantizer(name: str) -> Quantizer:
    """The quantiser called ``name``: a built-in one, or one that ``register_quantizer`` registered.

    Raises UnknownNameError, a BytegolfError, if there is none.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    found = QUANTIZERS.find(name, None)
    if not issubclass(found, Quantizer):
        raise BytegolfError(f"the quantizer {name!r} is no subclass of bytegolf.artifact.quantize.Quantizer")
    made: Quantizer = found()
    return made


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A weight as it is stored."""

    name: str
    quantizer: str
    """the name of what gives the weight back"""
    data: Tensor
    """the codes (int8) or the values (fp16, fp32), of the weight's shape, on the CPU"""
    scale: Tensor | None = None
    """S fp16 numbers; None where the data are values"""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)


def quantize(name: str, tensor: Tensor, storage: Storage) -> QuantizedTensor:
    """Quantise one weight of any floating dtype, shape and device, as ``storage`` says.

    Raises BytegolfError: the weight is not of a floating dtype, or holds a NaN, an infinity or a number beyond fp32, or
    a magnitude that codes and fp16 scales cannot reach (about 8.3 million in 8 bits: a diverged model); or the
    quantiser broke its contract.
    """
    weight = checked(name, tensor)
    by = quantizer(storage.quantizer)
    data, scale = by.quantize(weight, storage)
    if data.shape != weight.shape or data.dtype != by.dtype or not by.scales_fit(tuple(data.shape), _count(scale)):
        raise BytegolfError(
            f"the quantizer {storage.quantizer} makes of {name}, of shape {tuple(weight.shape)}, {data.dtype} data of "
            f"shape {tuple(data.shape)} with {_count(scale)} scales, which its own dtype or scales_fit forbids"
        )
    if scale is not None and not bool(torch.isfinite(scale).all()):
        raise BytegolfError(
            f"the weight {name} reaches {weight.abs().max():.3g}, more than {storage.quantizer} with fp16 scales can "
            "hold: training diverged, so export an earlier checkpoint"
        )
    if data.is_floating_point() and not bool(torch.isfinite(data).all()):
        return QuantizedTensor(name, "fp32", weight.clone())
    return QuantizedTensor(name, storage.quantizer, data.clone() if data is weight else data, scale)


def _count(scale: Tensor | None) -> int:
    return 0 if scale is None else len(scale)


def checked(name: str, tensor: Tensor) -> Tensor:
    """The weight in fp32 on the CPU, contiguous; an error in words if it cannot be exported."""
    if not tensor.is_floating_point():
        raise BytegolfError(f"the tensor {name} is of type {tensor.dtype}: only floating-point weights can be exported")
    weight = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
    if not bool(torch.isfinite(weight).all()):
        raise BytegolfError(
            f"the weight {name} holds NaN or infinite values: training diverged, so export an earlier checkpoint"
        )
    return weight


def dequantize(stored: QuantizedTensor) -> Tensor:
    """The fp32 weight that a model computes with: a fresh tensor on the CPU."""
    weight = quantizer(stored.quantizer).dequantize(stored.data, stored.scale)
    if weight.shape != stored.data.shape:
        raise BytegolfError(f"the quantizer {stored.quantizer} gives {stored.name} another shape than its data have")
    return weight.clone() if weight is stored.data else weight


def fake_quantize(weight: Tensor, storage: Storage) -> Tensor:
    """The fp32 weight that comes back from ``storage``, on any device: equal to ``dequantize(quantize(...))``."""
    return quantizer(storage.quantizer).fake_quantize(weight, storage)


def grouped(weight: Tensor, group: int) -> Float[Tensor, "R K"]:
    """The rows that have a scale each: indices of the first axis, or ``group`` of them as one."""
    return weight.reshape(weight.shape[0] // group, -1) if weight.numel() else weight.flatten(1)


def dequantize_rows(codes: Tensor, scale: Float16[Tensor, " R"]) -> Float[Tensor, "R K"]:
    """scale · codes in fp32; 7-bit codes times 11-bit significands are exact, whatever the order of the operations."""
    return codes.to(torch.float32) * scale.to(torch.float32).unsqueeze(1)


def quantize_rows(
    weight: Float[Tensor, "R K"], bits: int, prune: float = 0.0
) -> tuple[Int8[Tensor, "R K"], Float16[Tensor, " R"]]:
    """Codes and fp16 scales of an fp32 matrix with K ≥ 1; each row by itself. A row of zeros has the scale 0.

    A scale is infinite where the row is beyond codes × fp16; the caller answers that.
    """
    weight = pruned(weight, prune)
    scale = row_scales(weight, bits)
    return round_rows(weight, scale, bits), scale


def row_scales(weight: Float[Tensor, "R K"], bits: int) -> Float16[Tensor, " R"]:
    """Each row's scale (its step) at so many bits."""
    top = levels(bits)
    if bits == 8:
        return _half_up(row_clip(weight).to(torch.float64) / top)
    blocks = torch.split(weight, max(1, _BLOCK // max(1, weight.shape[1])))
    return torch.cat([_searched(block, top) for block in blocks])


def round_rows(weight: Float[Tensor, "R K"], scale: Float16[Tensor, " R"], bits: int) -> Int8[Tensor, "R K"]:
    """The nearest codes of ``weight`` at the given scales; 0 in rows of scale 0."""
    step = scale.to(torch.float32).unsqueeze(1)
    codes = (weight / torch.where(step > 0, step, torch.inf)).round_().clamp_(-levels(bits), levels(bits))
    return codes.to(torch.int8)


def pruned(weight: Float[Tensor, "R K"], share: float) -> Float[Tensor, "R K"]:
    """``weight`` with the ⌊share·K⌋ smallest magnitudes of each row at 0; of equal ones at the edge none."""
    count = int(share * weight.shape[1])
    if not count:
        return weight
    magnitude = weight.abs()
    return weight.masked_fill(magnitude < magnitude.kthvalue(count + 1, 1).values.unsqueeze(1), 0.0)


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


def _searched(weight: Float[Tensor, "R K"], top: int) -> Float16[Tensor, " R"]:
    """The scale of each row's best clip."""
    largest = weight.abs().amax(1).to(torch.float64)
    best = _half_up(largest / top)
    least = _squared_error(weight, best, top)
    for clip in CLIPS[1:]:
        scale = _half_up(clip * largest / top)
        error = _squared_error(weight, scale, top)
        better = error < least  # never where the largest is beyond fp16, and the error not a number
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def _squared_error(weight: Tensor, scale: Tensor, top: int) -> Float[Tensor, " R"]:
    """Summed in fp64, so that no order of summing changes which clip is best."""
    step = scale.to(torch.float32).unsqueeze(1)
    codes = (weight * torch.where(step > 0, 1 / step, 0.0)).round_().clamp_(-top, top)
    return codes.mul_(step).sub_(weight).square_().sum(1, dtype=torch.float64)


def _half_up(exact: Float[Tensor, " R"]) -> Float16[Tensor, " R"]:
    """Non-negative numbers rounded up to fp16."""
    scale = exact.to(torch.float16)
    # the bit pattern after a non-negative half's is the next larger half
    next_up = (scale.view(torch.int16) + 1).view(torch.float16)
    return torch.where(scale.to(torch.float64) < exact, next_up, scale)


# ------------------------------------------------------------------------------------------- which tensor is stored how


Plan = Mapping[str, Storage]
Kinds = Mapping[str, StorageKind]
"""What tensors are for, by name; a name that is missing is a ``weight``."""

SMALL_NUMEL = 65_536
"""Tensors of at most so many elements are not worth quantising (S0)."""

TABLE_GROUP = 64
"""So many rows of a table share a scale below 8 bits: its rows are as narrow as 16 numbers, and at one fp16 scale each
the scales of a 4-bit table would take a fifth of it. A larger group costs less than fewer bits do (LOG.md)."""


def plan_of(state: Mapping[str, Tensor | QuantizedTensor], kinds: Kinds, export: ExportConfig) -> dict[str, Storage]:
    """How each tensor of a model is stored; only shapes, kinds and ``export`` count, so the meta device will do."""
    return {name: storage_of(kinds.get(name, "weight"), tuple(tensor.shape), export) for name, tensor in state.items()}


def estimated_bytes(model: nn.Module, export: ExportConfig) -> int:
    """An artifact's size before compression: codes barely compress before training has shaped them, and scales and
    header are small beside them. A primer counts as packed, to a quarter of its text."""
    state = model.state_dict()
    plan = plan_of(state, storage_kinds(model), export)
    bits = sum(math.prod(state[name].shape) * quantizer(how.quantizer).bits for name, how in plan.items())
    return int(bits / 8) + export.primer // 4


def storage_of(kind: StorageKind, shape: tuple[int, ...], export: ExportConfig) -> Storage:
    """How one tensor is stored: what steers in fp32, small tensors in fp16, all others as codes."""
    if steers(kind, shape):
        return Storage("fp32")
    return Storage("fp16") if math.prod(shape) <= SMALL_NUMEL else coded(kind, shape, export)


def steers(kind: StorageKind, shape: tuple[int, ...]) -> bool:
    """Whether a tensor steers the network and so keeps fp32: control tensors, vectors and scalars."""
    return kind == "control" or len(shape) < 2


def coded(kind: StorageKind, shape: tuple[int, ...], export: ExportConfig) -> Storage:
    """How a matrix is stored as codes, whatever its size."""
    if kind == "rule":  # −1, 0 and 1, which 3 bits hold exactly and no pruning may touch
        return Storage("int3_row")
    if kind == "table":  # whose rows are too narrow for a share of them to mean anything
        bits = export.ngram_bits or export.bits
        return Storage(ROWS[bits], group=math.gcd(TABLE_GROUP, shape[0]) if bits < 8 else 1)
    if kind == "embedding" and export.embedding_bits:
        return Storage(ROWS[export.embedding_bits], export.prune)
    return Storage(export.quantizer or ROWS[export.bits], export.prune)


def group_of(name: str) -> str:
    """The group of a tensor: its stage, and within the stage attention, MLP or the scales and mixes.

    >>> group_of("network.encoder.blocks.0.mixer.qkv.weight")
    'network.encoder mixer'
    >>> group_of("network.encoder.blocks.0.resid_mix")
    'network.encoder scales'
    >>> group_of("embedding.weight")
    'embedding'
    >>> group_of("network.chunk_hash.table")
    'network.chunk_hash'
    """
    block = re.match(r"(.*?)\.?blocks\.\d+\.(.+)", name)
    if block:
        part, dot, _ = block[2].partition(".")
        return f"{block[1]} {part if dot else 'scales'}".strip()
    parent, _, leaf = name.rpartition(".")
    return parent if leaf in ("weight", "table") and parent else f"{parent} scales" if parent else name
