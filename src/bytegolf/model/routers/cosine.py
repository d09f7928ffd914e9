"""The learned router: a chunk begins where neighbouring vectors point apart (S2; arXiv 2507.07955, equation 4).

Legend: B batch, or the rows of an extension, L positions, D width, M width of a memory.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bytegolf.config import RouterConfig
from bytegolf.model.layers import Linear
from bytegolf.model.routers.base import THRESHOLD, Marks, Material, Probabilities, Router, Tokens, Vectors
from bytegolf.model.routers.whitespace import WhitespaceRouter
from bytegolf.ops import native
from bytegolf.ops.boundary import boundary_probability, boundary_step, cosine_probability
from bytegolf.registry import register_router

ODDS_FLOOR = 1e-6
"""Probabilities are kept so far from 0 and 1 where their log odds are taken."""


@register_router("cosine")
class CosineRouter(Router):
    """p_t = ½(1 − cos(W_q x_t, W_k x_{t−1})), p_0 = 1; a boundary where p_t ≥ ½ (S2).

    With ``query`` = previous, W_q is for x_{t−1} and W_k for x_t, and with ``strict`` p_t must be above ½ (S4).

    Both maps start as the identity, so that an untrained router marks where neighbouring vectors point apart. The
    memory is what the map for the position before made of it.

    Departures from S2, each by a field of its own: the maps may lead into fewer dimensions (``dim``; they start as one
    random projection), the log odds of p may be scaled (``sharpness``), shifted by a learned offset (``init`` =
    calibrated), and in training disturbed when the boundaries are chosen (``noise``).
    """

    learned = True
    receptive_field = 1  # p compares a position with the one before it

    def __init__(self, config: RouterConfig, dim: int, vocab_size: int = 0) -> None:
        guide = WhitespaceRouter(config, dim, vocab_size) if config.cosine.guide_weight > 0 else None
        super().__init__(config, dim, vocab_size, guide)
        own = config.cosine
        width = own.dim or dim
        self.q_proj = Linear(dim, width)
        self.k_proj = Linear(dim, width)
        if width == dim:
            nn.init.zeros_(self.q_proj.weight).detach().fill_diagonal_(1)
        else:
            nn.init.orthogonal_(self.q_proj.weight)
        with torch.no_grad():
            self.k_proj.weight.copy_(self.q_proj.weight)
        if own.init == "random":
            nn.init.orthogonal_(self.k_proj.weight)
        self.offset = nn.Parameter(torch.zeros(())) if own.init == "calibrated" else None

    def forward(self, x: Vectors, first: Marks | None = None, tokens: Tokens = None) -> tuple[Probabilities, Marks]:
        now, before = self._maps
        p = self._shaped(boundary_probability(now(x), before(x)))
        if first is not None:
            p = torch.where(first, torch.ones_like(p), p)
        if self.training and self.config.cosine.noise > 0:
            return p, self._drawn(p)
        return p, self._opens(p)

    @property
    def _maps(self) -> tuple[Linear, Linear]:
        """The map for a position, and the one for the position before it."""
        maps = self.q_proj, self.k_proj
        return maps if self.config.cosine.query == "current" else (maps[1], maps[0])

    def _opens(self, p: Probabilities) -> Marks:
        return p > THRESHOLD if self.config.cosine.strict else p >= THRESHOLD

    def prepare(self, material: Material) -> None:
        if self.guide is not None:
            self.guide.prepare(material)

    def _shaped(self, p: Probabilities) -> Probabilities:
        """σ(sharpness·logit p + offset); what is certain, as the first position is, stays so."""
        if self.config.cosine.sharpness == 1 and self.offset is None:
            return p
        odds = self.config.cosine.sharpness * torch.logit(p, ODDS_FLOOR)
        if self.offset is not None:
            odds = odds + self.offset
        return torch.where(p < 1, torch.sigmoid(odds), p)

    def _drawn(self, p: Probabilities) -> Marks:
        """The boundaries for p with logistic noise on its log odds."""
        noise = torch.logit(torch.rand_like(p), ODDS_FLOOR)
        return (torch.logit(p.detach(), ODDS_FLOOR) + self.config.cosine.noise * noise >= 0) | (p >= 1)

    @property
    def calibrated(self) -> bool:
        return self.offset is not None

    @torch.no_grad()
    def calibrate(self, p: Float[Tensor, " X"], target: float) -> None:
        if self.offset is not None:
            self.offset.sub_(torch.logit(torch.quantile(p.float(), 1 - 1 / target), ODDS_FLOOR))

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, self.k_proj.weight.shape[0], device=device, dtype=dtype)

    def extend(
        self, x: Vectors, memory: Tensor, first: Bool[Tensor, " B"], tokens: Tokens = None
    ) -> tuple[Probabilities, Marks, Tensor]:
        now, before = self._maps
        if native.one_position(x, before.weight):
            p, keys = boundary_step(x, now.weight, before.weight, memory)
        else:
            keys = before(x)
            p = cosine_probability(now(x), torch.cat((memory.unsqueeze(1), keys[:, :-1]), 1))
        p = self._shaped(p)
        p[:, 0].masked_fill_(first, 1)
        return p, self._opens(p), keys
