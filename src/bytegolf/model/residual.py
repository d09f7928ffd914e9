"""The residual stream of a stage: a sum that is taken only when the next block reads it, in one pass with its norm.

Legend: B batch (all leading axes), D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

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
