"""One position through a Mamba-2 mixer, between its two linear maps: one kernel, on a CPU.

(why) At batch 1 a step is the cost of starting operations and of reading weights and states; in single operations the
state would be copied four times.

Legend: R rows, B sequences of a state, I inner width, N state size, X = I + 2N channels, K1 = K − 1 inputs that the
convolution still sees, H heads, P head width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import wide


def step_usable(x: Tensor, *states: Tensor) -> bool:
    """Whether the kernel can take these activations (one position) and change these states where they lie."""
    return (
        x.shape[1] == 1 and not torch.is_grad_enabled() and native.usable(x) and all(s.is_contiguous() for s in states)
    )


def mamba_step(
    packed: Float[Tensor, "R 1 M"],
    rows: Tensor | slice,
    first: Bool[Tensor, " R"],
    parameters: tuple[Tensor, ...],
    inputs: Float[Tensor, "B K1 X"],
    state: Float[Tensor, "B H N P"],
    eps: float,
) -> Float[Tensor, "R 1 I"]:
    """The gated norm's result for the input map's; ``inputs`` and ``state`` of the sequences ``rows`` take it in.

    ``parameters``: the convolution's taps and bias, dt_bias, A_log, D, the norm's gain. Rows that are ``first`` begin
    with nothing.
    """
    kind = wide(packed.dtype)
    index = None if isinstance(rows, slice) else rows
    given = [parameter.detach().to(kind).contiguous() for parameter in parameters]
    batch, (heads, size, width) = packed.shape[0], state.shape[1:]
    out = packed.new_empty(batch, 1, heads * width)
    sizes = (batch, heads, width, size, inputs.shape[1] + 1, eps)
    native.call("mamba_step", packed, packed.contiguous(), index, first, *given, inputs, state, *sizes, out)
    return out
