"""S0's transformer block.

Legend: B batch, L positions, D width, R rows of an extension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bytegolf.config import StackConfig
from bytegolf.model.layers import Mlp
from bytegolf.model.mixers.base import mixer_class
from bytegolf.model.residual import Stream
from bytegolf.model.storage import declare


class Block(nn.Module):
    """S0's block: residual mix with the stack's input, then a mixer (attention) and an MLP, each scaled per channel."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        dim = config.dim
        self.mixer = mixer_class(config)(config)
        self.mlp = Mlp(config)
        self.mixer_scale = nn.Parameter(torch.ones(dim))
        self.mlp_scale = nn.Parameter(torch.ones(dim))
        self.resid_mix = nn.Parameter(torch.empty(2, dim))
        declare(self, "control", "mixer_scale", "mlp_scale", "resid_mix")
        nn.init.ones_(self.resid_mix[0])
        nn.init.zeros_(self.resid_mix[1])

    def forward(self, x: Stream, x0: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None) -> Stream:
        """The stream behind the block, its last branch not added yet."""
        return self._around(x, x0, lambda normed: self.mixer(normed, documents))

    def extend(self, x: Stream, x0: Float[Tensor, "R L D"], state: Any, span: Any) -> Stream:
        """The same for the next positions of sequences, whose earlier ones are in ``state``, the mixer's."""
        return self._around(x, x0, lambda normed: self.mixer.extend(normed, state, span))

    def tail(self, x: Stream, x0: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None, keep: int) -> Stream:
        """The last ``keep`` positions of ``forward``."""
        return self._around(x, x0, lambda normed: self.mixer.tail(normed, documents, keep))

    def _around(self, x: Stream, x0: Tensor, mix: Callable[[Tensor], Tensor]) -> Stream:
        x, normed = x.read(x0, self.resid_mix)
        mixed = mix(normed)
        x, normed = x.last(mixed.shape[1]).plus(mixed, self.mixer_scale).read()
        return x.plus(self.mlp(normed), self.mlp_scale)
