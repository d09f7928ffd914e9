"""Linear maps with fp32 master weights, the MLPs, and the declaration of what a module's tensors are for.

A tensor that no module declares is a ``weight``:

    self.resid_mix = nn.Parameter(torch.empty(2, dim))
    declare(self, "control", "resid_mix")

The module keeps the declaration, not the parameter: an attribute of a parameter is lost by ``copy.deepcopy``, by
``load_state_dict(assign=True)`` and on the way from the meta device.

Legend: B batch, I inputs, O outputs, D width. Activations are in the compute dtype (bf16 or fp32) of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor, nn

from bytegolf.config import StackConfig
from bytegolf.ops.relu_squared import relu_squared
from bytegolf.ops.stored_product import linear, widened
from bytegolf.ops.swiglu import swiglu

StorageKind = Literal["weight", "embedding", "table", "control", "rule"]
"""``weight``: a matrix that training learns, in ``export.bits``.
``embedding``: the tied one, in ``export.embedding_bits``.
``table``: many narrow rows that are looked up, in ``export.ngram_bits``, whose rows share scales in groups.
``control``: scales, gains and mixes of whole streams of activations, in fp32, as every vector and scalar is.
``rule``: what a router goes by and training leaves alone, no weight: a vector, or a matrix of −1, 0 and 1."""

_ATTRIBUTE = "_storage_kinds"


def declare(module: nn.Module, kind: StorageKind, *names: str) -> None:
    """Say what tensors of ``module`` are for; a name may reach into a submodule: ``"embedding.weight"``."""
    vars(module).setdefault(_ATTRIBUTE, {}).update(dict.fromkeys(names, kind))


def storage_kinds(model: nn.Module) -> dict[str, StorageKind]:
    """The declared kind of tensors by their full names; a tensor that is missing is a ``weight``."""
    return {
        f"{path}.{name}" if path else name: kind
        for path, module in model.named_modules()
        for name, kind in vars(module).get(_ATTRIBUTE, {}).items()
    }


class Cost(NamedTuple):
    """What a part of a block costs besides its linear maps; all per position.

    A module may say so by a method ``cost(length)``, where ``length`` is that of the sequences; `bytegolf plan` and the
    choice of micro-batches count it. A module without one costs its linear maps.
    """

    kept: int = 0
    """channels kept for the backward pass, besides inputs and outputs of linear maps"""
    fused: int = 0
    """channels that fused operations read or write in a forward pass, besides those that every block has"""
    eager: int = 0
    """the same where each operation runs by itself"""
    flops: float = 0.0
    """of the mixing of positions in a forward pass"""


class Linear(nn.Module):
    """y = x·Wᵀ, with a bias if asked for, in the dtype of x; W is fp32 in training, and in inference as it was stored:
    in a narrower dtype, or as int8 codes with a ``scale`` (O, fp32) per output.

    ``splits`` names how many rows of W belong to each of several maps that share their input (packed q, k, v): the
    optimiser orthogonalises them one by one, as if they were separate matrices.
    """

    learning_rates: ClassVar = {"weight": "muon_lr"}
    """see ``training.optim``"""
    __call__: Callable[..., Tensor]  # nn.Module's own returns Any

    def __init__(self, inputs: int, *outputs: int, zero: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.splits = outputs
        self.weight = nn.Parameter(torch.empty(sum(outputs), inputs))
        self.bias = nn.Parameter(torch.zeros(sum(outputs))) if bias else None
        self.scale: Tensor | None
        self.register_buffer("scale", None, persistent=False)
        if zero:
            nn.init.zeros_(self.weight)
        else:
            nn.init.uniform_(self.weight, -(inputs**-0.5), inputs**-0.5)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return linear(x, self.weight, self.bias, self.scale)

    def take_codes(self, codes: Int8[Tensor, "O I"], scale: Float16[Tensor, " O"]) -> None:
        """Compute with W = scale · codes, kept like this, from now on."""
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = scale.float()


def _coded(model: nn.Module) -> Iterator[tuple[str, Linear, Tensor]]:
    """The maps of a model that keep codes: the name of each one's weight, itself, and the weight in fp32."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.scale is not None:
            weight = widened(module.weight, module.scale, torch.float32)
            yield f"{name}.weight" if name else "weight", module, weight


def widen(model: nn.Module) -> None:
    """Make fp32 weights of all codes, for whoever changes them or asks for their gradients."""
    for _, module, weight in _coded(model):
        module.weight, module.scale = nn.Parameter(weight), None


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's ``state_dict`` with weights in place of codes."""
    return {**model.state_dict(), **{name: weight for name, _, weight in _coded(model)}}


class Mlp(nn.Module):
    """W₂·relu(W₁x)² (S0)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.fc = Linear(config.dim, config.hidden)
        self.proj = Linear(config.hidden, config.dim, zero=True)

    def cost(self, length: float) -> Cost:
        """relu² reads and writes the hidden channels."""
        hidden = self.fc.weight.shape[0]
        return Cost(fused=2 * hidden, eager=4 * hidden)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.proj(relu_squared(self.fc(x)))


class SwiGlu(nn.Module):
    """W₂(silu(g)·v) with [v, g] = W₁x (S4; arXiv 2002.05202)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.fc = Linear(config.dim, config.hidden, config.hidden)
        self.proj = Linear(config.hidden, config.dim, zero=True)

    def cost(self, length: float) -> Cost:
        """The gate reads two hidden channels and writes one."""
        hidden = self.proj.weight.shape[1]
        return Cost(fused=3 * hidden, eager=5 * hidden)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.proj(swiglu(self.fc(x)))


def build_mlp(config: StackConfig) -> Mlp | SwiGlu | None:
    """The MLP of a block; None if it has none."""
    if config.mlp == "none":
        return None
    return SwiGlu(config) if config.mlp == "swiglu" else Mlp(config)
