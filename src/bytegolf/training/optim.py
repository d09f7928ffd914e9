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

Legend: R rows, C columns, n matrices of one shape that a process has.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import BFloat16, Float
from torch import Tensor, nn

from bytegolf.config import NetworkConfig, OptimConfig, levels, outer_dim
from bytegolf.device import has_bf16
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.model.hnet import HNet
from bytegolf.model.layers import Linear, storage_kinds
from bytegolf.model.lm import LanguageModel
from bytegolf.ops.muon import apply_update, nesterov
from bytegolf.ops.sparse_rmsprop import update_rows
from bytegolf.training.setup import placed

# ----------------------------------------------------------------------------------------------------------------- Muon


Quintic = tuple[float, float, float]
"""a, b, c of p(s) = a·s + b·s³ + c·s⁵, which an iteration applies to every singular value s."""

NS_COEFFICIENTS: Quintic = (3.4445, -4.7750, 2.0315)
"""of each of the usual iterations (S0)"""

LEAST = 0.01
"""the singular value from which on ``minimax_quintics`` do their best"""


@functools.cache
def minimax_quintics(steps: int, least: float = LEAST) -> tuple[Quintic, ...]:
    """For each of ``steps`` iterations the quintic that is nearest to 1 on what the ones before make of [least, 1].

    Such a p has its largest error E at four points, −E, +E, −E, +E: the interval's ends and the two extrema between,
    which are found in turn with a, b, c and E (Remez). It then maps the interval [l, u] to [1 − E, 1 + E]; nearest at
    each iteration is nearest at the end (Polar Express, arXiv 2505.16932). With 3 steps 0.01 → 0.08 → 0.29 → 0.73, as
    with 4 of the usual ones, and all singular values end in [0.73, 1.27].
    """
    low, high = least, 1.0
    found: list[Quintic] = []
    for _ in range(steps):
        inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
        for _ in range(30):
            points = np.array([low, *inner, high])
            system = np.stack([points, points**3, points**5, [1, -1, 1, -1]], 1)
            a, b, c, error = (float(value) for value in np.linalg.solve(system, np.ones(4)))
            root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))  # p' = a + 3b·s² + 5c·s⁴
            inner = np.sqrt((-3 * b + np.array([-root, root])) / (10 * c))
        found.append((a, b, c))
        low, high = 1 - abs(error), 1 + abs(error)
    return tuple(found)


def orthogonalize(
    matrices: Float[Tensor, "n R C"], steps: int, quintics: Literal["same", "minimax"] = "same"
) -> BFloat16[Tensor, "n R C"]:
    """Move every singular value of each matrix towards 1, by Newton–Schulz iterations (Muon; S0).

    With X = U·S·Vᵀ, X·Xᵀ = U·S²·Uᵀ, so a·X + b·(X·Xᵀ)·X + c·(X·Xᵀ)²·X = U·p(S)·Vᵀ: products of matrices apply the
    quintic to singular values that nobody works out. The usual coefficients trade exactness for speed: p has a slope of
    3.4 at 0, so that small values grow fast, and all end in about [0.7, 1.2]: 0.01 → 0.034 → 0.12 → 0.40 → 1.09 → 0.70.

    bf16 is exact enough for the iterations, and for what is returned; a CPU without bf16 units would take fifty times
    as long over them.
    """
    chosen = (NS_COEFFICIENTS,) * steps if quintics == "same" else minimax_quintics(steps)
    x = matrices.to(torch.bfloat16 if has_bf16(matrices.device) else torch.float32)
    # no singular value is above the root of the sum of all squares, and p diverges above 1.26
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if x.dtype == torch.float32 and max(x.shape[1:]) >= 2 * min(x.shape[1:]):
        return _through_gram(x, chosen, tall).bfloat16()
    for a, b, c in chosen:
        gram = x.mT @ x if tall else x @ x.mT  # the smaller of the two
        powers = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, powers, beta=a) if tall else torch.baddbmm(x, powers, x, beta=a)
    return x.bfloat16()


def _through_gram(x: Float[Tensor, "n R C"], quintics: Sequence[Quintic], tall: bool) -> Float[Tensor, "n R C"]:
    """The same iterations on the smaller Gram matrix alone, for long matrices.

    One iteration is X ← q(G)·X with G = X·Xᵀ and q(G) = a + b·G + c·G². The next one's G is q(G)·G·q(G), which needs
    no X, and polynomials of one G commute. So G is iterated by itself, the factors q are multiplied up, and X is
    multiplied once at the end:

        G₁ = X·Xᵀ    G₂ = q(G₁)·G₁·q(G₁)    …    result = q(G₅)·…·q(G₂)·q(G₁)·X

    The long axis takes part in 2 products instead of 2 per iteration. For R × 4R and 5 iterations, in units of R³
    multiplications: 2·4 + 5 for the squares of G + 4·2 for the next G + 4 for the factors = 25, instead of
    5·(4 + 1 + 4) = 45.

    fp32 only: G holds squares of singular values, of which bf16 would lose all but the largest.
    """

    def polynomial(gram: Tensor, quintic: Quintic) -> Tensor:
        a, b, c = quintic
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        q.diagonal(dim1=1, dim2=2).add_(a)
        return q

    gram = x.mT @ x if tall else x @ x.mT
    whole = factor = polynomial(gram, quintics[0])
    for quintic in quintics[1:]:
        gram = factor @ (factor @ gram)
        factor = polynomial(gram, quintic)
        whole = factor @ whole
    return x @ whole if tall else whole @ x


@dataclass(frozen=True)
class _Piece:
    """A matrix that Muon treats as one: some rows of a parameter. A packed projection of q, k and v holds three, which
    share their input and are orthogonalised one by one, as if they were separate parameters.
    """

    index: int
    """of the parameter"""
    first: int
    """row"""
    rows: int
    factor: float
    """√max(1, R/C)"""

    def of(self, tensors: list[Tensor]) -> Tensor:
        """Its rows of its parameter, or of anything of that shape; a view."""
        return tensors[self.index].narrow(0, self.first, self.rows)


@dataclass(frozen=True)
class _Shape:
    """The matrices of one shape, and who works on which: the ranks take turns.

    The first turn is ``first_rank``'s, which goes on where the shape before ended. With 3 ranks, 4 matrices of one
    shape and 2 of the next: ranks 0 1 2 0, then 1 2. Were each shape to start at rank 0, it would always have most.
    """

    rows: int
    columns: int
    pieces: list[_Piece]
    first_rank: int

    def owned(self, world: DistributedContext) -> list[_Piece]:
        """Those of ``world``'s rank."""
        return self.pieces[(world.rank - self.first_rank) % world.size :: world.size]

    def in_order(self, gathered: Tensor) -> list[Tensor]:
        """The matrices (R, C) in the order of ``pieces``, from every rank's (ranks, slots, R, C).

        Piece number 3 of 3 ranks, first rank 1, is in the second slot of rank (1 + 3) % 3 = 1.
        """
        size = len(gathered)
        return [gathered[(self.first_rank + at) % size, at // size] for at in range(len(self.pieces))]


class Muon:
    """Nesterov momentum, orthogonalised, on matrices; those of one shape are orthogonalised as one batch.

    An update is scaled by √max(1, R/C) (S0); each parameter has a learning-rate multiplier of its own. Of several
    processes each keeps the momenta of its share of the matrices and orthogonalises those; all of them then get the
    updates (bf16) and apply every one, so that weights stay alike to the bit.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        splits: list[tuple[int, ...]],
        multipliers: list[float],
        ns_steps: int,
        world: DistributedContext = SINGLE_PROCESS,
        quintics: Literal["same", "minimax"] = "same",
    ) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.multipliers, self.ns_steps, self.world, self.quintics = multipliers, ns_steps, world, quintics
        found: dict[tuple[int, int], list[_Piece]] = defaultdict(list)
        # by shape, so that one batched product orthogonalises all of them: a few large ones instead of many small
        for index, (parameter, rows) in enumerate(zip(parameters, splits, strict=True)):
            columns, first = parameter.shape[1], 0
            for count in rows:
                factor = max(1.0, count / columns) ** 0.5
                found[count, columns].append(_Piece(index, first, count, factor))
                first += count
        self._shapes: list[_Shape] = []
        handed_out = 0
        for (height, width), pieces in found.items():
            self._shapes.append(_Shape(height, width, pieces, handed_out % world.size))
            handed_out += len(pieces)
        self.momenta = {
            piece: torch.zeros_like(piece.of(self.parameters)) for shape in self._shapes for piece in shape.owned(world)
        }

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """One update with the gradients that the parameters hold."""
        if not self.parameters:
            return
        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.parameters]
        # all shapes are sent before the first is waited for: one travels while the next is worked out
        updates = [
            self._share(shape, orthogonalize(self._gather(shape, grads, momentum), self.ns_steps, self.quintics))
            for shape in self._shapes
        ]
        for shape, arrive in zip(self._shapes, updates, strict=True):
            for piece, update in zip(shape.pieces, arrive(), strict=True):
                weight = piece.of(self.parameters)
                rate = lr * self.multipliers[piece.index]
                apply_update(weight, update, rate * piece.factor, shrink=1 - rate * weight_decay)

    def _gather(self, shape: _Shape, grads: list[Tensor], momentum: float) -> Float[Tensor, "n R C"]:
        """Move this rank's momenta of a shape on; its updates before their orthogonalisation."""
        pieces = shape.owned(self.world)
        if not pieces:
            return self.parameters[0].new_empty(0, shape.rows, shape.columns)
        return nesterov([self.momenta[piece] for piece in pieces], [piece.of(grads) for piece in pieces], momentum)

    def _share(self, shape: _Shape, own: Float[Tensor, "n R C"]) -> Callable[[], list[Tensor]]:
        """Send this rank's matrices of a shape to the others; what is returned waits for all of them, in order."""
        if self.world.size == 1:
            return lambda: list(own)
        # every rank has to send as many: one that has a matrix fewer than others sends zeros, which nobody reads
        slots = -(-len(shape.pieces) // self.world.size)
        padded = torch.cat((own, own.new_zeros(slots - len(own), *own.shape[1:])))
        arrive = self.world.gather(padded)
        return lambda: shape.in_order(arrive())

    def state(self) -> list[Tensor]:
        """The momentum of each parameter, on every rank: all of them have to ask."""
        whole = [torch.empty_like(parameter) for parameter in self.parameters]
        for shape in self._shapes:
            own = [self.momenta[piece] for piece in shape.owned(self.world)]
            stack = torch.stack(own) if own else self.parameters[0].new_empty(0, shape.rows, shape.columns)
            for piece, momentum in zip(shape.pieces, self._share(shape, stack)(), strict=True):
                piece.of(whole).copy_(momentum)
        return whole

    def load_state(self, momenta: list[Tensor]) -> None:
        """Take over what ``state`` gave, of as many processes as it may have been."""
        for piece, momentum in self.momenta.items():
            momentum.copy_(piece.of(momenta))


# -------------------------------------------------------------------------------------------------------- the optimiser


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
