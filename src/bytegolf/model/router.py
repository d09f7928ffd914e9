"""The router: the probability that a chunk begins at each position.

Legend: B batch, L positions, D width, R rows of an extension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bytegolf.config import RouterConfig
from bytegolf.model import fused, native
from bytegolf.model.functions import wide
from bytegolf.model.layers import Linear

THRESHOLD = 0.5


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


class CosineRouter(nn.Module):
    """p_t = ½(1 − cos(W_q x_t, W_k x_{t−1})), p_0 = 1; a boundary where p_t ≥ ½ (S2; S4 pairs q and k the other way).

    Both maps start as the identity, so that an untrained router marks where neighbouring vectors point apart.
    """

    def __init__(self, dim: int, config: RouterConfig) -> None:
        super().__init__()
        self.config = config
        self.q_proj = Linear(dim, dim)
        self.k_proj = Linear(dim, dim)
        for proj in (self.q_proj, self.k_proj):
            nn.init.zeros_(proj.weight).detach().fill_diagonal_(1)

    def forward(
        self, x: Float[Tensor, "B L D"], first: Bool[Tensor, "B L"] | None = None
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """p (fp32) and the boundaries of x; ``first`` marks further positions where a document starts (p = 1)."""
        p = boundary_probability(self.q_proj(x), self.k_proj(x))
        if first is not None:
            p = torch.where(first, torch.ones_like(p), p)
        return p, p >= THRESHOLD

    def extend(
        self, x: Float[Tensor, "R L D"], memory: Float[Tensor, "R D"], first: Bool[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R L"], Bool[Tensor, "R L"], Float[Tensor, "R L D"]]:
        """p, the boundaries and W_k x of the positions behind ``memory``, which is W_k x of the one before them.

        A row whose ``first`` position this is opens a chunk there.
        """
        keys = self.k_proj(x)
        p = _probability(self.q_proj(x), torch.cat((memory.unsqueeze(1), keys[:, :-1]), 1))
        p[:, 0].masked_fill_(first, 1)
        return p, p >= THRESHOLD, keys


def surprisal_loss(p: Float[Tensor, "B L"], losses: Float[Tensor, "B L"]) -> Float[Tensor, ""]:
    """−mean(p_t·ŝ_t): lower the more likely chunks start at surprising tokens (after SOMBRERO, arXiv 2601.22805).

    ``losses[t]`` is −log p(token t + 1); ŝ is the surprisal of each token that p is about, standardised over the batch
    and without gradient: the model is not asked to be surprised. p_0, which is forced, is left out.
    """
    surprisal = losses[:, :-1].detach()
    surprisal = (surprisal - surprisal.mean()) / (surprisal.std() + 1e-6)
    return -(p[:, 1:] * surprisal).mean()


def ratio_loss(
    p: Float[Tensor, "B L"], boundary: Bool[Tensor, "B L"], valid: Bool[Tensor, "B L"] | None, target: float
) -> Float[Tensor, ""]:
    """Mean over the batch of N/(N−1)·[(N−1)·F·G + (1−F)(1−G)] (S2; arXiv 2507.07955, eq. 10).

    F is the share of boundaries and G the mean probability among the valid positions of an example. At F = G = 1/N
    the loss is 1, its minimum along F = G.
    """
    if valid is None:
        share, mean = boundary.to(p.dtype).mean(1), p.mean(1)
    else:
        count = valid.sum(1).clamp(min=1)
        share, mean = (boundary & valid).sum(1).to(p.dtype) / count, (p * valid).sum(1) / count
    return (target / (target - 1) * ((target - 1) * share * mean + (1 - share) * (1 - mean))).mean()
