"""What routers are trained by, besides the model's own loss: how many chunks there are to be, and where.

Legend: B batch, L positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from bytegolf.ops.autograd import wide

_HORIZON = 128
"""Tokens after which a return no longer counts losses; 0.95^128 is 0.001."""

_LEAST = 1e-4
"""The probability below which the log of a choice is not followed further."""


def surprisal_loss(p: Float[Tensor, "B L"], losses: Float[Tensor, "B L"]) -> Float[Tensor, ""]:
    """−mean(p_t·ŝ_t): lower the more likely chunks start at surprising tokens (after SOMBRERO, arXiv 2601.22805).

    ``losses[t]`` is −log p(token t + 1); ŝ is the surprisal of each token that p is about, standardised over the batch
    and without gradient: the model is not asked to be surprised. p_0, which is forced, is left out.
    """
    surprisal = losses[:, :-1].detach()
    surprisal = (surprisal - surprisal.mean()) / (surprisal.std() + 1e-6)
    return -(p[:, 1:] * surprisal).mean()


def guide_loss(p: Float[Tensor, "B L"], taught: Bool[Tensor, "B L"]) -> Float[Tensor, ""]:
    """The mean cross-entropy of p against the boundaries of a rule, in nats; p_0, which is forced, is left out."""
    p = p[:, 1:].clamp(_LEAST, 1 - _LEAST)
    return -torch.where(taught[:, 1:], p, 1 - p).log().mean()


def policy_loss(
    p: Float[Tensor, "B L"], boundary: Bool[Tensor, "B L"], losses: Float[Tensor, "B L"], discount: float
) -> Float[Tensor, ""]:
    """−mean(A_t·log π(b_t)): boundaries that were followed by smaller losses than usual become likelier (REINFORCE).

    ``boundary`` was drawn with probability ``p``; π(b) is p or 1 − p. The return of b_t is minus the mean of the losses
    from t on, which it may have helped, each weighing ``discount`` times the one before; the advantage A is the return
    standardised over the batch, whose mean is the baseline (time discounting and batch-relative advantages as in arXiv
    2602.13940; its rewards are also relative to an early exit of the model, ours are not). p_0, which is forced, is
    left out.
    """
    with torch.no_grad():
        reach = min(losses.shape[1], _HORIZON if discount else 1)
        weights = discount ** torch.arange(reach, device=losses.device, dtype=wide(losses.dtype))
        ahead = F.pad(losses.to(weights.dtype), (0, reach - 1)).unsqueeze(1)
        # near the end of a sequence fewer losses follow
        count = F.conv1d(F.pad(torch.ones_like(ahead[..., : losses.shape[1]]), (0, reach - 1)), weights.view(1, 1, -1))
        returns = -(F.conv1d(ahead, weights.view(1, 1, -1)) / count).squeeze(1)[:, 1:]
        advantage = (returns - returns.mean()) / (returns.std() + 1e-6)
    chosen = torch.where(boundary, p, 1 - p)[:, 1:].clamp(min=_LEAST)
    return -(advantage * chosen.log()).mean()


def ratio_loss(
    p: Float[Tensor, "B L"],
    boundary: Bool[Tensor, "B L"],
    valid: Bool[Tensor, "B L"] | None,
    target: float,
    over_batch: bool = False,
) -> Float[Tensor, ""]:
    """Mean over the batch of N/(N−1)·[(N−1)·F·G + (1−F)(1−G)] (S2; arXiv 2507.07955, eq. 10).

    F is the share of boundaries and G the mean probability among the valid positions of an example, or of the whole
    batch (``over_batch``, S4). At F = G = 1/N the loss is 1, its minimum along F = G.
    """
    share, mean = _rates(p, boundary, valid, over_batch)
    return (target / (target - 1) * ((target - 1) * share * mean + (1 - share) * (1 - mean))).mean()


def hinge_loss(
    p: Float[Tensor, "B L"],
    boundary: Bool[Tensor, "B L"],
    valid: Bool[Tensor, "B L"] | None,
    target: float,
    over_batch: bool = False,
) -> Float[Tensor, ""]:
    """Mean over the batch of max(0, N·F − 1), with the gradient of N·G: only too many chunks cost (after FLEXITOKENS,
    arXiv 2507.12720). Scaled so that at F = G = 1 it pushes as hard as the ratio loss.
    """
    share, mean = _rates(p, boundary, valid, over_batch)
    return torch.relu(target * (share + mean - mean.detach()) - 1).mean()


def _rates(
    p: Float[Tensor, "B L"], boundary: Bool[Tensor, "B L"], valid: Bool[Tensor, "B L"] | None, over_batch: bool
) -> tuple[Float[Tensor, " X"], Float[Tensor, " X"]]:
    """F and G: the share of boundaries, and the mean of p, among the valid positions of each example (X = B), or of
    all (X = 1).
    """
    if over_batch:
        p, boundary = p.flatten().unsqueeze(0), boundary.flatten().unsqueeze(0)
        valid = None if valid is None else valid.flatten().unsqueeze(0)
    if valid is None:
        return boundary.to(p.dtype).mean(1), p.mean(1)
    count = valid.sum(1).clamp(min=1)
    return (boundary & valid).sum(1).to(p.dtype) / count, (p * valid).sum(1) / count
