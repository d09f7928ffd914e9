"""Linear maps with fp32 master weights, and the MLP.

Legend: B batch, I inputs, O outputs, D width. Activations are in the compute dtype (bf16 or fp32) of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bytegolf.config import StackConfig
from bytegolf.ops.relu_squared import relu_squared


class Linear(nn.Module):
    """y = x·Wᵀ without a bias; W is kept in fp32 and used in the dtype of x.

    ``splits`` names how many rows of W belong to each of several maps that share their input (packed q, k, v): the
    optimiser orthogonalises them one by one, as if they were separate matrices.
    """

    learning_rates: ClassVar = {"weight": "muon_lr"}
    """see ``training.optim``"""
    __call__: Callable[..., Tensor]  # nn.Module's own returns Any

    def __init__(self, inputs: int, *outputs: int, zero: bool = False) -> None:
        super().__init__()
        self.splits = outputs
        self.weight = nn.Parameter(torch.empty(sum(outputs), inputs))
        if zero:
            nn.init.zeros_(self.weight)
        else:
            nn.init.uniform_(self.weight, -(inputs**-0.5), inputs**-0.5)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return F.linear(x, self.weight.to(x.dtype))


class Mlp(nn.Module):
    """W₂·relu(W₁x)² (S0)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        hidden = int(config.mlp_mult * config.dim)
        self.fc = Linear(config.dim, hidden)
        self.proj = Linear(hidden, config.dim, zero=True)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.proj(relu_squared(self.fc(x)))
