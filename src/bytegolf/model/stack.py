"""A stack of blocks at one resolution, with U-net skips: the flat GPT's body and each part of an H-Net.

Legend: B batch, L positions, D width, R rows of an extension, N last positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import StackConfig
from bytegolf.model import stepping
from bytegolf.model.block import Block
from bytegolf.model.cache import Rows, Span, StackState
from bytegolf.model.residual import Stream
from bytegolf.model.storage import declare
from bytegolf.model.trace import RouterTrace, StepTrace
from bytegolf.ops.rms_norm import rms_norm
from bytegolf.ops.rotary import rotary_angles


class Stack(nn.Module):
    """RMSNorm, blocks whose first half pushes skips that the second half pops, RMSNorm (S0)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.pushed = config.layers // 2
        self.norms_input = True
        """False behind soft chunking, as published (S1)"""
        # an empty parameter would get no gradient, which data-parallel training takes for a fault
        self.skip_weights = nn.Parameter(torch.ones(self.pushed, config.dim), requires_grad=self.pushed > 0)
        declare(self, "control", "skip_weights")

    @property
    def lr_multipliers(self) -> dict[str, float]:
        """Of all parameters (see ``training.optim``)."""
        return {"": self.config.lr_mult}

    @property
    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def _through(self, x: Tensor, run: Callable[[int, Stream, Tensor], Stream]) -> Tensor:
        """The stage around its blocks; ``run`` takes the stream, and the stage's own input, through one of them.

        The first block of the second half takes the last skip pushed.
        """
        x0 = rms_norm(x) if self.norms_input else x
        stream = Stream(x0)
        skips: list[Tensor] = []
        for index in range(len(self.blocks)):
            if index >= self.pushed and skips:
                stream = stream.plus(skips.pop()[:, -stream.base.shape[1] :], self.skip_weights[index - self.pushed])
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
        traces: list[RouterTrace] | None = None,
        tokens: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Run the stage; ``documents`` numbers each position's document (None: all one).

        ``valid``, ``traces`` and ``tokens`` are what an H-Net level takes in a stage's place: a causal stage need not
        know of padding behind a sequence, and has no router to report on or to tell of tokens.
        """
        blocks = self._blocks
        return self._through(x, lambda index, stream, x0: blocks[index](stream, x0, documents))

    def start(self, batch: int, device: torch.device, dtype: torch.dtype, length: int | None = None) -> StackState:
        """An empty state for ``batch`` sequences, with room for ``length`` positions before it has to grow."""
        width, base = self.config.dim // self.config.heads, self.config.rope_base

        def angles(start: int, end: int) -> tuple[Tensor, Tensor]:
            cos, sin = rotary_angles(torch.arange(start, end, device=device), width, base)
            return cos.to(dtype), sin.to(dtype)

        caches = [block.attn.start(batch, device, dtype, length or 0) for block in self._blocks]
        cos, sin = angles(0, max(length or 0, 64))
        return StackState(np.zeros(batch, np.int64), caches, angles, cos, sin, self.config.window)

    def extend(
        self,
        x: Float[Tensor, "R L D"],
        state: Any,
        rows: Rows | None = None,
        counts: Rows | None = None,
        traces: list[StepTrace] | None = None,
        tokens: Int[Tensor, "R L"] | None = None,
    ) -> Float[Tensor, "R L D"]:
        """The next positions of the sequences ``rows`` (None: all) of ``state``, a StackState, changed in place.

        The first ``counts`` of a row's L positions are there (None: all), the rest is padding, which leaves no trace.
        """
        assert isinstance(state, StackState)
        length, blocks, caches = x.shape[1], self._blocks, state.blocks
        if self.norms_input and stepping.usable(x):
            return stepping.step(blocks, self.skip_weights, x, state, 0 if rows is None else int(rows[0]))
        span = Span.of(state, rows, counts, length)
        out = self._through(x, lambda index, stream, x0: blocks[index].extend(stream, x0, caches[index], span))
        state.lengths[slice(None) if rows is None else rows] += length if counts is None else counts
        return out

    def attend_to(self, window: int) -> None:
        """From now on each position sees the last ``window`` ones (0: all)."""
        self.config = dataclasses.replace(self.config, window=window)
        for block in self._blocks:
            block.attn.window = window

    @property
    def receptive_field(self) -> int | None:
        """How many positions before its own an output depends on; None: all of them."""
        return self.config.layers * (self.config.window - 1) if self.config.window or not self.config.layers else None

    def tail(
        self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None, keep: int
    ) -> Float[Tensor, "B N D"]:
        """The last ``keep`` (N) positions of ``forward``, without the work that only the others need."""
        blocks, window = self._blocks, self.config.window

        def run(index: int, stream: Stream, x0: Tensor) -> Stream:
            length, later = stream.base.shape[1], len(blocks) - 1 - index
            seen = documents[:, -length:] if documents is not None else None
            # what the blocks behind this one see of it
            needed = keep + later * (window - 1) if window else length if later else keep
            if needed >= length:
                return blocks[index](stream, x0[:, -length:], seen)  # type: ignore[no-any-return]
            return blocks[index].tail(stream, x0[:, -length:], seen, needed)

        return self._through(x, run)[:, -keep:]
