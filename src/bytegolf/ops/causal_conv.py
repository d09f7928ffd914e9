"""The causal depthwise convolution in front of Mamba-2's state, with its bias and silu (arXiv 2405.21060).

    y_t = silu(b + Σ_k w_k·x_{t−K+1+k}) per channel; the last tap is the current position's

Legend: B batch, L positions, X channels, K taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def causal_conv(
    x: Float[Tensor, "B L X"],
    taps: Float[Tensor, "K X"],
    bias: Float[Tensor, " X"],
    first: Bool[Tensor, "B L"] | None,
) -> Float[Tensor, "B L X"]:
    """The convolution of x; ``first`` marks positions that see nothing before them, as the first one does."""
    return causal_conv_reference(x, taps, bias, first)


def causal_conv_reference(
    x: Float[Tensor, "B L X"],
    taps: Float[Tensor, "K X"],
    bias: Float[Tensor, " X"],
    first: Bool[Tensor, "B L"] | None,
) -> Float[Tensor, "B L X"]:
    """The formula."""
    count, length = taps.shape[0], x.shape[1]
    taps, document = taps.to(x.dtype), None if first is None else first.cumsum(1)
    total = bias.to(x.dtype).expand_as(x)
    for lag in range(min(count, length)):
        past = F.pad(x.narrow(1, 0, length - lag), (0, 0, lag, 0))
        if document is not None and lag:
            same = F.pad(document.narrow(1, 0, length - lag), (lag, 0), value=-1) == document
            past = past * same.unsqueeze(-1)
        total = torch.addcmul(total, past, taps[count - 1 - lag])
    return F.silu(total)
