"""torch.compile for the stacks of a model whose sequences always have one of a few lengths.

Each graph costs a minute or so the first time, so only training passes are compiled, each stack for the shapes that
recur: flat networks, encoders and decoders of the outermost level, and what lies within a level whose room for chunks
comes in a few sizes. A main stack over exactly as many chunks as a batch happens to have stays eager: torch 2.13 fails
on its dynamic length (LOG.md). Inductor keeps what it compiled in a cache folder of its own (TORCHINDUCTOR_CACHE_DIR),
from which the next run takes it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from bytegolf.model.hnet import HNet
from bytegolf.model.lm import LanguageModel
from bytegolf.model.stack import Stack
from bytegolf.ops.compiler import NO_COMPILER, find_compiler

Say = Callable[[str], None]
Run = Callable[[Tensor, Tensor | None], Tensor]

MAX_GRAPHS = 16
"""What is compiled at most, a graph for each shape at each stack; stacks run eagerly at further ones."""


def wants(setting: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Whether to compile for ``device``: auto does on GPUs.

    On a CPU the native kernels are as fast without a minute of waiting, and a compiled stack does not use them.
    """
    return setting == "on" or (setting == "auto" and device.type == "cuda")


def obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot work for ``device`` here, in words; None if nothing is known to be missing."""
    if not find_compiler("cl"):
        return NO_COMPILER
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


class CompiledStacks:
    """The compiled stacks of a model, each in ``Stack.compiled``; eager again where compiling fails."""

    def __init__(self, model: LanguageModel, say: Say, backend: str = "inductor") -> None:
        self.shapes: set[tuple[int, torch.Size]] = set()
        """each stack's number with the shape of an input that it was compiled for: one graph each"""
        self._failed = False
        self._say = say
        torch.compiler.reset()  # graphs of an earlier model in this process would count against torch's own limit
        torch._dynamo.config.recompile_limit = MAX_GRAPHS + 1
        for number, stack in enumerate(_stacks_of_recurring_length(model.network)):
            compiled = torch.compile(stack.eager, fullgraph=True, dynamic=False, backend=backend)
            stack.compiled = self._instead(number, stack.eager, compiled)

    def _instead(self, number: int, eager: Run, compiled: Run) -> Run:
        def forward(x: Tensor, documents: Tensor | None) -> Tensor:
            key = (number, x.shape)
            known = key in self.shapes
            full = not known and len(self.shapes) >= MAX_GRAPHS
            if self._failed or full or not torch.is_grad_enabled():
                return eager(x, documents)
            try:
                out = compiled(x, documents)
            except Exception as error:  # the compiler's errors share no class
                if known:
                    raise
                self._failed = True
                first = str(error).strip().partition("\n")[0]
                self._say(f"torch.compile failed, training goes on without it ({type(error).__name__}: {first[:200]})")
                return eager(x, documents)
            self.shapes.add(key)
            return out

        return forward


def compile_stacks(
    model: LanguageModel, setting: Literal["auto", "on", "off"], device: torch.device, say: Say
) -> CompiledStacks | None:
    """Have ``model`` compile its stacks when they first train, if ``setting`` wants it; None if not.

    Where that cannot work, ``say`` gets one sentence, and the model stays as it is.
    """
    if not wants(setting, device):
        return None
    if reason := obstacle(device):
        say(f"train.compile: {reason}; training goes on without torch.compile")
        return None
    return CompiledStacks(model, say)


def _stacks_of_recurring_length(network: Stack | HNet) -> Iterator[Stack]:
    """The stacks of ``network``, whose own length recurs, that are worth a graph for each length."""
    if isinstance(network, Stack):
        if network.config.layers:
            yield network
        return
    for part in (network.encoder, network.decoder):
        yield from _stacks_of_recurring_length(part)
    if network.config.router.capacity != "exact":
        yield from _stacks_of_recurring_length(network.main)
