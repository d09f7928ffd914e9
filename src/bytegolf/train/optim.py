"""The optimiser: Muon on matrices, Adam on the tied embedding and on vectors and scalars (S0).

Legend: n matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bytegolf.config import OptimConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.hnet import Level
from bytegolf.model.layers import Linear
from bytegolf.model.stage import Stage

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Float[Tensor, "n R C"], steps: int) -> Float[Tensor, "n R C"]:
    """Move every singular value of each matrix towards 1, by Newton–Schulz iterations in bf16 (Muon; S0).

    The quintic's coefficients trade exactness for speed: the values end in about [0.7, 1.2].
    """
    a, b, c = NS_COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


@dataclass(frozen=True)
class _Piece:
    """A matrix that Muon treats as one: some rows of a parameter (packed q, k, v share one)."""

    index: int
    first: int
    rows: int
    factor: float


class Muon:
    """Nesterov momentum, orthogonalised, on matrices; those of one shape are orthogonalised as one batch.

    An update is scaled by √max(1, R/C) (S0); each parameter has a learning-rate multiplier of its own.
    """

    def __init__(
        self, parameters: list[nn.Parameter], splits: list[tuple[int, ...]], multipliers: list[float], ns_steps: int
    ) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.multipliers, self.ns_steps = multipliers, ns_steps
        self.momenta = [torch.zeros_like(parameter) for parameter in parameters]
        self._pieces: dict[tuple[int, int], list[_Piece]] = defaultdict(list)
        for index, (parameter, rows) in enumerate(zip(parameters, splits, strict=True)):
            columns, first = parameter.shape[1], 0
            for count in rows:
                factor = max(1.0, count / columns) ** 0.5
                self._pieces[count, columns].append(_Piece(index, first, count, factor))
                first += count

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """One update with the gradients that the parameters hold."""
        if not self.parameters:
            return
        grads = [_gradient(parameter) for parameter in self.parameters]
        torch._foreach_mul_(self.momenta, momentum)
        torch._foreach_add_(self.momenta, grads)
        updates = torch._foreach_add(grads, self.momenta, alpha=momentum)
        if weight_decay:
            shrink = [1 - lr * factor * weight_decay for factor in self.multipliers]
            torch._foreach_mul_(self.parameters, shrink)
        for pieces in self._pieces.values():
            stack = torch.stack([updates[piece.index].narrow(0, piece.first, piece.rows) for piece in pieces])
            for piece, update in zip(pieces, orthogonalize(stack, self.ns_steps), strict=True):
                rate = lr * self.multipliers[piece.index] * piece.factor
                self.parameters[piece.index].narrow(0, piece.first, piece.rows).sub_(update, alpha=rate)


def _gradient(parameter: Tensor) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


class Optimizer:
    """Muon and Adam over a model's parameters, with per-stage learning-rate multipliers."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self.config = config
        multipliers = dict(_multipliers(model))
        packed = {id(module.weight): module.splits for module in model.modules() if isinstance(module, Linear)}
        names: list[str] = []
        matrices: list[nn.Parameter] = []
        splits: list[tuple[int, ...]] = []
        adam: dict[str, dict[str, nn.Parameter]] = {"embed": {}, "scalar": {}, "router": {}}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if config.router_lr > 0 and ".router." in name:
                adam["router"][name] = parameter
            elif id(parameter) in packed:
                names.append(name)
                matrices.append(parameter)
                splits.append(packed[id(parameter)])
            else:
                adam["embed" if name.startswith("embedding.") else "scalar"][name] = parameter
        self._muon_names = names
        self.muon = Muon(matrices, splits, [multipliers.get(name, 1.0) for name in names], config.muon_ns_steps)
        self._adam = {name: parameter for group in adam.values() for name, parameter in group.items()}
        by_rate: dict[float, list[nn.Parameter]] = defaultdict(list)
        rates = {"embed": config.embed_lr, "scalar": config.scalar_lr, "router": config.router_lr}
        for kind, rate in rates.items():
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

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.adam.zero_grad(set_to_none=True)
        for parameter in self.muon.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimiser's state by name, not copied."""
        tensors = {f"momentum.{name}": m for name, m in zip(self._muon_names, self.muon.momenta, strict=True)}
        for name, parameter in self._adam.items():
            for key, value in self.adam.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``state`` gave for the same model; an error in words if it does not fit."""
        stepped = any(name.startswith("step.") for name in tensors)  # before its first step Adam has no state
        expected = {f"momentum.{name}": m for name, m in zip(self._muon_names, self.muon.momenta, strict=True)}
        moments = {f"{key}.{name}": p for name, p in self._adam.items() for key in ("exp_avg", "exp_avg_sq")}
        expected |= moments if stepped else {}
        for name, like in expected.items():
            if name not in tensors or tensors[name].shape != like.shape:
                raise BytegolfError(
                    f"the checkpoint's optimiser state does not fit at {name}: resume the run with its own config"
                )
        for name, momentum in zip(self._muon_names, self.muon.momenta, strict=True):
            momentum.copy_(tensors[f"momentum.{name}"])
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
        if isinstance(module, Stage):
            for name, _ in module.named_parameters():
                yield f"{prefix}.{name}", module.config.lr_mult
        elif isinstance(module, Level):
            outer = module.config.encoder.lr_mult
            for part, factor in (("router", module.config.router.lr_mult), ("residual", 1.0)):
                for name, _ in getattr(module, part).named_parameters():
                    yield f"{prefix}.{part}.{name}", outer * factor
            yield f"{prefix}.pad", outer
