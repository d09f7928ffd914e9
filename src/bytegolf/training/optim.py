"""The optimiser: Muon on matrices, Adam on the tied embedding, vectors and scalars (S0), by row on n-gram tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bytegolf.config import OptimConfig
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.model.embed import row_tables
from bytegolf.model.hnet import HNet
from bytegolf.model.layers import Linear
from bytegolf.model.soft_chunk import SoftLayer
from bytegolf.model.stack import Stack
from bytegolf.training.muon import Muon
from bytegolf.training.rows import RowAdam


class Optimizer:
    """Muon and Adam over a model's parameters, with per-stage learning-rate multipliers."""

    def __init__(self, model: nn.Module, config: OptimConfig, world: DistributedContext = SINGLE_PROCESS) -> None:
        self.config = config
        multipliers = dict(_multipliers(model))
        packed = {id(module.weight): module.splits for module in model.modules() if isinstance(module, Linear)}
        by_row = {id(each.table) for each in row_tables(model)}
        tables: dict[str, nn.Parameter] = {}
        names: list[str] = []
        matrices: list[nn.Parameter] = []
        splits: list[tuple[int, ...]] = []
        adam: dict[str, dict[str, nn.Parameter]] = {"embed": {}, "scalar": {}, "router": {}}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if id(parameter) in by_row:
                tables[name] = parameter
            elif config.router_lr > 0 and ".router." in name:
                adam["router"][name] = parameter
            elif id(parameter) in packed:
                names.append(name)
                matrices.append(parameter)
                splits.append(packed[id(parameter)])
            else:
                adam["embed" if name.startswith("embedding.") else "scalar"][name] = parameter
        self._muon_names = names
        rates = [multipliers.get(name, 1.0) for name in names]
        self.muon = Muon(matrices, splits, rates, config.muon_ns_steps, world)
        self.rows = RowAdam(tables, config.ngram_beta)
        self._adam = {name: parameter for group in adam.values() for name, parameter in group.items()}
        by_rate: dict[float, list[nn.Parameter]] = defaultdict(list)
        peaks = {"embed": config.embed_lr, "scalar": config.scalar_lr, "router": config.router_lr}
        for kind, rate in peaks.items():
            for name, parameter in adam[kind].items():
                by_rate[rate * multipliers.get(name, 1.0)].append(parameter)
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
        self.rows.step(config.ngram_lr * factor)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.adam.zero_grad(set_to_none=True)
        for parameter in (*self.muon.parameters, *self.rows.tables.values()):
            parameter.grad = None

    def clip(self, limit: float) -> None:
        """Scale the gradients so that their joint norm is at most ``limit``. RowAdam's stay: their scale cancels."""
        dense = [*self.muon.parameters, *self._adam.values()]
        nn.utils.clip_grad_norm_(dense, limit)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimiser's state by name, the same on every rank: all of them have to ask."""
        tensors = {f"momentum.{name}": m for name, m in zip(self._muon_names, self.muon.state(), strict=True)}
        for name, parameter in self._adam.items():
            for key, value in self.adam.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors | self.rows.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``state`` gave for the same model; an error in words if it does not fit."""
        stepped = any(name.startswith("step.") for name in tensors)  # before its first step Adam has no state
        expected = {f"momentum.{name}": m for name, m in zip(self._muon_names, self.muon.parameters, strict=True)}
        moments: dict[str, Tensor]
        moments = {f"{key}.{name}": p for name, p in self._adam.items() for key in ("exp_avg", "exp_avg_sq")}
        moments |= {f"step.{name}": torch.zeros(()) for name in self._adam}
        expected |= self.rows.state() | (moments if stepped else {})
        for name, like in expected.items():
            if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (like.shape, like.dtype):
                raise BytegolfError(
                    f"the checkpoint's optimiser state does not fit at {name}: resume the run with its own config"
                )
        self.muon.load_state([tensors[f"momentum.{name}"] for name in self._muon_names])
        for name, tensor in self.rows.state().items():
            tensor.copy_(tensors[name])
        self.adam.state.clear()
        if stepped:
            for name, parameter in self._adam.items():
                self.adam.state[parameter] = {
                    key: tensors[f"{key}.{name}"].clone().to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }


def _multipliers(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Each parameter's learning-rate multiplier: its stage's; a level's own parts follow its encoder."""
    for prefix, module in model.named_modules():
        if isinstance(module, Stack):
            for name, _ in module.named_parameters():
                yield f"{prefix}.{name}", module.config.lr_mult
        elif isinstance(module, HNet):
            outer = module.config.encoder.lr_mult
            for part, factor in (("router", module.config.router.lr_mult), ("residual", 1.0)):
                for name, _ in getattr(module, part).named_parameters():
                    yield f"{prefix}.{part}.{name}", outer * factor
            yield f"{prefix}.pad", outer
        elif isinstance(module, SoftLayer):
            for name in module.boundary_names():
                yield f"{prefix}.{name}", module.config.lr_mult
