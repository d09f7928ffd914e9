"""What routers are trained by, besides the model's own loss: how many chunks there are to be, and where.

Legend: B batch, L positions.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


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
