"""What an HNet remembers between calls, and the passes that go on from there (``hnet_passes`` has a worked example).

Legend: B sequences of a state, R rows of them that go on, L positions, D width of this level, M memory of the router.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.model.chunk import Chunks
from bytegolf.model.hnet_passes import Parts, Pass
from bytegolf.model.mixers.base import Rows, StackState
from bytegolf.model.trace import StepTrace
from bytegolf.ops.chunking import smooth_on


@dataclass
class HNetState:
    """What an HNet remembers between calls."""

    encoder: StackState
    memory: Tensor
    """what the router remembers, (B, M)"""
    main: StackState | HNetState
    smoothed: Float[Tensor, "B D"]
    """z̄ of the current chunk"""
    decoder: StackState
    opened: Rows
    """chunks so far, on the host"""
    limit: int | None
    """how many there may be, under a fixed capacity"""
    keys: Int[Tensor, " B"]
    """the hash of each sequence's chunk so far, for chunk-hash embeddings"""
    drafting: bool = False
    """whether steps leave the main network out (``Draft``)"""

    def reset(self, rows: Rows) -> None:
        """Forget the sequences ``rows``: a new document starts in them."""
        for part in (self.encoder, self.main, self.decoder):
            part.reset(rows)


class Extension(Pass[Tensor]):
    """The next positions of the sequences ``rows`` (None: all) of ``state``, which is changed in place.

    The first ``counts`` of a row's L positions are there (None: all), the rest is padding, which leaves no trace. The
    main network runs on the chunks that open, and only for the sequences in which one does.
    """

    def __init__(
        self,
        level: Parts,
        x: Float[Tensor, "R L D"],
        state: HNetState,
        rows: Rows | None,
        counts: Rows | None,
        traces: list[StepTrace],
        tokens: Int[Tensor, "R L"] | None,
    ) -> None:
        self.level, self.x, self.state, self.rows, self.counts = level, x, state, rows, counts
        self.traces, self.tokens = traces, tokens
        self.every = np.arange(x.shape[0]) if rows is None else rows
        self.index = slice(None) if rows is None else torch.from_numpy(rows).to(x.device)
        # before the encoder takes the new positions in
        self.first = torch.from_numpy(state.encoder.lengths[self.every] == 0).to(x.device)
        self.p: Tensor
        self.running: Tensor
        """how many new chunks have begun at each position"""
        self.opened: Rows
        self.ended: Tensor | None = None
        self.pick: Any = slice(None)
        """the rows in which a chunk begins, and the layout of the new chunks in these"""
        self.chunks: Chunks

    def encode(self) -> Tensor:
        return self.level.encoder.extend(self.x, self.state.encoder, self.rows, self.counts)

    def route(self, encoded: Tensor) -> bool:
        state, device, length = self.state, encoded.device, encoded.shape[1]
        self.p, boundary, memories = self.level.router.extend(
            encoded, state.memory[self.index], self.first, self.tokens
        )
        last: Any = (slice(None), -1)
        there = self.counts
        if there is not None:
            ends = torch.from_numpy(there).to(device)
            boundary = boundary & (torch.arange(length, device=device) < ends.unsqueeze(1))
            last = (torch.arange(len(self.every), device=device), ends - 1)
        state.memory[self.index] = memories[last]
        self.running = boundary.cumsum(1)  # in the worked example, for positions 4 to 7: 0 1 1 1
        if state.limit is not None:
            room = torch.from_numpy(state.limit - state.opened[self.every]).to(device).unsqueeze(1)
            boundary = boundary & (self.running <= room)
            self.running = torch.minimum(self.running, room)
        counts = np.full(len(self.every), length) if there is None else there
        self.traces.append(StepTrace(self.every, counts, self.p, boundary))
        # the only wait for an accelerator: the host has to know how many chunks opened, to decide what runs next
        self.opened = self.running[:, -1].cpu().numpy()
        state.opened[self.every] += self.opened
        if self.level.chunk_hash is not None and self.tokens is not None:
            before = state.keys[self.index].masked_fill(self.first, 0)
            self.ended, keys = self.level.chunk_hash.follow(self.tokens, boundary, before=before)
            state.keys[self.index] = keys[last]
        if not self.opened.any():
            return False
        if not self.opened.all():  # a row without a new chunk would be nothing but padding
            self.pick = torch.from_numpy(np.flatnonzero(self.opened)).to(device)
        self.chunks = Chunks.of(boundary[self.pick])
        return True

    def select(self, encoded: Tensor) -> tuple[Tensor, Tensor | None]:
        ended = None if self.ended is None else self.chunks.select_values(self.ended[self.pick])
        return self.chunks.select(encoded[self.pick]), ended

    def main(self, z: Tensor) -> Tensor:
        # `rows` None lets inner levels skip all indexing, and `counts` None the masks: most calls need neither
        reached = self.opened > 0
        rows, inner = self.rows if reached.all() else self.every[reached], self.opened[reached]
        counts = inner if (inner < z.shape[1]).any() else None
        return self.level.main.extend(z, self.state.main, rows, counts, self.traces)  # type: ignore[no-any-return]

    def expand(self, z: Tensor | None, encoded: Tensor) -> Tensor:
        smoothed = self.state.smoothed[self.index].unsqueeze(1)
        if z is not None:
            weights = self.chunks.select_values(self.p[self.pick])
            first = self.first[self.pick]
            # only a sequence's very first chunk starts afresh: column 0, in rows that had nothing before
            z = self.level.smoothable(z, F.pad(first.unsqueeze(1), (0, z.shape[1] - 1)))
            z = smooth_on(z, weights, smoothed[self.pick, 0], first)
            # column 0: what the sequence came with, which lasts until its first new chunk
            # [z̄1] becomes [z̄1, z̄2], and the running counts 0 1 1 1 pick z̄1 z̄2 z̄2 z̄2; its last is remembered
            smoothed = smoothed.repeat(1, z.shape[1] + 1, 1)
            smoothed[self.pick, 1:] = z
            smoothed = smoothed[torch.arange(len(self.every), device=z.device).unsqueeze(1), self.running]
            self.state.smoothed[self.index] = smoothed[:, -1]
        return (smoothed + self.level.around(encoded)).to(encoded.dtype)

    def decode(self, y: Tensor) -> Tensor:
        return self.level.decoder.extend(y, self.state.decoder, self.rows, self.counts)


class SingleStep(Pass[Tensor]):
    """``Extension`` by one position of one sequence, without all that it does for the sake of more: at batch 1 most of
    a step's time is the cost of starting operations.
    """

    def __init__(
        self,
        level: Parts,
        x: Float[Tensor, "1 1 D"],
        state: HNetState,
        rows: Rows | None,
        traces: list[StepTrace],
        tokens: Int[Tensor, "1 1"] | None,
    ) -> None:
        self.level, self.x, self.state, self.rows = level, x, state, rows
        self.traces, self.tokens = traces, tokens
        self.row = 0 if rows is None else int(rows[0])
        self.here = slice(self.row, self.row + 1)
        self.first = torch.full((1,), bool(state.encoder.lengths[self.row] == 0), device=x.device)
        self.p: Tensor
        self.ended: Tensor | None = None

    def encode(self) -> Tensor:
        return self.level.encoder.extend(self.x, self.state.encoder, self.rows)

    def route(self, encoded: Tensor) -> bool:
        state, here = self.state, self.here
        self.p, boundary, memories = self.level.router.extend(encoded, state.memory[here], self.first, self.tokens)
        state.memory[here] = memories[:, 0]
        if state.limit is not None and state.opened[self.row] >= state.limit:
            boundary = torch.zeros_like(boundary)  # no room: the position belongs to the last chunk
        self.traces.append(StepTrace(np.array([self.row]), np.ones(1, np.int64), self.p, boundary))
        if self.level.chunk_hash is not None and self.tokens is not None:
            before = state.keys[here].masked_fill(self.first, 0)
            self.ended, keys = self.level.chunk_hash.follow(self.tokens, boundary, before=before)
            state.keys[here] = keys[:, 0]
        opens = bool(boundary.item())
        state.opened[self.row] += opens
        return opens

    def select(self, encoded: Tensor) -> tuple[Tensor, Tensor | None]:
        return encoded, self.ended

    def main(self, z: Tensor) -> Tensor:
        return self.level.main.extend(z, self.state.main, self.rows, None, self.traces)  # type: ignore[no-any-return]

    def expand(self, z: Tensor | None, encoded: Tensor) -> Tensor:
        smoothed = self.state.smoothed[self.here].unsqueeze(1)
        if z is not None:
            z = self.level.smoothable(z, self.first.unsqueeze(1))
            smoothed = smooth_on(z, self.p, smoothed[:, 0], self.first)
            self.state.smoothed[self.here] = smoothed[:, 0]
        return (smoothed + self.level.around(encoded)).to(encoded.dtype)

    def decode(self, y: Tensor) -> Tensor:
        return self.level.decoder.extend(y, self.state.decoder, self.rows, None)


class Draft(SingleStep):
    """A step of the outer networks alone: where a chunk opens, the one before it goes on.

    Up to the next boundary that is what ``SingleStep`` computes, whose main network rests there too; behind it, it is
    a guess, which speculative generation verifies.
    """

    def route(self, encoded: Tensor) -> bool:
        super().route(encoded)
        return False
