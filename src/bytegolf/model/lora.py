"""Low-rank adapters (LoRA, arXiv 2106.09685) beside a model's matrices: a set per document for test-time training, or
one for training.

Each adapted map y = W·x becomes y = W·x + B·(A·x). A is drawn once and B starts at zero, so that a fresh set changes
nothing, by a bit. The adapters hang on the maps as hooks: the model's own code and weights stay as they are.

Legend: M documents at a time (rows), N sequences of a batch (a multiple of M), R rank, I inputs, O outputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bytegolf.errors import BytegolfError
from bytegolf.model.layers import Linear
from bytegolf.model.lm import LanguageModel

PREFIX = "adapters."
"""How their names begin: adapters.a.MAP is A (R, I) of the map MAP, adapters.b.MAP its B (O, R)."""

BETAS, EPS = (0.9, 0.95), 1e-8
"""Adam's, as in training (S0)."""


def adaptable_maps(model: LanguageModel, which: str = "all") -> dict[str, Linear]:
    """The maps beside which adapters may learn, by name: "all", those of "attention" (mixers) or of an "mlp".

    Never one that says where chunks begin, so that they begin where they did. Raises BytegolfError if there are none.
    """
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


Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


def _draw(rank: int, inputs: int, generator: torch.Generator) -> Float[Tensor, "R I"]:
    """A of a fresh adapter: made on the CPU, so that it is the same whatever the device."""
    draw = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
    return cast("Tensor", draw)


def _beside(matrices: Callable[[], tuple[Float[Tensor, "M R I"], Float[Tensor, "M O R"]]]) -> Hook:
    """A hook that adds B·(A·x) to a map's output; the sequences of x are M groups of equal size."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        a, b = (each.to(x.dtype) for each in matrices())
        change = (x.reshape(len(a), -1, x.shape[-1]) @ a.mT) @ b.mT
        return output + change.view(output.shape)

    return add


class LowRank:
    """Adapters of rank R for some maps of a model and M documents, and the Adam that moves them.

    While ``attached``, a batch's sequences belong to the documents in order: N/M each.
    """

    def __init__(self, maps: Mapping[str, nn.Module], documents: int, rank: int) -> None:
        self._maps = dict(maps)
        self.documents = documents
        self._first = slice(None)
        self._begin: dict[str, Tensor] = {}
        self.a: dict[str, Float[Tensor, "M R I"]] = {}
        self.b: dict[str, Float[Tensor, "M O R"]] = {}
        generator = torch.Generator().manual_seed(0)
        for name, module in self._maps.items():
            weight: Tensor = module.weight  # type: ignore[assignment]
            outputs, inputs = weight.shape
            self._begin[name] = _draw(rank, inputs, generator).to(weight.device)  # for every document
            self.a[name] = self._begin[name].repeat(documents, 1, 1).requires_grad_()
            self.b[name] = weight.new_zeros(documents, outputs, rank).requires_grad_()
        self._moved = [*self.a.values(), *self.b.values()]
        self._mean = [torch.zeros_like(p) for p in self._moved]
        self._square = [torch.zeros_like(p) for p in self._moved]
        self._steps = self._moved[0].new_zeros(documents, 1, 1)

    @torch.no_grad()
    def reset(self, row: int) -> None:
        """Forget what was learned from the document ``row``: another starts there."""
        for name, begin in self._begin.items():
            self.a[name][row] = begin
            self.b[name][row] = 0
        for tensor in (*self._mean, *self._square, self._steps):
            tensor[row] = 0

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Within the context the adapters work."""
        hooks = [module.register_forward_hook(self._hook(name)) for name, module in self._maps.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def only(self, row: int) -> Iterator[None]:
        """Within the context all sequences belong to the document ``row``."""
        self._first = slice(row, row + 1)
        try:
            yield
        finally:
            self._first = slice(None)

    def _hook(self, name: str) -> Hook:
        return _beside(lambda: (self.a[name][self._first], self.b[name][self._first]))

    def step(self, loss: Float[Tensor, ""], lr: float) -> None:
        """One step of Adam down the gradient of ``loss``, which must be a sum over documents."""
        gradients = torch.autograd.grad(loss, self._moved)
        with torch.no_grad():
            self._steps += 1
            mean_share, square_share = (1 - beta**self._steps for beta in BETAS)
            for p, g, mean, square in zip(self._moved, gradients, self._mean, self._square, strict=True):
                mean.lerp_(g, 1 - BETAS[0])
                square.lerp_(g.square(), 1 - BETAS[1])
                p.sub_(lr * (mean / mean_share) / ((square / square_share).sqrt() + EPS))


class Adapted(nn.Module):
    """A model whose weights stay as they are, and adapters of rank R beside its ``maps``, which are trained instead.

    Its parameters are the model's own, which no longer ask for gradients, and (R, I) and (O, R) for each map.
    """

    learning_rates: ClassVar = {"adapters.": "adapter_lr"}
    """see ``training.optim``"""

    def __init__(self, model: nn.Module, maps: Mapping[str, nn.Module], rank: int, seed: int) -> None:
        super().__init__()
        self.model = model
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        a, b = nn.ParameterDict(), nn.ParameterDict()
        for name, module in maps.items():
            weight: Tensor = module.weight  # type: ignore[assignment]
            outputs, inputs = weight.shape
            key = name.replace(".", "/")  # a dictionary of parameters takes no dots
            a[key] = nn.Parameter(_draw(rank, inputs, generator).to(weight.device))
            b[key] = nn.Parameter(weight.new_zeros(outputs, rank))
            module.register_forward_hook(_beside(lambda key=key: (a[key][None], b[key][None])))  # type: ignore[misc]
        self.adapters = nn.ModuleDict({"a": a, "b": b})

    def forward(self, *inputs: Any) -> Any:
        """What the adapted model gives."""
        return self.model(*inputs)

    def state(self) -> dict[str, Tensor]:
        """The adapters by the names that ``merged`` knows."""
        return {PREFIX + name.replace("/", "."): tensor for name, tensor in self.adapters.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` gave. Raises RuntimeError, as torch's own ``load_state_dict``, where it does not."""
        own = {PREFIX + name.replace("/", "."): name for name in self.adapters.state_dict()}
        given = {own.get(name, name): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
        self.adapters.load_state_dict(given)


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights with the trained adapters among them, if any, added: W + B·A."""
    found = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}
    for name, a in state.items():
        if name.startswith(f"{PREFIX}a."):
            target = name.removeprefix(f"{PREFIX}a.")
            found[f"{target}.weight"] = found[f"{target}.weight"] + state[f"{PREFIX}b.{target}"] @ a
    return found
