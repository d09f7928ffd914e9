"""What a quantiser is: one object that stores a tensor as numbers and gives the weight back.

The package has rows of 3 to 8 bits, fp16 and fp32 (``artifact.quantize``). One of your own lies in your own file::

    from bytegolf import register_quantizer
    from bytegolf.artifact.quantizer import Quantizer

    @register_quantizer("ternary")
    class Ternary(Quantizer):
        largest_code, bits = 1, 1.6

        def quantize(self, weight, storage): ...
        def dequantize(self, data, scale): ...

and is chosen by ``export.quantizer = "ternary"``, or for single tensors by a plan. Training with quantised weights, the
export, ``--fit``'s accounts and the ``range`` coder then use it as they use ours; with ``round_column``, GPTQ does too.

Legend: R indices of a tensor's first axis, K elements of each, S scales.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor


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
