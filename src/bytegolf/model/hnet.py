"""The H-Net: encoder → router → chunks → main network → smooth → expand → decoder; the main network may be an H-Net.

Sources: S2 (PR #1104) for one level, arXiv 2507.07955 (S4) for the recursion. ``HNet.run`` orders the parts, a
``Pass`` what the parts see and what is remembered.

Worked example: 8 bytes, and a router that opens chunks at positions 0, 3 and 5.

    byte            T   h   e   ␣   c   a   t   s
    position        0   1   2   3   4   5   6   7
    encode          e0  e1  e2  e3  e4  e5  e6  e7      one vector of width D per position
    route   p       1   .1  .2  .9  .3  .6  .1  .2      p0 is 1: a sequence begins with a chunk
            opens   x           x       x
    select          e0          e3      e5              C = 3 chunks, each by the vector at its first position
    main            z0          z1      z2              a sequence of 3: z1 has seen the bytes up to position 3
    smooth          z̄0 = z0     z̄1 = .9·z1 + .1·z̄0      z̄2 = .6·z2 + .4·z̄1
    expand          z̄0  z̄0  z̄0  z̄1  z̄1  z̄2  z̄2  z̄2      each position takes its chunk's, plus a residual of e
    decode          y0  y1  y2  y3  y4  y5  y6  y7

- ``WholeSequences`` (training, scoring) sees all of that at once and remembers nothing.
- ``Extension`` gets positions 4 to 7 with a state that has seen 0 to 3. Of these only 5 opens a chunk, so the main
  network is given e5 alone. Position 4 belongs to a chunk that began earlier, and takes z̄1, which the state remembers:
  with z̄1 in column 0 and z̄2 in column 1, the positions take columns 0 1 1 1, the running count of new chunks.
- ``SingleStep`` gets position 6: no chunk opens, the main network does not run, and z̄2 comes from the state.
- ``evaluate.sliding.Windows`` gets windows such as 0 to 5 and 2 to 7. The second one's first position opens a chunk
  in any case (2, besides 3 and 5); from position 3 on its chunks are those above, and are worked out once for both.


Legend: B batch, L positions, C chunks, D width of this level, E width of the main network (≥ D), R rows of an
extension, M memory of the router.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import HNetConfig, NetworkConfig, StackConfig, outer_dim
from bytegolf.model.chunk import Capacity, Chunks
from bytegolf.model.embed import ChunkHashEmbedding
from bytegolf.model.layers import Linear
from bytegolf.model.mixers.base import Rows, StackState
from bytegolf.model.routers.base import Router, build_router
from bytegolf.model.routers.losses import guide_loss, hinge_loss, ratio_loss
from bytegolf.model.stack import PreNormStack, Stack
from bytegolf.model.trace import RouterTrace, StepTrace
from bytegolf.ops.autograd import wide
from bytegolf.ops.chunking import P_FLOOR, smooth_on
from bytegolf.ops.scale_gradient import scale_gradient

# -------------------------------------------------------------------------------- passes, and that over whole sequences


Encoded = TypeVar("Encoded")
"""What a pass holds the encoder's output as: mostly a tensor, (B, L, D)."""


@runtime_checkable
class Parts(Protocol):
    """What a pass uses of an HNet."""

    config: HNetConfig
    capacity: Capacity
    target: float
    guide: float
    training: bool
    encoder: Stack
    router: Router
    chunk_hash: ChunkHashEmbedding | None
    main: Any
    """a Stack or an HNet"""
    residual: Linear
    decoder: Stack

    def around(self, encoded: Tensor) -> Tensor:
        """What the decoder gets of the encoder's output around the chunks."""

    def smoothable(self, z: Tensor, fresh: Tensor) -> Tensor:
        """The chunks as the smoothing takes them."""

    def ended(self, tokens: Tensor | None, chunks: Chunks, first: Tensor | None) -> Tensor | None:
        """The hashes that chunk-hash embeddings look up for whole sequences."""


class Pass(ABC, Generic[Encoded]):
    """One pass through an HNet. It is made for one call, and keeps what its later parts need of the earlier ones."""

    @abstractmethod
    def encode(self) -> Encoded:
        """The encoder's output."""

    @abstractmethod
    def route(self, encoded: Encoded) -> bool:
        """Choose where chunks begin, and leave a trace of it; whether any does."""

    @abstractmethod
    def select(self, encoded: Encoded) -> tuple[Float[Tensor, "B C D"], Int[Tensor, "B C"] | None]:
        """The vectors at which chunks begin, and the hashes of the chunks that end there, if they are looked up."""

    @abstractmethod
    def main(self, z: Float[Tensor, "B C E"]) -> Float[Tensor, "B C E"]:
        """The main network's output for the chunks."""

    @abstractmethod
    def expand(self, z: Float[Tensor, "B C D"] | None, encoded: Encoded) -> Float[Tensor, "B L D"]:
        """Smooth the chunks, hand each position that of its chunk, and add the residual; None: no chunk began."""

    @abstractmethod
    def decode(self, y: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The decoder's output."""


class WholeSequences(Pass[Tensor]):
    """Sequences from their first to their last position.

    ``documents`` numbers each position's document, which nothing crosses (None: all one); ``valid`` is False at the
    padding behind a sequence (None: no padding). The level's trace goes to ``traces``, then its main network's.
    ``tokens`` are the ids at the positions of the outermost level.

    A router that is not learned has no loss. Its p is 1 where chunks start, so that the smoothing leaves each chunk as
    it is but for its clamp (P_FLOOR of the chunk before), and the confidence has no gradient.

    Boundaries beyond a fixed capacity count in the ratio loss, which is about what the router proposes; to confidence
    and smoothing they are positions within the last chunk.
    """

    def __init__(
        self,
        level: Parts,
        x: Float[Tensor, "B L D"],
        documents: Int[Tensor, "B L"] | None,
        valid: Bool[Tensor, "B L"] | None,
        traces: list[RouterTrace],
        tokens: Int[Tensor, "B L"] | None,
    ) -> None:
        self.level, self.x, self.documents, self.valid = level, x, documents, valid
        self.traces, self.tokens = traces, tokens
        self.first = _starts(documents) if documents is not None else None
        self.p: Tensor
        self.chunks: Chunks

    def encode(self) -> Tensor:
        return self.level.encoder(self.x, self.documents)  # type: ignore[no-any-return]

    def route(self, encoded: Tensor) -> bool:
        level, valid = self.level, self.valid
        self.p, proposed = level.router(encoded, self.first, self.tokens)
        if valid is not None:
            proposed = proposed & valid
        loss = self.p.new_zeros(())
        if level.router.learned:  # is held to the target rate
            settings = level.config.router
            measure = ratio_loss if settings.ratio == "two-sided" else hinge_loss
            over_batch = settings.ratio_over == "batch"
            loss = settings.loss_weight * measure(self.p, proposed, valid, level.target, over_batch)
        if level.training and level.router.guide is not None and level.guide > 0:
            loss = loss + level.guide * guide_loss(self.p, level.router.guide(self.x, self.first, self.tokens)[1])
        self.chunks = Chunks.of(proposed, level.capacity)
        self.traces.append(RouterTrace(self.p, self.chunks.boundary, proposed, valid, loss))
        return True

    def select(self, encoded: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.chunks.select(encoded), self.level.ended(self.tokens, self.chunks, self.first)

    def main(self, z: Tensor) -> Tensor:
        documents = self.chunks.select_values(self.documents) if self.documents is not None else None
        # gradients are scaled on the way in and back on the way out: within the main network they are λ times as large
        z = scale_gradient(z, 1 / self.level.config.router.grad_scale)
        out: Tensor = self.level.main(z, documents, self.chunks.valid, self.traces)
        return out

    def expand(self, z: Tensor | None, encoded: Tensor) -> Tensor:
        assert z is not None, "a sequence begins with a chunk"
        fresh = torch.zeros(z.shape[:2], dtype=torch.bool, device=z.device)
        if self.first is not None:
            fresh = self.chunks.select_values(self.first)
        fresh[:, 0] = True  # also where nothing marks documents: a sequence has nothing before its first chunk
        z = self.level.smoothable(z, fresh)
        y = self.chunks.dechunk(z, self.p, self.level.around(encoded), self.first).to(encoded.dtype)
        return scale_gradient(y, self.level.config.router.grad_scale)

    def decode(self, y: Tensor) -> Tensor:
        return self.level.decoder(y, self.documents)  # type: ignore[no-any-return]


def _starts(documents: Int[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """The positions whose document is not the one before them."""
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return first


# --------------------------------------------------------------------------- states, and the passes that go on from one


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
        # where each row's last position that is there lies: for counts 4 and 2 in L = 4, columns 3 and 1
        last: Any = (slice(None), -1)
        there = self.counts
        if there is not None:
            ends = torch.from_numpy(there).to(device)
            boundary = boundary & (torch.arange(length, device=device) < ends.unsqueeze(1))
            last = (torch.arange(len(self.every), device=device), ends - 1)
        state.memory[self.index] = memories[last]
        self.running = boundary.cumsum(1)  # in the worked example, for positions 4 to 7: 0 1 1 1
        if state.limit is not None:
            # a limit of 5 chunks, 4 of them open: of new boundaries at running counts 1 1 2 the first is kept, and the
            # position of the second belongs to the last chunk: 1 1 1
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
        super().route(encoded)  # router and hashes go on, so that the draft's own boundaries are known
        return False


# ------------------------------------------------------------------------------------------------------------ the H-Net


class HNet(nn.Module):
    """One level of an H-Net around a main network that runs once per chunk."""

    def __init__(self, config: HNetConfig, vocab_size: int = 0) -> None:
        """``vocab_size`` is the number of token ids, or 0 for an inner level."""
        super().__init__()
        dim, inner = config.encoder.dim, outer_dim(config.main)
        self.config = config
        self.capacity = Capacity.of(config.router)
        """the room for chunks, which may be changed at any time"""
        self.target = config.router.start_target or config.router.target
        """N as the ratio loss wants it now: training moves it"""
        self.guide = config.router.cosine.guide_weight
        """the weight of the guide's loss now: training moves it"""
        self.encoder = build_stack(config.encoder)
        self.router = build_router(config.router, dim, vocab_size)
        self.main = build_network(config.main)
        self.decoder = build_stack(config.decoder)
        self.residual = Linear(dim, dim, zero=True, bias=config.residual_bias)
        if config.residual == "identity":  # a weight like any other to files and kernels, but never trained
            nn.init.zeros_(self.residual.weight.requires_grad_(False)).fill_diagonal_(1)
        self.chunk_hash = ChunkHashEmbedding(config.chunk_hash, inner) if config.chunk_hash.dim else None
        # a wider main network gets a learned vector beside each chunk's own; coming back it is cut off (S4)
        self.pad = nn.Parameter(torch.zeros(inner - dim)) if inner > dim else None

    @property
    def lr_multipliers(self) -> dict[str, float]:
        """Of a level's own parts, which follow its encoder's (see ``training.optim``)."""
        outer = self.config.encoder.lr_mult
        return {"router.": outer * self.config.router.lr_mult, "residual.": outer, "pad": outer}

    def open(self, starts: Float[Tensor, "B C D"], ended: Int[Tensor, "B C"] | None) -> Float[Tensor, "B C E"]:
        """What the main network takes for the vectors at ``starts``; ``ended`` are chunk hashes."""
        z = starts
        if self.pad is not None:
            z = torch.cat((z, self.pad.to(z.dtype).expand(*z.shape[:-1], -1)), -1)
        if self.chunk_hash is not None and ended is not None:
            z = z + self.chunk_hash(ended, z.dtype)
        return z

    def around(self, encoded: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """What the encoder hands to the decoder around the chunks; in fp32 at least if the sum with them is (S4)."""
        return self.residual(encoded.to(self._sum_dtype(encoded.dtype)))

    def _sum_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return wide(dtype) if self.config.residual_fp32 else dtype

    def smoothable(self, z: Float[Tensor, "B C D"], fresh: Bool[Tensor, "B C"]) -> Float[Tensor, "B C D"]:
        """The chunks as the smoothing takes them, of which those marked ``fresh`` have nothing before them.

        (why) The smoothing starts from such a chunk as it is: z̄ = z. Where it is to start from 0 instead (S4), z̄ is P·z
        with P = 1 − P_FLOOR, as p is 1 at the start of a sequence: the same smoothing, of a chunk scaled before.
        """
        z = z.to(self._sum_dtype(z.dtype))
        if self.config.router.smooth_from == "first":
            return z
        scale = torch.ones_like(fresh, dtype=z.dtype).masked_fill(fresh, 1 - P_FLOOR)
        return z * scale.unsqueeze(-1)

    def ended(
        self, tokens: Int[Tensor, "B L"] | None, chunks: Chunks, first: Bool[Tensor, "B L"] | None
    ) -> Int[Tensor, "B C"] | None:
        """What a chunk_hash looks up for the ``chunks`` of whole sequences; None without one."""
        if self.chunk_hash is None or tokens is None:
            return None
        return chunks.select_values(self.chunk_hash.follow(tokens, chunks.boundary, first)[0])

    def run(self, one: Pass[Encoded]) -> Float[Tensor, "B L D"]:
        """The order of an HNet's parts, whatever pass runs through them (worked example: top of this file)."""
        encoded = one.encode()
        z = None
        if one.route(encoded):
            z = one.main(self.open(*one.select(encoded)))[..., : self.config.encoder.dim]
        return one.decode(one.expand(z, encoded))

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        documents: Int[Tensor, "B L"] | None,
        valid: Bool[Tensor, "B L"] | None,
        traces: list[RouterTrace],
        tokens: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Run whole sequences; see ``WholeSequences``."""
        return self.run(WholeSequences(self, x, documents, valid, traces, tokens))

    def start(self, batch: int, device: torch.device, dtype: torch.dtype, length: int | None = None) -> HNetState:
        """An empty state for ``batch`` sequences with room for ``length`` positions, all of them if a fixed capacity
        is a share of that; otherwise it grows.
        """
        dim = self.config.encoder.dim
        limit = self.capacity.limit(length)
        expected = math.ceil(1.5 * length / self.config.router.target) if length else None
        return HNetState(
            encoder=self.encoder.start(batch, device, dtype, length),
            memory=self.router.start(batch, device, dtype),
            main=self.main.start(batch, device, dtype, limit or expected),
            smoothed=torch.zeros(batch, dim, device=device, dtype=self._sum_dtype(dtype)),
            decoder=self.decoder.start(batch, device, dtype, length),
            opened=np.zeros(batch, np.int64),
            limit=limit,
            keys=torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def extend(
        self,
        x: Float[Tensor, "R L D"],
        state: Any,
        rows: Rows | None,
        counts: Rows | None,
        traces: list[StepTrace],
        tokens: Int[Tensor, "R L"] | None = None,
    ) -> Float[Tensor, "R L D"]:
        """Run the next positions of the sequences ``rows`` (None: all) of ``state``, a HNetState; see ``Extension``."""
        assert isinstance(state, HNetState)
        if state.drafting:
            return self.run(Draft(self, x, state, rows, traces, tokens))
        if x.shape[:2] == (1, 1):
            return self.run(SingleStep(self, x, state, rows, traces, tokens))
        return self.run(Extension(self, x, state, rows, counts, traces, tokens))


def build_network(config: NetworkConfig, vocab_size: int = 0) -> Stack | HNet:
    """The module that a network's configuration describes; ``vocab_size`` is 0 where it sees no tokens."""
    return build_stack(config) if isinstance(config, StackConfig) else HNet(config, vocab_size)


def build_stack(config: StackConfig) -> Stack:
    """The stack of the blocks that its configuration names."""
    return PreNormStack(config) if config.block == "prenorm" else Stack(config)
