"""Routers: the probability that a chunk begins at each position, and where one does.

``Router`` is what a level asks of one; ``CosineRouter`` is the learned one. Those that follow a fixed rule are in
``fixed_router``, ``edge_router`` and ``entropy_router``; ``routers`` chooses.

Legend: B batch, L positions, D width, R rows of an extension, M width of a memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from bytegolf.config import RouterConfig
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.model import stepping
from bytegolf.model.layers import Linear
from bytegolf.ops import fused, native
from bytegolf.ops.functions import wide

THRESHOLD = 0.5

ODDS_FLOOR = 1e-6
"""Probabilities are kept so far from 0 and 1 where their log odds are taken."""


def boundary_probability(q: Float[Tensor, "B L D"], k: Float[Tensor, "B L D"]) -> Float[Tensor, "B L"]:
    """½(1 − cos(q_t, k_{t−1})) at each position t, in at least fp32; 1 at the first."""
    if native.usable(q, k):
        return fused.boundary_probability(q, k)
    return F.pad(_probability(q[:, 1:], k[:, :-1]), (1, 0), value=1.0)


def _probability(q: Tensor, k: Tensor) -> Tensor:
    """½(1 − cos(q, k)) over the last axis."""
    q, k = (t.to(wide(t.dtype)) for t in (q, k))
    cosine = torch.cosine_similarity(q, k, dim=-1, eps=fused.COSINE_EPS)
    return (0.5 * (1 - cosine)).clamp(0, 1)


@dataclass(frozen=True)
class Material:
    """What a router may be made from before training starts: nothing but the training split."""

    tokenizer: Tokenizer
    tokens: NDArray[np.uint16]
    """the beginning of the training split"""
    folder: Path
    """the data's, where further tokenizers lie"""


class Router(nn.Module, ABC):
    """Says where chunks begin, from what lies at a position and before it.

    What a rule needs to know goes with the model, as parameters or buffers, and so into checkpoint and artifact.
    """

    learned: ClassVar[bool] = False
    """Whether p has a gradient, so that there are losses to train it by."""

    learning_rates: ClassVar = {"": "router_lr"}

    def __init__(self, config: RouterConfig, guide: Router | None = None) -> None:
        """``guide`` is a fixed rule that training may hold p against."""
        super().__init__()
        self.config = config
        self.guide = guide

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "B L D"],
        first: Bool[Tensor, "B L"] | None = None,
        tokens: Int[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """p (fp32 or wider) and the boundaries at the positions of ``x``.

        ``first`` marks positions besides the first where a document starts, whose p is 1. ``tokens`` are the ids there,
        which only the outermost level knows.
        """

    @abstractmethod
    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """What is remembered of the positions before, (B, M), of ``batch`` sequences that have none."""

    @abstractmethod
    def extend(
        self,
        x: Float[Tensor, "R L D"],
        memory: Tensor,
        first: Bool[Tensor, " R"],
        tokens: Int[Tensor, "R L"] | None = None,
    ) -> tuple[Float[Tensor, "R L"], Bool[Tensor, "R L"], Tensor]:
        """p, the boundaries, and what is to be remembered behind each position, (R, L, M), of positions that come after
        those of ``memory`` (R, M).

        A row whose ``first`` position this is opens a chunk there, whatever its memory.
        """

    def prepare(self, material: Material) -> None:
        """Make what the rule needs; called once, before training. Raises BytegolfError where it cannot be made."""


class CosineRouter(Router):
    """p_t = ½(1 − cos(W_q x_t, W_k x_{t−1})), p_0 = 1; a boundary where p_t ≥ ½ (S2; S4 pairs q and k the other way).

    Both maps start as the identity, so that an untrained router marks where neighbouring vectors point apart. The
    memory is W_k x of the position before.

    Departures from S2, each by a field of its own: the maps may lead into fewer dimensions (``dim``; they start as one
    random projection), the log odds of p may be scaled (``sharpness``), shifted by a learned offset (``init`` =
    calibrated), and in training disturbed when the boundaries are chosen (``noise``).
    """

    learned = True

    def __init__(self, dim: int, config: RouterConfig, guide: Router | None = None) -> None:
        super().__init__(config, guide)
        width = config.dim or dim
        self.q_proj = Linear(dim, width)
        self.k_proj = Linear(dim, width)
        if width == dim:
            nn.init.zeros_(self.q_proj.weight).detach().fill_diagonal_(1)
        else:
            nn.init.orthogonal_(self.q_proj.weight)
        with torch.no_grad():
            self.k_proj.weight.copy_(self.q_proj.weight)
        if config.init == "random":
            nn.init.orthogonal_(self.k_proj.weight)
        self.offset = nn.Parameter(torch.zeros(())) if config.init == "calibrated" else None

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        first: Bool[Tensor, "B L"] | None = None,
        tokens: Int[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        p = self._shaped(boundary_probability(self.q_proj(x), self.k_proj(x)))
        if first is not None:
            p = torch.where(first, torch.ones_like(p), p)
        if self.training and self.config.noise > 0:
            return p, self._drawn(p)
        return p, p >= THRESHOLD

    def prepare(self, material: Material) -> None:
        if self.guide is not None:
            self.guide.prepare(material)

    def _shaped(self, p: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """σ(sharpness·logit p + offset); what is certain, as the first position is, stays so."""
        if self.config.sharpness == 1 and self.offset is None:
            return p
        odds = self.config.sharpness * torch.logit(p, ODDS_FLOOR)
        if self.offset is not None:
            odds = odds + self.offset
        return torch.where(p < 1, torch.sigmoid(odds), p)

    def _drawn(self, p: Float[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """The boundaries for p with logistic noise on its log odds."""
        noise = torch.logit(torch.rand_like(p), ODDS_FLOOR)
        return (torch.logit(p.detach(), ODDS_FLOOR) + self.config.noise * noise >= 0) | (p >= 1)

    @torch.no_grad()
    def calibrate(self, p: Float[Tensor, " X"], target: float) -> None:
        """Shift the offset so that of positions whose probabilities are ``p`` now, one in ``target`` opens a chunk."""
        if self.offset is not None:
            self.offset.sub_(torch.logit(torch.quantile(p.float(), 1 - 1 / target), ODDS_FLOOR))

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, self.k_proj.weight.shape[0], device=device, dtype=dtype)

    def extend(
        self,
        x: Float[Tensor, "R L D"],
        memory: Tensor,
        first: Bool[Tensor, " R"],
        tokens: Int[Tensor, "R L"] | None = None,
    ) -> tuple[Float[Tensor, "R L"], Bool[Tensor, "R L"], Tensor]:
        if stepping.usable(x):
            p, keys = stepping.probability(x, self.q_proj.weight, self.k_proj.weight, memory)
        else:
            keys = self.k_proj(x)
            p = _probability(self.q_proj(x), torch.cat((memory.unsqueeze(1), keys[:, :-1]), 1))
        p = self._shaped(p)
        p[:, 0].masked_fill_(first, 1)
        return p, p >= THRESHOLD, keys
