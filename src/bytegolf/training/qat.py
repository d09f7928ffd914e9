"""Training with quantised weights (QAT, S3): gradients are taken at the artifact's weights and move those behind them.

The weights are exchanged, not the model: before a step's forward passes every parameter is overwritten with what would
come back from the file (``artifact.quantize.fake_quantize``, the export's own quantiser), and after its backward passes
it is given back. The gradient at the quantised weight is taken for the weight's own (straight-through). So quantising
costs once a step, whatever the number of micro-batches, kernels see plain parameters, and a compiled graph, whose
weights are its inputs, holds nothing of it that a compiler could fold away.

With averaged weights (``train.ema_decay``) gradients are still taken at the quantised *current* weights; the average is
of the unquantised ones, and is quantised once, when it is exported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from bytegolf.artifact.plan import plan_of
from bytegolf.artifact.quantize import fake_quantize
from bytegolf.config import ExportConfig
from bytegolf.model.storage import storage_kinds


class QuantizedTraining:
    """Exchanges a model's weights for their quantised values, as ``export`` says."""

    def __init__(self, model: nn.Module, export: ExportConfig) -> None:
        named = dict(model.named_parameters())
        plan = plan_of(named, storage_kinds(model), export)
        stored = [(parameter, plan[name]) for name, parameter in named.items() if plan[name].quantizer != "fp32"]
        self._storages = [storage for _, storage in stored]
        self._weights = [parameter.data for parameter, _ in stored]

    @contextlib.contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Have the model hold quantised weights within the context; gradients stay where they are put."""
        own = [weight.clone() for weight in self._weights]
        for weight, storage in zip(self._weights, self._storages, strict=True):
            weight.copy_(fake_quantize(weight, storage))
        try:
            with torch.enable_grad():
                yield
        finally:
            torch._foreach_copy_(self._weights, own)
