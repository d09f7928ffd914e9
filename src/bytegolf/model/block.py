"""S0's transformer block.

Legend: B batch, L positions, D width, R rows of a step.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bytegolf.config import StageConfig
from bytegolf.model import ops
from bytegolf.model.attention import Attention, AttentionState
from bytegolf.model.layers import Mlp


class Block(nn.Module):
    """S0's block: residual mix with the stage's input, then attention and MLP, each scaled per channel."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        dim = config.dim
        self.attn = Attention(config)
        self.mlp = Mlp(config)
        self.attn_scale = nn.Parameter(torch.ones(dim))
        self.mlp_scale = nn.Parameter(torch.ones(dim))
        self.resid_mix = nn.Parameter(torch.empty(2, dim))
        nn.init.ones_(self.resid_mix[0])
        nn.init.zeros_(self.resid_mix[1])

    def forward(
        self, x: Float[Tensor, "B L D"], x0: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None
    ) -> Float[Tensor, "B L D"]:
        x = ops.mix(x, x0, self.resid_mix)
        x = ops.add_scaled(x, self.attn(ops.rms_norm(x), documents), self.attn_scale)
        return ops.add_scaled(x, self.mlp(ops.rms_norm(x)), self.mlp_scale)

    def step(
        self, x: Float[Tensor, "R D"], x0: Float[Tensor, "R D"], state: AttentionState, rows: Tensor, at: Tensor
    ) -> Float[Tensor, "R D"]:
        x = ops.mix(x, x0, self.resid_mix)
        x = ops.add_scaled(x, self.attn.step(ops.rms_norm(x), state, rows, at), self.attn_scale)
        return ops.add_scaled(x, self.mlp(ops.rms_norm(x)), self.mlp_scale)
