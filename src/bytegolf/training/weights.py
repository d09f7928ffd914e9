"""Weights that a model holds in place of its own for a while: their moving average, and what quantisation leaves of
them (QAT, S3).

In QAT the weights are exchanged, not the model: before a step's forward passes every parameter is overwritten with what
would come back from the file (``artifact.quantize.fake_quantize``, the export's own quantiser), and after its backward
passes it is given back. The gradient at the quantised weight is taken for the weight's own (straight-through). So
quantising costs once per step, whatever the number of micro-batches, kernels see plain parameters, and a compiled
graph, whose weights are its inputs, holds nothing of it that a compiler could fold away.

With averaged weights (``train.ema_decay``) gradients are still taken at the quantised *current* weights; the average is
of the unquantised ones, and is quantised once, when it is exported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from bytegolf.artifact.quantize import fake_quantize, plan_of
from bytegolf.config import ExportConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import storage_kinds
from bytegolf.training.setup import placed


@contextlib.contextmanager
def _exchanged(weights: list[Tensor], others: Iterable[Tensor]) -> Iterator[None]:
    """Have ``weights`` hold the values of ``others`` within the context; gradients stay where they are put."""
    own = [weight.clone() for weight in weights]
    with torch.no_grad():
        for weight, other in zip(weights, others, strict=True):
            weight.copy_(other)
    try:
        yield
    finally:
        with torch.no_grad():  # one by one: shards (DTensor) know no copying of lists
            for weight, before in zip(weights, own, strict=True):
                weight.copy_(before)


class WeightAverage:
    """θ̄ ← d·θ̄ + (1 − d)·θ after each step, with d rising as (1 + t)/(10 + t) until it reaches ``decay``.

    The rise forgets the first weights, which a constant d would keep for 1/(1 − d) steps. With decay 0.99: d is 0.1 at
    the first update, 0.5 at the 9th, and 0.99 from the 891st on; after 100 updates the first weights' share is the
    product of all d so far, below 10⁻¹², and would be 0.99¹⁰⁰ = 0.37 with a constant d.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._names = list(weights)
        self._weights = [weight.detach() for weight in weights.values()]
        self._average = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)
        self.updates += 1

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """Have the model hold the averaged weights within the context."""
        return _exchanged(self._weights, self._average)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights by name, and the number of updates."""
        return {**dict(zip(self._names, self._average, strict=True)), "updates": torch.tensor(self.updates)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``state`` gave (or plain weights, from which the average then starts)."""
        for name, average in zip(self._names, self._average, strict=True):
            if name not in tensors or tensors[name].shape != average.shape:
                raise BytegolfError(f"the checkpoint's averaged weights do not fit at {name}: delete the checkpoint")
        if (updates := tensors.get("updates", torch.tensor(0))).numel() != 1 or not 0 <= int(updates) < 1 << 62:
            raise BytegolfError(
                "the checkpoint's averaged weights have no valid number of updates: delete the checkpoint"
            )
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(placed(tensors[name], average))
        self.updates = int(updates)


class QuantizedTraining:
    """Exchanges a model's weights for their quantised values, as ``export`` says."""

    def __init__(self, model: nn.Module, export: ExportConfig) -> None:
        named = dict(model.named_parameters())
        plan = plan_of(named, storage_kinds(model), export)
        stored = [(parameter, plan[name]) for name, parameter in named.items() if plan[name].quantizer != "fp32"]
        self._storages = [storage for _, storage in stored]
        self._weights = [parameter.data for parameter, _ in stored]

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """Have the model hold quantised weights within the context."""
        quantised = (fake_quantize(*pair) for pair in zip(self._weights, self._storages, strict=True))
        return _exchanged(self._weights, quantised)
