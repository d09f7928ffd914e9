"""A stack of blocks at one resolution, with U-net skips: the flat GPT's body and each part of an H-Net.

Legend: B batch, L positions, D width, R rows of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import StageConfig
from bytegolf.model import ops
from bytegolf.model.attention import AttentionState
from bytegolf.model.block import Block
from bytegolf.model.trace import LevelTrace, StepTrace


@dataclass
class StageState:
    """What a stage remembers between steps: how many positions each sequence has had, and each block's cache."""

    lengths: Tensor
    blocks: list[AttentionState]

    def reset(self, rows: Tensor) -> None:
        """Forget the sequences ``rows``: a new document starts in them."""
        self.lengths[rows] = 0


class Stage(nn.Module):
    """RMSNorm, blocks whose first half pushes skips that the second half pops, RMSNorm (S0)."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.pushed = config.layers // 2
        # an empty parameter would get no gradient, which data-parallel training takes for a fault
        self.skip_weights = nn.Parameter(torch.ones(self.pushed, config.dim), requires_grad=self.pushed > 0)

    @property
    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def _run(self, x: Tensor, block: int, skips: list[Tensor]) -> Tensor:
        """Join a skip before blocks of the second half: the first of them takes the last one pushed."""
        if block >= self.pushed and skips:
            x = ops.add_scaled(x, skips.pop(), self.skip_weights[block - self.pushed])
        return x

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        documents: Int[Tensor, "B L"] | None = None,
        valid: Bool[Tensor, "B L"] | None = None,
        traces: list[LevelTrace] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Run the stage; ``documents`` numbers each position's document (None: all one).

        ``valid`` and ``traces`` are what an H-Net level takes in a stage's place: a causal stage need not know of
        padding behind a sequence, and has no router to report on.
        """
        x = x0 = ops.rms_norm(x)
        skips: list[Tensor] = []
        for index, block in enumerate(self._blocks):
            x = block(self._run(x, index, skips), x0, documents)
            if index < self.pushed:
                skips.append(x)
        return ops.rms_norm(x)

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> StageState:
        """An empty state for ``batch`` sequences."""
        lengths = torch.zeros(batch, dtype=torch.long, device=device)
        return StageState(lengths, [block.attn.start(batch, device, dtype) for block in self._blocks])

    def step(
        self,
        x: Float[Tensor, "R D"],
        state: Any,
        rows: Int[Tensor, " R"],
        traces: list[StepTrace] | None = None,
    ) -> Float[Tensor, "R D"]:
        """One position for the sequences ``rows`` of the state (a StageState), which is changed in place."""
        assert isinstance(state, StageState)
        at = state.lengths[rows]
        x = x0 = ops.rms_norm(x)
        skips: list[Tensor] = []
        for index, block in enumerate(self._blocks):
            x = block.step(self._run(x, index, skips), x0, state.blocks[index], rows, at)
            if index < self.pushed:
                skips.append(x)
        state.lengths[rows] = at + 1
        return ops.rms_norm(x)
