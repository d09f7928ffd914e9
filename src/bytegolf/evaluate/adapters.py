"""Test-time adapters: low-rank matrices per document, or SGD on the weights themselves.

Legend: M documents at a time, N sequences of a batch (a multiple of M), L tokens of a window.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.config import TttConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.embed import row_tables
from bytegolf.model.layers import Linear
from bytegolf.model.lm import LanguageModel
from bytegolf.model.lora import LowRank


@runtime_checkable
class TestTimeAdapter(Protocol):
    """What changes a model between chunks, for ``rows`` (M) documents at a time."""

    rows: int

    def reset(self, row: int) -> None:
        """Forget all that was learned in ``row``."""

    def only(self, row: int) -> contextlib.AbstractContextManager[None]:
        """Within the context all sequences are read with what was learned in ``row``."""

    def step(self, ids: Int[Tensor, "N L"], targets: Int[Tensor, "N L"], counted: Bool[Tensor, "N L"]) -> None:
        """One update on the ``counted`` targets; the sequences are those of the M documents in order."""


def adapted(model: LanguageModel, which: str) -> dict[str, Linear]:
    """The maps that learn, by name; never one that says where chunks begin, so that they begin where they did."""
    routing = {id(module) for level in model.levels() for module in level.router.modules()}
    if model.soft is not None:
        routing |= {id(layer.boundary_proj) for layer in model.soft.stack}
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and id(module) not in routing
    }
    parts = {"attention": "mixer", "mlp": "mlp"}
    chosen = {name: one for name, one in found.items() if which == "all" or parts[which] in name.split(".")}
    if not chosen:
        raise BytegolfError(f"the model has no maps of the kind {which}: choose all")
    return chosen


@contextlib.contextmanager
def adapter_for(model: LanguageModel, settings: TttConfig, documents: int) -> Iterator[TestTimeAdapter]:
    """The adapter for a text of so many ``documents``; afterwards the model is as it was before."""
    wanted = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    maps = adapted(model, settings.matrices)
    try:
        if settings.mode == "lora":
            adapters = LowRank(maps, min(settings.documents, documents), settings.rank)
            with adapters.attached():
                yield _Lora(model, adapters, settings.lora_lr)
        else:
            sgd = _Sgd(model, [one.weight for one in maps.values()], settings.sgd_lr, settings.ngram_lr)
            try:
                with _sparse(model):
                    yield sgd
            finally:
                sgd.reset(0)
    finally:
        for parameter, before in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(before)


@contextlib.contextmanager
def _sparse(model: LanguageModel) -> Iterator[None]:
    """Within the context the gradients of tables hold the rows of a chunk only."""
    tables = row_tables(model)
    before = [table.sparse_gradients for table in tables]
    for table in tables:
        table.sparse_gradients = True
    try:
        yield
    finally:
        for table, was in zip(tables, before, strict=True):
            table.sparse_gradients = was


def _loss(model: LanguageModel, ids: Tensor, targets: Tensor, counted: Tensor) -> Float[Tensor, ""]:
    """The sum of the losses of the counted targets: so a learning rate is per token, however long the chunk is."""
    device = model.embedding.weight.device
    return (model.losses(model(ids.to(device)), targets.to(device)) * counted.to(device)).sum()


class _Lora:
    def __init__(self, model: LanguageModel, adapters: LowRank, lr: float) -> None:
        self._model, self._adapters, self._lr = model, adapters, lr
        self.rows = adapters.documents
        self.only = adapters.only

    def reset(self, row: int) -> None:
        self._adapters.reset(row)

    def step(self, ids: Tensor, targets: Tensor, counted: Tensor) -> None:
        self._adapters.step(_loss(self._model, ids, targets, counted), self._lr)


class _Sgd:
    rows = 1

    def __init__(self, model: LanguageModel, matrices: list[Tensor], lr: float, ngram_lr: float) -> None:
        self._model = model
        self._rates = [(matrix, lr) for matrix in matrices]
        if ngram_lr > 0:
            self._rates += [(each.table, ngram_lr) for each in row_tables(model)]
        self._shipped = [p.detach().clone() for p, _ in self._rates]
        for p, _ in self._rates:
            p.requires_grad_()

    @torch.no_grad()
    def reset(self, row: int) -> None:
        for (p, _), shipped in zip(self._rates, self._shipped, strict=True):
            p.copy_(shipped)

    def only(self, row: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def step(self, ids: Tensor, targets: Tensor, counted: Tensor) -> None:
        loss = _loss(self._model, ids, targets, counted)
        gradients = torch.autograd.grad(loss, [p for p, _ in self._rates])
        with torch.no_grad():
            for (p, lr), g in zip(self._rates, gradients, strict=True):
                if g.is_sparse:
                    g = g.coalesce()  # a row once, so that no order of adding is left to chance
                    p.index_add_(0, g.indices()[0], g.values(), alpha=-lr)
                else:
                    p.sub_(g, alpha=lr)
