"""The gradients of one step: its share of the global batch in as many forward passes as memory asks for.

Legend: B sequences, L tokens of a sequence.
"""

from __future__ import annotations

import contextlib

import torch
from jaxtyping import Int
from torch import Tensor, nn

from bytegolf.config import Config, levels
from bytegolf.device import device_memory
from bytegolf.distributed import DistributedContext
from bytegolf.model.embed import row_tables
from bytegolf.model.lm import LanguageModel
from bytegolf.training.memory import at_a_time
from bytegolf.training.metric_accumulator import Figures


class Gradients:
    """Accumulates the gradients of a model's objective, averaged over the ranks of ``world``."""

    def __init__(self, config: Config, model: LanguageModel, world: DistributedContext) -> None:
        self.model, self.world = model, world
        self.at_a_time = at_a_time(config, model, world.size, device_memory(world.device))
        """sequences of this rank in one forward pass"""
        self._parallel = world.wrap(model)
        if world.size == 1:  # several ranks reduce dense gradients: nccl knows no others
            for table in row_tables(model):
                table.sparse_gradients = True
        self._levels = len(levels(config.model.network))

    def accumulate(self, inputs: Int[Tensor, "B L"], targets: Int[Tensor, "B L"]) -> Figures:
        """Add the gradients of the mean objective over ``inputs``, which lie on the CPU, to the parameters'."""
        device = self.world.device
        sequences, size = inputs.shape[0], self.at_a_time
        loss = torch.zeros((), device=device)
        figures = torch.zeros(3, self._levels, device=device)
        chunker = self.model.soft
        soft = torch.zeros(3, len(chunker.layers) if chunker else 0, device=device)
        for first in range(0, sequences, size):
            ids, wanted = (self._to_device(t[first : first + size]) for t in (inputs, targets))
            share = ids.shape[0] / sequences
            last = first + size >= sequences
            with contextlib.nullcontext() if last else self._without_sync():
                out = self._parallel(ids)
                losses = self.model.losses(out, wanted)
                torch.autograd.backward(self.model.objective(out, losses) * share)
            loss += losses.detach().mean() * share
            if out.traces:
                figures += torch.stack([trace.figures() for trace in out.traces], 1) * share
            if out.soft:
                soft[:2] += torch.stack([trace.figures() for trace in out.soft], 1) * share
        if chunker:
            soft[2] = chunker.gradient_norms()
        return Figures(loss, figures, soft)

    def _without_sync(self) -> contextlib.AbstractContextManager[None]:
        """Keep gradients local: only the last micro-batch of a step averages them over the ranks."""
        if isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.world.device.type == "cuda":
            return tensor.pin_memory().to(self.world.device, non_blocking=True)
        return tensor.to(self.world.device)
