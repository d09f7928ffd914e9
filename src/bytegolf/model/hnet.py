"""The H-Net: encoder → router → chunks → main network → smooth → expand → decoder; the main network may be an H-Net.

Sources: S2 (PR #1104) for one level, arXiv 2507.07955 (S4) for the recursion.

Legend: B batch, L positions, C chunks, D width of this level, E width of the main network (≥ D), R rows of an
extension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import HNetConfig, NetworkConfig, StackConfig, outer_dim
from bytegolf.model.cache import Rows, StackState
from bytegolf.model.capacity import Capacity
from bytegolf.model.chunk import Chunks
from bytegolf.model.chunk_hash import ChunkHashEmbedding
from bytegolf.model.layers import Linear
from bytegolf.model.routers.build import build_router
from bytegolf.model.routers.losses import guide_loss, hinge_loss, ratio_loss
from bytegolf.model.stack import Stack
from bytegolf.model.trace import RouterTrace, StepTrace
from bytegolf.ops.chunking import smooth_on
from bytegolf.ops.scale_gradient import scale_gradient


@dataclass
class HNetState:
    """What a level remembers between calls."""

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
    """the chunk_hash's hash of each sequence's chunk so far"""

    def reset(self, rows: Rows) -> None:
        """Forget the sequences ``rows``: a new document starts in them."""
        for part in (self.encoder, self.main, self.decoder):
            part.reset(rows)


class HNet(nn.Module):
    """One level of an H-Net around a main network that runs once a chunk."""

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
        self.encoder = Stack(config.encoder)
        self.router = build_router(config.router, dim, vocab_size)
        self.main = build_network(config.main)
        self.decoder = Stack(config.decoder)
        self.residual = Linear(dim, dim, zero=True)
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

    def ended(
        self, tokens: Int[Tensor, "B L"] | None, chunks: Chunks, first: Bool[Tensor, "B L"] | None
    ) -> Int[Tensor, "B C"] | None:
        """What a chunk_hash looks up for the ``chunks`` of whole sequences; None without one."""
        if self.chunk_hash is None or tokens is None:
            return None
        return chunks.select_values(self.chunk_hash.follow(tokens, chunks.boundary, first)[0])

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        documents: Int[Tensor, "B L"] | None,
        valid: Bool[Tensor, "B L"] | None,
        traces: list[RouterTrace],
        tokens: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Run the level and append its trace (its main network's follow).

        ``documents`` numbers each position's document, which nothing crosses (None: all one); ``valid`` is False at
        the padding behind a sequence (None: no padding). ``tokens`` are the ids at the positions of the outermost
        level.

        A router that is not learned has no loss. Its p is 1 where chunks start, so that the smoothing leaves each chunk
        as it is but for its clamp (P_FLOOR of the chunk before), and the confidence has no gradient.

        Boundaries beyond a fixed capacity count in the ratio loss, which is about what the router proposes; to
        confidence and smoothing they are positions within the last chunk.
        """
        settings = self.config.router
        encoded = self.encoder(x, documents)
        first = _starts(documents) if documents is not None else None
        p, proposed = self.router(encoded, first, tokens)
        if valid is not None:
            proposed = proposed & valid
        loss = p.new_zeros(())
        if self.router.learned:
            measure = ratio_loss if settings.ratio == "two-sided" else hinge_loss
            loss = settings.loss_weight * measure(p, proposed, valid, self.target)
        if self.training and self.router.guide is not None and self.guide > 0:
            loss = loss + self.guide * guide_loss(p, self.router.guide(x, first, tokens)[1])
        chunks = Chunks.of(proposed, self.capacity)
        traces.append(RouterTrace(p, chunks.boundary, proposed, valid, loss))

        z = self.open(chunks.select(encoded), self.ended(tokens, chunks, first))
        z = scale_gradient(z, 1 / settings.grad_scale)
        inner_documents = chunks.select_values(documents) if documents is not None else None
        z = self.main(z, inner_documents, chunks.valid, traces)
        z = z[..., : encoded.shape[-1]]
        y = chunks.dechunk(z, p, self.residual(encoded), first)
        y = scale_gradient(y, settings.grad_scale)
        return self.decoder(y, documents)  # type: ignore[no-any-return]

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
            smoothed=torch.zeros(batch, dim, device=device, dtype=dtype),
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
        """The next positions of the sequences ``rows`` (None: all) of ``state``, a HNetState, changed in place.

        The first ``counts`` of a row's L positions are there (None: all), the rest is padding, which leaves no trace.
        The main network runs on the chunks that open, and only for the sequences in which one does.
        """
        assert isinstance(state, HNetState)
        if x.shape[:2] == (1, 1):
            return self._step(x, state, rows, traces, tokens)
        length, device = x.shape[1], x.device
        every = np.arange(x.shape[0]) if rows is None else rows
        index = slice(None) if rows is None else torch.from_numpy(rows).to(device)
        first = torch.from_numpy(state.encoder.lengths[every] == 0).to(device)
        there = np.full(len(every), length) if counts is None else counts

        encoded = self.encoder.extend(x, state.encoder, rows, counts)
        p, boundary, memories = self.router.extend(encoded, state.memory[index], first, tokens)
        last: Any = (slice(None), -1)
        if counts is not None:
            ends = torch.from_numpy(counts).to(device)
            boundary = boundary & (torch.arange(length, device=device) < ends.unsqueeze(1))
            last = (torch.arange(len(every), device=device), ends - 1)
        state.memory[index] = memories[last]
        running = boundary.cumsum(1)
        if state.limit is not None:
            room = torch.from_numpy(state.limit - state.opened[every]).to(device).unsqueeze(1)
            boundary = boundary & (running <= room)
            running = torch.minimum(running, room)
        traces.append(StepTrace(every, there, p, boundary))
        opened = running[:, -1].cpu().numpy()
        state.opened[every] += opened
        ended = None
        if self.chunk_hash is not None and tokens is not None:
            before = state.keys[index].masked_fill(first, 0)
            ended, keys = self.chunk_hash.follow(tokens, boundary, before=before)
            state.keys[index] = keys[last]

        smoothed = state.smoothed[index].unsqueeze(1)
        if opened.any():
            reached = np.flatnonzero(opened)
            all_open = len(reached) == len(opened)
            pick = slice(None) if all_open else torch.from_numpy(reached).to(device)
            chunks = Chunks.of(boundary[pick])
            z = self.open(chunks.select(encoded[pick]), None if ended is None else chunks.select_values(ended[pick]))
            chosen, inner = rows if all_open else every[reached], opened[reached]
            ragged = (inner < z.shape[1]).any()
            z = self.main.extend(z, state.main, chosen, inner if ragged else None, traces)
            z = z[..., : encoded.shape[-1]]
            z = smooth_on(z, chunks.select_values(p[pick]), smoothed[pick, 0], first[pick])
            # column 0: what the sequence came with, which lasts until its first new chunk
            smoothed = smoothed.repeat(1, z.shape[1] + 1, 1)
            smoothed[pick, 1:] = z
            smoothed = smoothed[torch.arange(len(every), device=device).unsqueeze(1), running]
            state.smoothed[index] = smoothed[:, -1]
        return self.decoder.extend(smoothed + self.residual(encoded), state.decoder, rows, counts)

    def _step(
        self, x: Float[Tensor, "1 1 D"], state: HNetState, rows: Rows | None, traces: list[StepTrace], tokens: Any
    ) -> Float[Tensor, "1 1 D"]:
        """``extend`` by one position of one sequence, without all that it does for the sake of more: most of a step's
        time at batch 1.
        """
        row = 0 if rows is None else int(rows[0])
        here = slice(row, row + 1)
        fresh = bool(state.encoder.lengths[row] == 0)
        first = torch.full((1,), fresh, device=x.device)
        encoded = self.encoder.extend(x, state.encoder, rows)
        p, boundary, memories = self.router.extend(encoded, state.memory[here], first, tokens)
        state.memory[here] = memories[:, 0]
        if state.limit is not None and state.opened[row] >= state.limit:
            boundary = torch.zeros_like(boundary)
        traces.append(StepTrace(np.array([row]), np.ones(1, np.int64), p, boundary))
        ended = None
        if self.chunk_hash is not None and tokens is not None:
            ended, keys = self.chunk_hash.follow(tokens, boundary, before=state.keys[here].masked_fill(first, 0))
            state.keys[here] = keys[:, 0]

        smoothed = state.smoothed[here].unsqueeze(1)
        if boundary.item():
            state.opened[row] += 1
            z = self.main.extend(self.open(encoded, ended), state.main, rows, None, traces)[..., : x.shape[-1]]
            smoothed = smooth_on(z, p, smoothed[:, 0], first)
            state.smoothed[here] = smoothed[:, 0]
        return self.decoder.extend(smoothed + self.residual(encoded), state.decoder, rows, None)


def _starts(documents: Int[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """The positions whose document is not the one before them."""
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return first


def build_network(config: NetworkConfig, vocab_size: int = 0) -> Stack | HNet:
    """The module that a network's configuration describes; ``vocab_size`` is 0 where it sees no tokens."""
    return Stack(config) if isinstance(config, StackConfig) else HNet(config, vocab_size)
