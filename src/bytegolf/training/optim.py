"""The optimiser: Muon on matrices, Adam on the tied embedding, vectors and scalars (S0), sparse RMSprop on tables; or
AdamW in place of the first two (S4).

A module declares how its parameters are moved by two attributes, each a mapping whose keys are beginnings of its
parameters' names ("" is all of them):

- ``learning_rates`` names the field of OptimConfig that is the learning rate, and with it the algorithm:
  ``muon_lr`` is Muon's, ``ngram_lr`` that of sparse RMSprop, every other one Adam's. Parameters of which nothing is
  declared are moved by Adam at ``scalar_lr``. What the innermost module declares holds, except that ``router_lr``,
  where it is above 0, takes a whole router. Under ``algorithm`` = "adamw" all of these are moved by AdamW at
  ``adamw_lr``, and only tables stay what they are.
- ``lr_multipliers`` are factors on that rate; the innermost holds, and 1 where there is none. ``stage_multipliers`` are
  factors besides.

For instance ``model.layers.Linear`` declares ``{"weight": "muon_lr"}``, so a new mixer made of linear maps and gains
declares nothing, and a mixer with a matrix of its own declares ``{"mixing": "muon_lr"}``.

Legend: R rows, C columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bytegolf.config import NetworkConfig, OptimConfig, levels, outer_dim
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.model.hnet import HNet
from bytegolf.model.layers import Linear
from bytegolf.model.lm import LanguageModel
from bytegolf.model.storage import storage_kinds
from bytegolf.ops.sparse_rmsprop import update_rows
from bytegolf.training.muon import Muon
from bytegolf.training.sharding import placed

MUON, TABLES, ROUTER, DEFAULT, ADAMW = "muon_lr", "ngram_lr", "router_lr", "scalar_lr", "adamw_lr"
ADAM = ("embed_lr", DEFAULT, ROUTER, ADAMW, "adapter_lr")
"""The learning rates of Adam and AdamW, in the order of its parameters."""
BYTES_PER_TOKEN = 4.6
"""N_gpt of the paper's stage multipliers: bytes per token of GPT-2's tokenizer, for which a rate of 1 is meant (S4)."""


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
    weight_decay: float = 0.0
    """AdamW's, times the learning rate"""

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(R, C) of each matrix that it packs."""
        return [(rows, self.parameter.shape[1]) for rows in self.splits]


def assignments(model: nn.Module, config: OptimConfig) -> list[Assignment]:
    """How each trained parameter of ``model`` is moved, in the model's order (also on the meta device)."""
    rates, factors = (_declared(model, name) for name in ("learning_rates", "lr_multipliers"))
    stages = _stage_multipliers(model) if config.stage_multipliers == "paper" else {}
    kinds = storage_kinds(model)
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
        decay = 0.0
        if config.algorithm == "adamw" and rate in (MUON, "embed_lr", DEFAULT, ROUTER):
            vectors = parameter.dim() < 2 or kinds.get(name) == "control"  # as the rows of resid_mix are
            decay = 0.0 if vectors else config.adamw_weight_decay
            rate = ADAMW
        splits = packed.get(id(parameter), parameter.shape[:1])
        multiplier = (factors[name] or [1.0])[-1] * stages.get(id(parameter), 1.0)
        found.append(Assignment(name, parameter, rate, multiplier, tuple(splits), decay))
    return found


def stage_multipliers(network: NetworkConfig) -> list[float]:
    """λ of each stage, the outermost first (S4): √(N_gpt · ∏_{i ≥ s} Nᵢ / ∏ᵢ Nᵢ · D_S/D_s), N of the innermost stage 1.

    Outer stages are narrower and see more positions a batch, so they get larger rates. For instance hnet_2stage_L, with
    N = 3 and 3 and D = 1024, 1024 and 1536, has √(4.6·1.5) = 2.63, √(4.6/3·1.5) = 1.52 and √(4.6/9) = 0.71.
    """
    outer = levels(network)
    inner = outer[-1].main if outer else network
    widths = [*(level.encoder.dim for level in outer), outer_dim(inner)]
    found, passed = [], 1.0
    for width, level in zip(widths, [*outer, None], strict=True):
        found.append(math.sqrt(BYTES_PER_TOKEN / passed * widths[-1] / width))
        passed *= level.router.target if level else 1.0
    return found


def _stage_multipliers(model: nn.Module) -> dict[int, float]:
    """λ of each parameter of a language model, by its id. What is outside the network belongs to the outermost stage, a
    vector that widens the inner stage's input to the stage that makes it.
    """
    if not isinstance(model, LanguageModel):
        return {}
    factors = stage_multipliers(model.config.network)
    found = {id(parameter): factors[0] for parameter in model.parameters()}
    inner = model.network
    for factor in factors[1:]:
        assert isinstance(inner, HNet)
        inner = inner.main
        found |= {id(parameter): factor for parameter in inner.parameters()}
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
            config.muon_quintics,
        )
        tables = {one.name: one.parameter for one in found if one.learning_rate == TABLES}
        self.tables = SparseRMSprop(tables, config.ngram_beta)
        groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        self._adam: dict[str, nn.Parameter] = {}
        for key in ADAM:
            for one in found:
                if one.learning_rate == key:
                    self._adam[one.name] = one.parameter
                    groups[getattr(config, key) * one.multiplier, one.weight_decay].append(one.parameter)
        self.adam = torch.optim.AdamW(  # which is Adam where the decay is 0
            [{"params": group, "rate": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
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
                    "step": tensors[f"step.{name}"].clone().to(parameter.device),
                    **{key: placed(tensors[f"{key}.{name}"].clone(), parameter) for key in ("exp_avg", "exp_avg_sq")},
                }
