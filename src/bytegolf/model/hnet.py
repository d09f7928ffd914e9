"""The H-Net: encoder → router → chunks → main network → smooth → expand → decoder; the main network may be an H-Net.

Sources: S2 (PR #1104) for one level, arXiv 2507.07955 (S4) for the recursion.

Legend: B batch, L positions, C chunks, D width of this level, E width of the main network (≥ D), R rows of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import LevelConfig, NetworkConfig, StageConfig, outer_dim
from bytegolf.model import ops
from bytegolf.model.capacity import Capacity
from bytegolf.model.chunk import Chunks, confidence, smooth, smoothing_weight
from bytegolf.model.layers import Linear
from bytegolf.model.router import CosineRouter, ratio_loss
from bytegolf.model.stage import Stage, StageState
from bytegolf.model.trace import LevelTrace, StepTrace


@dataclass
class LevelState:
    """What a level remembers between steps."""

    encoder: StageState
    memory: Float[Tensor, "B D"]
    """W_k x of the last position, for the router"""
    started: Bool[Tensor, " B"]
    """whether a position has been seen since the start of the document"""
    main: StageState | LevelState
    smoothed: Float[Tensor, "B D"]
    """z̄ of the current chunk"""
    decoder: StageState
    opened: Int[Tensor, " B"]
    """chunks so far"""
    limit: int | None
    """how many there may be, under a fixed capacity"""

    def reset(self, rows: Tensor) -> None:
        """Forget the sequences ``rows``: a new document starts in them."""
        self.started[rows] = False
        for part in (self.encoder, self.main, self.decoder):
            part.reset(rows)


class Level(nn.Module):
    """One level of an H-Net around a main network that runs once a chunk."""

    def __init__(self, config: LevelConfig) -> None:
        super().__init__()
        dim, inner = config.encoder.dim, outer_dim(config.main)
        self.config = config
        self.capacity = Capacity.of(config.router)
        """the room for chunks, which may be changed at any time"""
        self.encoder = Stage(config.encoder)
        self.router = CosineRouter(dim, config.router)
        self.main = build_network(config.main)
        self.decoder = Stage(config.decoder)
        self.residual = Linear(dim, dim, zero=True)
        # a wider main network gets a learned vector beside each chunk's own; coming back it is cut off (S4)
        self.pad = nn.Parameter(torch.zeros(inner - dim)) if inner > dim else None

    def _widen(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B E"]:
        if self.pad is None:
            return x
        return torch.cat((x, self.pad.to(x.dtype).expand(*x.shape[:-1], -1)), -1)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        documents: Int[Tensor, "B L"] | None,
        valid: Bool[Tensor, "B L"] | None,
        traces: list[LevelTrace],
    ) -> Float[Tensor, "B L D"]:
        """Run the level and append its trace (its main network's follow).

        ``documents`` numbers each position's document, which nothing crosses (None: all one); ``valid`` is False at
        the padding behind a sequence (None: no padding).

        Boundaries beyond a fixed capacity count in the ratio loss, which is about what the router proposes; to
        confidence and smoothing they are positions within the last chunk.
        """
        settings = self.config.router
        encoded = self.encoder(x, documents)
        first = _starts(documents) if documents is not None else None
        p, proposed = self.router(encoded, first)
        if valid is not None:
            proposed = proposed & valid
        loss = settings.loss_weight * ratio_loss(p, proposed, valid, settings.target)
        chunks = Chunks.of(proposed, self.capacity)
        traces.append(LevelTrace(p, chunks.boundary, proposed, valid, loss))

        z = ops.scale_gradient(self._widen(chunks.select(encoded)), 1 / settings.grad_scale)
        inner_documents = chunks.select_values(documents) if documents is not None else None
        z = self.main(z, inner_documents, chunks.valid, traces)
        z = z[..., : encoded.shape[-1]]
        fresh = chunks.select_values(first) if first is not None else None
        z = chunks.expand(smooth(z, chunks.select_values(p), fresh))
        y = z * confidence(p, chunks.boundary).unsqueeze(-1).to(z.dtype)
        y = ops.scale_gradient(y + self.residual(encoded), settings.grad_scale)
        return self.decoder(y, documents)  # type: ignore[no-any-return]

    def start(self, batch: int, device: torch.device, dtype: torch.dtype, length: int | None = None) -> LevelState:
        """An empty state for ``batch`` sequences; ``length``, theirs, is needed under a fixed capacity."""
        dim = self.config.encoder.dim
        limit = self.capacity.limit(length)
        return LevelState(
            encoder=self.encoder.start(batch, device, dtype),
            memory=torch.zeros(batch, dim, device=device, dtype=dtype),
            started=torch.zeros(batch, dtype=torch.bool, device=device),
            main=self.main.start(batch, device, dtype, limit),
            smoothed=torch.zeros(batch, dim, device=device, dtype=dtype),
            decoder=self.decoder.start(batch, device, dtype),
            opened=torch.zeros(batch, dtype=torch.long, device=device),
            limit=limit,
        )

    def step(
        self,
        x: Float[Tensor, "R D"],
        state: Any,
        rows: Int[Tensor, " R"],
        traces: list[StepTrace],
    ) -> Float[Tensor, "R D"]:
        """One position for the sequences ``rows`` of the state, a LevelState; the main network runs at chunk starts."""
        assert isinstance(state, LevelState)
        encoded = self.encoder.step(x, state.encoder, rows, traces)
        started = state.started[rows]
        p, boundary, memory = self.router.step(encoded, state.memory[rows], started)
        if state.limit is not None:
            boundary = boundary & (state.opened[rows] < state.limit)
            state.opened[rows] += boundary
        traces.append(StepTrace(rows, p, boundary))
        state.memory[rows], state.started[rows] = memory, True
        if bool(boundary.any()):
            opening = rows[boundary]
            z = self.main.step(self._widen(encoded[boundary]), state.main, opening, traces)
            z = z[..., : encoded.shape[-1]]
            weight = torch.where(started, smoothing_weight(p), torch.ones_like(p))[boundary]
            state.smoothed[opening] = torch.lerp(state.smoothed[opening], z, weight.unsqueeze(-1).to(z.dtype))
        y = state.smoothed[rows] + self.residual(encoded)
        return self.decoder.step(y, state.decoder, rows, traces)


def _starts(documents: Int[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """The positions whose document is not the one before them."""
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return first


def build_network(config: NetworkConfig) -> Stage | Level:
    """The module that a network's configuration describes."""
    return Stage(config) if isinstance(config, StageConfig) else Level(config)
