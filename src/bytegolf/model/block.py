"""S0's transformer block, and the residual stream that runs through blocks.

Legend: B batch (or all leading axes), L positions, D width, R rows of an extension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bytegolf.config import StackConfig
from bytegolf.model.layers import build_mlp
from bytegolf.model.mixers.base import mixer_class
from bytegolf.model.storage import declare
from bytegolf.ops.fused_add_rmsnorm import Branch, add_scaled, fused_add_rmsnorm


@dataclass(frozen=True)
class Stream:
    """base + Σ scale·y over the branches, each scaled per channel (S0's attention, MLP and skip scales)."""

    base: Float[Tensor, "*B D"]
    branches: tuple[Branch, ...] = ()

    def plus(self, y: Float[Tensor, "*B D"], scale: Float[Tensor, " D"]) -> Stream:
        """The stream with one branch more."""
        return Stream(self.base, (*self.branches, (y, scale)))

    def last(self, keep: int) -> Stream:
        """The last ``keep`` positions of it, which is (B, L, D)."""
        if keep == self.base.shape[1]:
            return self
        return Stream(self.base[:, -keep:], tuple((y[:, -keep:], scale) for y, scale in self.branches))

    def sum(self) -> Float[Tensor, "*B D"]:
        """The stream as a tensor."""
        total = self.base
        for y, scale in self.branches:
            total = add_scaled(total, y, scale)
        return total

    def norm(self) -> Float[Tensor, "*B D"]:
        """The RMS norm of the sum."""
        return fused_add_rmsnorm(self.base, self.branches, keep_sum=False)[1]

    def read(
        self, x0: Float[Tensor, "*B D"] | None = None, mix: Float[Tensor, "2 D"] | None = None
    ) -> tuple[Stream, Float[Tensor, "*B D"]]:
        """The stream added up, mixed with ``x0`` if given, and its RMS norm, which a block reads."""
        total, normed = fused_add_rmsnorm(self.base, self.branches, x0, mix)
        assert total is not None
        return Stream(total), normed


class Block(nn.Module):
    """S0's block: residual mix with the stack's input, then a mixer (attention) and an MLP, each scaled per channel."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        dim = config.dim
        self.mixer = mixer_class(config)(config)
        self.mlp = build_mlp(config)
        self.mixer_scale = nn.Parameter(torch.ones(dim))
        declare(self, "control", "mixer_scale", "resid_mix")
        if self.mlp is not None:
            self.mlp_scale = nn.Parameter(torch.ones(dim))
            declare(self, "control", "mlp_scale")
        self.resid_mix = nn.Parameter(torch.empty(2, dim))
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
        x = x.last(mixed.shape[1]).plus(mixed, self.mixer_scale)
        if self.mlp is None:
            return x
        x, normed = x.read()
        return x.plus(self.mlp(normed), self.mlp_scale)
