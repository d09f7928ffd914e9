"""The H-Net: encoder → router → chunks → main network → smooth → expand → decoder; the main network may be an H-Net.

Sources: S2 (PR #1104) for one level, arXiv 2507.07955 (S4) for the recursion.

Legend: B batch, L positions, C chunks, D width of this level, E width of the main network (≥ D), R rows of an
extension.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import HNetConfig, NetworkConfig, StackConfig, outer_dim
from bytegolf.model.chunk import Capacity, Chunks
from bytegolf.model.embed import ChunkHashEmbedding
from bytegolf.model.hnet_passes import Encoded, Pass, WholeSequences
from bytegolf.model.hnet_steps import Draft, Extension, HNetState, SingleStep
from bytegolf.model.layers import Linear
from bytegolf.model.mixers.base import Rows
from bytegolf.model.prenorm import PreNormStack
from bytegolf.model.routers.base import build_router
from bytegolf.model.stack import Stack
from bytegolf.model.trace import RouterTrace, StepTrace
from bytegolf.ops.autograd import wide
from bytegolf.ops.chunking import P_FLOOR


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
        """The order of an HNet's parts, whatever pass runs through them (``hnet_passes`` has a worked example)."""
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
