"""A stack of blocks at one resolution, with U-net skips: the flat GPT's body and each part of an H-Net.

Legend: B batch, L positions, D width, R rows of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import StageConfig
from bytegolf.model import ops
from bytegolf.model.attention import AttentionState
from bytegolf.model.block import Block
from bytegolf.model.residual import Stream
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

    def _through(self, x: Tensor, run: Callable[[int, Stream, Tensor], Stream]) -> Tensor:
        """The stage around its blocks; ``run`` takes the stream, and the stage's own input, through one of them.

        The first block of the second half takes the last skip pushed.
        """
        x0 = ops.rms_norm(x)
        stream = Stream(x0)
        skips: list[Tensor] = []
        for index in range(len(self.blocks)):
            if index >= self.pushed and skips:
                stream = stream.plus(skips.pop(), self.skip_weights[index - self.pushed])
            stream = run(index, stream, x0)
            if index < self.pushed:
                skips.append(stream.sum())
                stream = Stream(skips[-1])
        return stream.norm()

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
        blocks = self._blocks
        return self._through(x, lambda index, stream, x0: blocks[index](stream, x0, documents))

    def start(self, batch: int, device: torch.device, dtype: torch.dtype, length: int | None = None) -> StageState:
        """An empty state for ``batch`` sequences; ``length`` is what an H-Net level takes in a stage's place."""
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
        at, blocks, states = state.lengths[rows], self._blocks, state.blocks
        out = self._through(x, lambda index, stream, x0: blocks[index].step(stream, x0, states[index], rows, at))
        state.lengths[rows] = at + 1
        return out
