"""An exponential moving average of the weights, for validation and export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bytegolf.errors import BytegolfError


class WeightAverage:
    """θ̄ ← d·θ̄ + (1 − d)·θ after each step, with d rising as (1 + t)/(10 + t) until it reaches ``decay``.

    The rise forgets the first weights, which a constant d would keep for 1/(1 − d) steps. With decay 0.99: d is 0.1 at
    the first update, 0.5 at the 9th, and 0.99 from the 891st on; after 100 updates the first weights' share is the
    product of all d so far, below 10⁻¹², and would be 0.99¹⁰⁰ = 0.37 with a constant d.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._names = [name for name, _ in model.named_parameters()]
        self._weights = [parameter.data for parameter in model.parameters()]
        self._average = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)
        self.updates += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Have the model hold the averaged weights within the context."""
        own = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, own)

    def state(self) -> dict[str, Tensor]:
        """The averaged weights by name, and the number of updates."""
        tensors = dict(zip(self._names, self._average, strict=True))
        return {**tensors, "updates": torch.tensor(self.updates)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``state`` gave (or plain weights, from which the average then starts)."""
        for name, average in zip(self._names, self._average, strict=True):
            if name not in tensors or tensors[name].shape != average.shape:
                raise BytegolfError(f"the checkpoint's averaged weights do not fit at {name}: delete the checkpoint")
        if (updates := tensors.get("updates", torch.tensor(0))).numel() != 1 or not 0 <= int(updates) < 1 << 62:
            raise BytegolfError(
                "the checkpoint's averaged weights have no valid number of updates: delete the checkpoint"
            )
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(tensors[name])
        self.updates = int(updates)
