"""The optimiser: Muon on matrices, Adam on the tied embedding, vectors and scalars (S0), sparse RMSprop on tables.

A module declares how its parameters are moved by two attributes, each a mapping whose keys are beginnings of its
parameters' names ("" is all of them):

- ``learning_rates`` names the field of OptimConfig that is the learning rate, and with it the algorithm:
  ``muon_lr`` is Muon's, ``ngram_lr`` that of sparse RMSprop, every other one Adam's. Parameters of which nothing is
  declared are moved by Adam at ``scalar_lr``. What the innermost module declares holds, except that ``router_lr``,
  where it is above 0, takes a whole router.
- ``lr_multipliers`` are factors on that rate; the innermost holds, and 1 where there is none.

For instance ``model.layers.Linear`` declares ``{"weight": "muon_lr"}``, so a new mixer made of linear maps and gains
declares nothing, and a mixer with a matrix of its own declares ``{"mixing": "muon_lr"}``.

Legend: R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bytegolf.config import OptimConfig
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import Linear
from bytegolf.ops.sparse_rmsprop import update_rows
from bytegolf.training.muon import Muon

MUON, TABLES, ROUTER, DEFAULT = "muon_lr", "ngram_lr", "router_lr", "scalar_lr"
ADAM = ("embed_lr", DEFAULT, ROUTER)
"""The learning rates of Adam, in the order of its parameters."""


@dataclass(frozen=True)
class Assignment:
    """How one parameter is moved."""

    name: str
    parameter: nn.Parameter
    learning_rate: str
    """a field of OptimConfig"""
    multiplier: float
    splits: tuple[int, ...]
    """rows of each of the matrices that it packs, which Muon treats one by one; they sum to R"""

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(R, C) of each matrix that it packs."""
        return [(rows, self.parameter.shape[1]) for rows in self.splits]


def assignments(model: nn.Module, config: OptimConfig) -> list[Assignment]:
    """How each trained parameter of ``model`` is moved, in the model's order (also on the meta device)."""
    rates, factors = (_declared(model, name) for name in ("learning_rates", "lr_multipliers"))
    packed = {id(module.weight): module.splits for module in model.modules() if isinstance(module, Linear)}
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        declared = rates[name]
        if ROUTER in declared and config.router_lr > 0:
            rate = ROUTER
        else:
            rate = next((key for key in reversed(declared) if key != ROUTER), DEFAULT)
        splits = packed.get(id(parameter), parameter.shape[:1])
        found.append(Assignment(name, parameter, rate, (factors[name] or [1.0])[-1], tuple(splits)))
    return found


def _declared(model: nn.Module, attribute: str) -> dict[str, list[Any]]:
    """For each parameter's name what modules around it declare by ``attribute``, the outermost first."""
    found: dict[str, list[Any]] = defaultdict(list)
    for prefix, module in model.named_modules():  # outer modules come before inner ones
        for beginning, value in getattr(module, attribute, {}).items():
            for name, _ in module.named_parameters():
                if name.startswith(beginning):
                    found[f"{prefix}.{name}" if prefix else name].append(value)
    return found


class SparseRMSprop:
    """For embedding tables of which a step touches few rows: the other rows cost nothing.

    RMSprop with Adam's bias correction, row by row: v ← β₂·v + (1 − β₂)·g², w ← w − lr·g / √(v / (1 − β₂ⁿ)).

    n counts the steps that touched the row, not all steps. There is no momentum, with which a row would go on moving
    long after it was seen.

    Example, β₂ = 0.99: a row is first touched in step 1,000, with g = 0.002. Then n = 1, v = 0.01·g², and
    v / (1 − β₂¹) = g²: each element moves by lr, as in Adam's first step. With n = 1,000 (all steps) the corrected v
    would be g²/100 and the row would jump by 10·lr.
    """

    def __init__(self, tables: dict[str, nn.Parameter], beta: float) -> None:
        self.tables, self.beta = tables, beta
        self._squares = {name: torch.zeros_like(table) for name, table in tables.items()}
        self._counts = {name: torch.zeros(len(table), device=table.device) for name, table in tables.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update with the gradients, sparse or dense, that the tables hold."""
        for name, table in self.tables.items():
            if table.grad is not None:
                update_rows(table, self._squares[name], self._counts[name], table.grad, lr, self.beta)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state by name, not copied."""
        squares = {f"row_square.{name}": square for name, square in self._squares.items()}
        return squares | {f"row_count.{name}": count for name, count in self._counts.items()}


class Optimizer:
    """Muon, Adam and sparse RMSprop over a model's parameters, each with its learning rate and multiplier."""

    def __init__(self, model: nn.Module, config: OptimConfig, world: DistributedContext = SINGLE_PROCESS) -> None:
        self.config = config
        found = assignments(model, config)
        matrices = [one for one in found if one.learning_rate == MUON]
        self._muon_names = [one.name for one in matrices]
        self.muon = Muon(
            [one.parameter for one in matrices],
            [one.splits for one in matrices],
            [one.multiplier for one in matrices],
            config.muon_ns_steps,
            world,
        )
        tables = {one.name: one.parameter for one in found if one.learning_rate == TABLES}
        self.tables = SparseRMSprop(tables, config.ngram_beta)
        by_rate: dict[float, list[nn.Parameter]] = defaultdict(list)
        self._adam: dict[str, nn.Parameter] = {}
        for key in ADAM:
            for one in found:
                if one.learning_rate == key:
                    self._adam[one.name] = one.parameter
                    by_rate[getattr(config, key) * one.multiplier].append(one.parameter)
        self.adam = torch.optim.Adam(
            [{"params": group, "rate": rate} for rate, group in by_rate.items()],
            lr=0.0,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            fused=True,
        )

    def step(self, factor: float, step: int) -> None:
        """One update at ``factor`` times the peak learning rates; ``step`` (from 0) sets Muon's momentum."""
        config = self.config
        for group in self.adam.param_groups:
            group["lr"] = group["rate"] * factor
        self.adam.step()
        rise = min(1.0, step / config.muon_momentum_steps) if config.muon_momentum_steps else 1.0
        momentum = (1 - rise) * config.muon_momentum_start + rise * config.muon_momentum
        self.muon.step(config.muon_lr * factor, momentum, config.muon_weight_decay)
        self.tables.step(config.ngram_lr * factor)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in (*self.muon.parameters, *self._adam.values(), *self.tables.tables.values()):
            parameter.grad = None

    def clip(self, limit: float) -> None:
        """Scale the gradients so that their joint norm is at most ``limit``.

        The tables' stay as they are: in RMSprop the scale of a gradient cancels.
        """
        nn.utils.clip_grad_norm_([*self.muon.parameters, *self._adam.values()], limit)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimiser's state by name, the same on every rank: all of them have to ask."""
        tensors = {f"momentum.{name}": m for name, m in zip(self._muon_names, self.muon.state(), strict=True)}
        for name, parameter in self._adam.items():
            for key, value in self.adam.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors | self.tables.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``state`` gave for the same model. Raises BytegolfError if it does not fit."""
        stepped = any(name.startswith("step.") for name in tensors)  # before its first step Adam has no state
        expected = {f"momentum.{name}": m for name, m in zip(self._muon_names, self.muon.parameters, strict=True)}
        moments: dict[str, Tensor]
        moments = {f"{key}.{name}": p for name, p in self._adam.items() for key in ("exp_avg", "exp_avg_sq")}
        moments |= {f"step.{name}": torch.zeros(()) for name in self._adam}
        expected |= self.tables.state() | (moments if stepped else {})
        for name, like in expected.items():
            if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (like.shape, like.dtype):
                raise BytegolfError(
                    f"the checkpoint's optimiser state does not fit at {name}: resume the run with its own config"
                )
        self.muon.load_state([tensors[f"momentum.{name}"] for name in self._muon_names])
        for name, tensor in self.tables.state().items():
            tensor.copy_(tensors[name])
        self.adam.state.clear()
        if stepped:
            for name, parameter in self._adam.items():
                self.adam.state[parameter] = {
                    key: tensors[f"{key}.{name}"].clone().to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
