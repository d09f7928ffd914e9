"""Low-rank adapters (LoRA, arXiv 2106.09685) beside a model's matrices, a set a document, for test-time training.

Each adapted map y = W·x becomes y = W·x + B·(A·x). A is drawn once and B starts at zero, so that a fresh set changes
nothing, by a bit. The adapters hang on the maps as hooks: the model's own code and weights stay as they are.

Legend: M documents at a time (rows), N sequences of a batch (a multiple of M), R rank, I inputs, O outputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

BETAS, EPS = (0.9, 0.95), 1e-8
"""Adam's, as in training (S0)."""


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
            # the same draw on every device, and for every document
            draw = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            self._begin[name] = draw.to(weight.device)
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

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            a, b = (t[name][self._first].to(x.dtype) for t in (self.a, self.b))
            change = (x.reshape(len(a), -1, x.shape[-1]) @ a.mT) @ b.mT
            return output + change.view(output.shape)

        return add

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
