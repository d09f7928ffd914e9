"""S4's stack: pre-norm blocks on a residual stream in fp32, which begins at the stack's input and ends in a norm.

    r ← r + h (r = h at first);  h ← mixer(RMSNorm(r)·w);  the same for the MLP;  the output is RMSNorm(r + h)·w

(arXiv 2507.07955 and its public configurations.) The stream starts anew in each stack, so a router sees normalised
vectors.

Legend: B batch, L positions, D width, R rows of an extension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bytegolf.config import StackConfig
from bytegolf.model.layers import Linear, build_mlp
from bytegolf.model.mixers.base import Rows, StackState, mixer_class
from bytegolf.model.stack import Stack
from bytegolf.model.storage import declare
from bytegolf.ops.add_norm import add_norm


@dataclass(frozen=True)
class Residual:
    """The stream r, and what the last branch adds to it; apart, since the addition and the next norm are one pass."""

    base: Float[Tensor, "B L D"]
    """in fp32, or fp64 where activations are"""
    branch: Float[Tensor, "B L D"] | None = None
    """in the compute dtype"""

    def last(self, keep: int) -> Residual:
        """The last ``keep`` positions of it."""
        if keep == self.base.shape[1]:
            return self
        return Residual(self.base[:, -keep:], None if self.branch is None else self.branch[:, -keep:])


class GainedNorm(nn.Module):
    """RMSNorm with a gain per channel."""

    __call__: Callable[..., tuple[Residual, Tensor]]

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        declare(self, "control", "weight")

    def forward(self, x: Residual, dtype: torch.dtype) -> tuple[Residual, Tensor]:
        """The stream added up, and its norm in ``dtype``, which a branch reads."""
        total, normed = add_norm(x.base, x.branch, self.weight, self.eps, dtype)
        return Residual(total), normed


class PreNormBlock(nn.Module):
    """A mixer, and an MLP where the layout has one, each behind a norm and added to the stream."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.norm = GainedNorm(config.dim, config.norm_eps)
        self.mixer = mixer_class(config)(config)
        self.mlp = build_mlp(config)
        self.mlp_norm = GainedNorm(config.dim, config.norm_eps) if self.mlp is not None else None

    def forward(self, x: Residual, x0: Tensor, documents: Int[Tensor, "B L"] | None) -> Residual:
        """The stream behind the block, its last branch not added yet. Of the stack's input ``x0`` only the dtype
        matters.
        """
        return self._around(x, x0.dtype, lambda normed: self.mixer(normed, documents))

    def extend(self, x: Residual, x0: Tensor, state: Any, span: Any) -> Residual:
        """The same for the next positions of sequences, whose earlier ones are in ``state``, the mixer's."""
        return self._around(x, x0.dtype, lambda normed: self.mixer.extend(normed, state, span))

    def tail(self, x: Residual, x0: Tensor, documents: Int[Tensor, "B L"] | None, keep: int) -> Residual:
        """The last ``keep`` positions of ``forward``."""
        return self._around(x, x0.dtype, lambda normed: self.mixer.tail(normed, documents, keep))

    def _around(self, x: Residual, dtype: torch.dtype, mix: Callable[[Tensor], Tensor]) -> Residual:
        x, normed = self.norm(x, dtype)
        mixed = mix(normed)
        x = Residual(x.last(mixed.shape[1]).base, mixed)
        if self.mlp is None or self.mlp_norm is None:
            return x
        x, normed = self.mlp_norm(x, dtype)
        return Residual(x.base, self.mlp(normed))


class PreNormStack(Stack):
    """``Stack`` with pre-norm blocks: nothing of the stack's input is mixed in again, and there are no skips."""

    block_class: ClassVar[type[nn.Module]] = PreNormBlock

    def _add_skips(self, config: StackConfig) -> int:
        self.norm = GainedNorm(config.dim, config.norm_eps) if config.final_norm else None
        return 0

    def _through(self, x: Tensor, run: Callable[[int, Any, Tensor], Any]) -> Tensor:
        stream = Residual(x.to(torch.promote_types(x.dtype, torch.float32)))
        for index in range(len(self.blocks)):
            stream = run(index, stream, x)
        if self.norm is not None:
            return self.norm(stream, x.dtype)[1]
        total = stream.base if stream.branch is None else stream.base + stream.branch
        return total.to(x.dtype)

    def _native_step(self, x: Tensor, state: StackState, rows: Rows | None) -> Tensor | None:
        return None


def maps_of_codes(model: nn.Module) -> dict[str, Linear]:
    """The linear maps that may keep their weights as codes, by the weights' names: those within pre-norm stacks.

    They are nearly all of a large model, and the kernels of a step read them where they lie; all others pack fp32.
    """
    return {
        f"{prefix}.{name}.weight": module
        for prefix, stack in model.named_modules()
        if isinstance(stack, PreNormStack)
        for name, module in stack.named_modules()
        if isinstance(module, Linear)
    }
