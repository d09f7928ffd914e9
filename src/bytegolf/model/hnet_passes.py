"""What a pass through an HNet is, and the pass over whole sequences; ``hnet_steps`` has those that remember.

Each says what the parts see and what is remembered, ``HNet.run`` the order of the parts.

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
extension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.config import HNetConfig
from bytegolf.model.chunk import Capacity, Chunks
from bytegolf.model.embed import ChunkHashEmbedding
from bytegolf.model.layers import Linear
from bytegolf.model.routers.base import Router
from bytegolf.model.routers.losses import guide_loss, hinge_loss, ratio_loss
from bytegolf.model.stack import Stack
from bytegolf.model.trace import RouterTrace
from bytegolf.ops.scale_gradient import scale_gradient

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
