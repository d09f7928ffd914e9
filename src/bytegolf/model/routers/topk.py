"""The cosine router with as many chunks in every training sequence: those at the positions of the highest p.

After the top-k selection of ByteFlow (arXiv 2603.03583), whose shapes are static; what it selects by, and how a text
is cut where one cannot look ahead, are ours.

Legend: B batch, L positions.
"""

from __future__ import annotations

import torch

from bytegolf.config import RouterConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import declare
from bytegolf.model.routers.base import THRESHOLD, Marks, Probabilities
from bytegolf.model.routers.cosine import CosineRouter
from bytegolf.registry import register_router

FORGETTING = 0.1
"""The share of the latest batch in ``cut``."""


@register_router("topk")
class TopKRouter(CosineRouter):
    """In training the round(L/N) positions of a sequence with the highest p open its chunks, so that all sequences have
    as many and the ratio loss, at the rate that it asks for, has no gradient.

    Choosing among all positions looks ahead. So everywhere else a chunk begins where p ≥ ``cut``, the running mean over
    training batches of the lowest p that was chosen. Example, N = 4 and L = 8: of p = 1, .2, .7, .3, .4, .6, .1, .5 the
    positions 0 and 2 open chunks, and ``cut`` moves a tenth of its way to .7.
    """

    def __init__(self, config: RouterConfig, dim: int, vocab_size: int = 0) -> None:
        if config.cosine.noise > 0:
            raise BytegolfError("router.kind is 'topk', which draws no boundaries: set router.cosine.noise to 0")
        super().__init__(config, dim, vocab_size)
        self.register_buffer("cut", torch.tensor([THRESHOLD]))
        declare(self, "rule", "cut")

    def _opens(self, p: Probabilities) -> Marks:
        cut = self.get_buffer("cut")
        if not self.training:
            return p >= cut
        chosen = p.detach().topk(max(1, round(p.shape[1] / self.config.target)), dim=1)
        with torch.no_grad():
            cut.lerp_(chosen.values[:, -1].mean().to(cut), FORGETTING)
        marks = torch.zeros_like(p, dtype=torch.bool).scatter_(1, chosen.indices, True)
        return marks | (p >= 1)  # a document's first position, even where there are more of them than chunks
