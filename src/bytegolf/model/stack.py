"""A stack of blocks at one resolution: the flat GPT's body and each part of an H-Net, with S0's blocks or S4's.

``Stack`` has S0's blocks, with U-net skips. ``PreNormStack`` has S4's on a residual stream in fp32, which begins at the
stack's input and ends in a norm:

    r ← r + h (r = h at first);  h ← mixer(RMSNorm(r)·w);  the same for the MLP;  the output is RMSNorm(r + h)·w

(arXiv 2507.07955 and its public configurations.) The stream starts anew in each stack, so a router sees normalised
vectors.

Legend: B batch (or all leading axes), L positions, D width, R rows of an extension, N last positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bytegolf.config import StackConfig
from bytegolf.model.layers import Linear, build_mlp, declare
from bytegolf.model.mixers.base import Rows, StackState, mixer_class
from bytegolf.model.trace import RouterTrace, StepTrace
from bytegolf.ops.add_norm import add_norm
from bytegolf.ops.fused_add_rmsnorm import Branch, add_scaled, fused_add_rmsnorm
from bytegolf.ops.rms_norm import rms_norm

# --------------------------------------------------------------------------------------------------------- blocks of S0


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


# ---------------------------------------------------------------------------------------------------------- their stack


class Stack(nn.Module):
    """RMSNorm, blocks whose first half pushes skips that the second half pops, RMSNorm (S0)."""

    block_class: ClassVar[type[nn.Module]] = Block

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(self.block_class(each) for each in config.blocks)
        # what all blocks of a kind share is worked out once per call, by their class and the first one's configuration
        self.kinds = {each.kind: (mixer_class(each), each) for each in reversed(config.blocks or [config])}
        self.norms_input = True
        """False behind soft chunking, as published (S1)"""
        self.compiled: Callable[[Tensor, Tensor | None], Tensor] | None = None
        """what ``forward`` runs in place of ``eager``, if anything: ``training.setup`` puts compiled graphs here"""
        self.recompute = False
        """whether the backward pass computes each block anew, instead of keeping what is within it"""
        self.pushed = self._add_skips(config)

    def _add_skips(self, config: StackConfig) -> int:
        """Make what is added up around blocks; how many of the first blocks push."""
        pushed = config.layers // 2
        # an empty parameter would get no gradient, which data-parallel training takes for a fault
        self.skip_weights = nn.Parameter(torch.ones(pushed, config.dim), requires_grad=pushed > 0)
        declare(self, "control", "skip_weights")
        return pushed

    @property
    def lr_multipliers(self) -> dict[str, float]:
        """Of all parameters (see ``training.optim``)."""
        return {"": self.config.lr_mult}

    @property
    def _blocks(self) -> list[Any]:
        """Blocks of ``block_class``, each of which knows its own kind of stream."""
        return list(self.blocks)

    def _through(self, x: Tensor, run: Callable[[int, Any, Tensor], Any]) -> Tensor:
        """The stage around its blocks; ``run`` takes the stream, and the stage's own input, through one of them.

        The first block of the second half takes the last skip pushed.
        """
        x0 = rms_norm(x) if self.norms_input else x
        stream = Stream(x0)
        skips: list[Tensor] = []
        for index in range(len(self.blocks)):
            if index >= self.pushed and skips:
                stream = stream.plus(skips.pop()[:, -stream.base.shape[1] :], self.skip_weights[index - self.pushed])
            stream = run(index, stream, x0)
            if index < self.pushed:
                skips.append(stream.sum())
                stream = Stream(skips[-1])
        return stream.norm()

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        documents: Int[Tensor, "B L"] | None = None,
        valid: Bool[Tensor, "B L"] | None = None,
        traces: list[RouterTrace] | None = None,
        tokens: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """Run the stack; ``documents`` numbers each position's document (None: all one).

        ``valid``, ``traces`` and ``tokens`` are what an HNet takes in a stack's place: a causal stack need not know of
        padding behind a sequence, and has no router to report on or to tell of tokens.
        """
        return self.compiled(x, documents) if self.compiled is not None else self.eager(x, documents)

    def eager(self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None) -> Float[Tensor, "B L D"]:
        """What ``forward`` computes."""
        blocks = self._blocks
        if self.recompute and torch.is_grad_enabled():

            def again(index: int, stream: Any, x0: Tensor) -> Any:
                return checkpoint(blocks[index], stream, x0, documents, use_reentrant=False)

            return self._through(x, again)
        return self._through(x, lambda index, stream, x0: blocks[index](stream, x0, documents))

    def start(self, batch: int, device: torch.device, dtype: torch.dtype, length: int | None = None) -> StackState:
        """An empty state for ``batch`` sequences, with room for ``length`` positions before it has to grow."""
        expected = length or 0
        states = [block.mixer.start(batch, device, dtype, expected) for block in self._blocks]
        lengths, parts = np.zeros(batch, np.int64), {}
        for kind, (mixer, config) in self.kinds.items():
            own = [state for state, each in zip(states, self.config.blocks, strict=True) if each.kind == kind]
            parts[kind] = StackState(lengths, own, mixer.share(config, device, dtype, expected))
        return next(iter(parts.values())) if len(parts) == 1 else StackState(lengths, states, None, parts)

    def extend(
        self,
        x: Float[Tensor, "R L D"],
        state: Any,
        rows: Rows | None = None,
        counts: Rows | None = None,
        traces: list[StepTrace] | None = None,
        tokens: Int[Tensor, "R L"] | None = None,
    ) -> Float[Tensor, "R L D"]:
        """The next positions of the sequences ``rows`` (None: all) of ``state``, a StackState, changed in place.

        The first ``counts`` of a row's L positions are there (None: all), the rest is padding, which leaves no trace.
        """
        assert isinstance(state, StackState)
        length, blocks, states = x.shape[1], self._blocks, state.blocks
        stepped = self._native_step(x, state, rows)
        if stepped is not None:
            return stepped
        spans = {
            kind: mixer.span(state.kinds.get(kind, state), rows, counts, length, x.device)
            for kind, (mixer, _) in self.kinds.items()
        }
        each = [spans[config.kind] for config in self.config.blocks]
        out = self._through(x, lambda index, stream, x0: blocks[index].extend(stream, x0, states[index], each[index]))
        state.lengths[slice(None) if rows is None else rows] += length if counts is None else counts
        return out

    def _native_step(self, x: Tensor, state: StackState, rows: Rows | None) -> Tensor | None:
        """A kernel's result for one position of one sequence through the whole stack, if there is such a kernel."""
        if not self.norms_input or len(self.kinds) > 1:
            return None
        ((mixer, _),) = self.kinds.values()
        return mixer.native_step(self._blocks, self.skip_weights, x, state, rows)

    def see(self, window: int) -> None:
        """From now on each position sees the last ``window`` ones (0: all), as far as mixers do not forget anyway."""
        self.config = dataclasses.replace(self.config, window=window)
        self.kinds = {
            kind: (mixer, dataclasses.replace(one, window=window)) for kind, (mixer, one) in self.kinds.items()
        }
        for block in self._blocks:
            block.mixer.see(window)

    @property
    def receptive_field(self) -> int | None:
        """How many positions before its own an output depends on; None: all of them."""
        fields = [block.mixer.receptive_field for block in self._blocks]
        known = [field for field in fields if field is not None]
        return sum(known) if len(known) == len(fields) else None

    def tail(
        self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None, keep: int
    ) -> Float[Tensor, "B N D"]:
        """The last ``keep`` (N) positions of ``forward``, without the work that only the others need.

        For instance, of 3 blocks that see 7 positions before their own each, with N = 2: the last block has to give 2
        positions, the one before it 2 + 7, the first 2 + 14. Of blocks that see everything, only the last saves work.
        """
        blocks = self._blocks
        fields = [block.mixer.receptive_field for block in blocks]

        def run(index: int, stream: Any, x0: Tensor) -> Any:
            length, later = stream.base.shape[1], fields[index + 1 :]
            seen = documents[:, -length:] if documents is not None else None
            needed = length if None in later else keep + sum(field or 0 for field in later)
            if needed >= length:
                return blocks[index](stream, x0[:, -length:], seen)
            return blocks[index].tail(stream, x0[:, -length:], seen, needed)

        return self._through(x, run)[:, -keep:]


# ----------------------------------------------------------------------------------------------------------- S4's stack


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
