"""What a training run adds up between two rows of metrics.jsonl.

It is saved with a checkpoint, so that a resumed run writes the very rows that an uninterrupted one would.

Legend: N chunking levels, S layers of soft chunking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bytegolf.artifact.checkpoint import described
from bytegolf.distributed import DistributedContext
from bytegolf.errors import BytegolfError


class Figures(NamedTuple):
    """What the forward passes of one step gave on this rank, on its device: means over the step's sequences."""

    loss: Float[Tensor, ""]
    """nats a token, without the routers' losses"""
    levels: Float[Tensor, "3 N"]
    """of each chunking level: see ``RouterTrace.figures``"""
    soft: Float[Tensor, "3 S"]
    """of each layer of soft chunking: means of b and of b², and the norm of its boundary predictor's gradient"""


@dataclass
class MetricAccumulator:
    """The steps since the last row: means over all ranks, once they are settled."""

    losses: list[float] = field(default_factory=list)
    """one a step"""
    rates: list[list[float]] = field(default_factory=list)
    """one a step and chunking level"""
    truncated: list[list[float]] = field(default_factory=list)
    """boundaries a sequence beyond the capacity; one a step and chunking level"""
    truncated_sequences: list[list[float]] = field(default_factory=list)
    """share of sequences that had some; one a step and chunking level"""
    soft: list[list[float]] = field(default_factory=list)
    """of soft chunking, one a step: each layer's mean of b, then of b², then the boundary predictor's gradient norm"""
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0
    _pending: list[Tensor] = field(default_factory=list)
    _pending_tokens: int = 0
    _pending_bytes: int = 0
    _levels: int = 0

    def add(self, figures: Figures, tokens: int, size: int) -> None:
        """Take in one step of this rank, which read so many tokens and bytes. Fetches nothing."""
        self._pending.append(torch.cat((figures.loss.reshape(1), figures.levels.flatten(), figures.soft.flatten())))
        self._levels = figures.levels.shape[1]
        self._pending_tokens += tokens
        self._pending_bytes += size

    def settle(self, world: DistributedContext) -> tuple[int, int]:
        """Fetch what is pending and put the ranks together; the tokens and bytes that this adds. All ranks call it."""
        rows = torch.stack(self._pending).tolist() if self._pending else []
        mine = [value / world.size for row in rows for value in row]
        tokens, size, *values = world.total(self._pending_tokens, self._pending_bytes, *mine)
        width = len(values) // len(rows) if rows else 1
        levels = self._levels
        for first in range(0, len(values), width):
            self.losses.append(values[first])
            for kind, found in enumerate((self.rates, self.truncated, self.truncated_sequences)):
                at = first + 1 + kind * levels
                found.append(values[at : at + levels])
            self.soft.append(values[first + 1 + 3 * levels : first + width])
        self._pending, self._pending_tokens, self._pending_bytes = [], 0, 0
        self.tokens += int(tokens)
        self.bytes += int(size)
        return int(tokens), int(size)

    def mean_loss(self) -> float:
        """Nats a token."""
        return math.fsum(self.losses) / len(self.losses)

    def mean_rates(self) -> list[float]:
        """Boundaries a position at each chunking level."""
        return _means(self.rates)

    def truncation(self, seq_len: int) -> tuple[list[int], list[float]]:
        """Boundaries beyond the capacity at each chunking level, and the share of sequences that had some."""
        sequences = self.tokens / seq_len
        return [round(mean * sequences) for mean in _means(self.truncated)], _means(self.truncated_sequences)

    def soft_layers(self) -> list[dict[str, float]]:
        """What each layer of soft chunking did: mean and standard deviation of b, gradient norm of its predictor."""
        means = _means(self.soft)
        layers = len(means) // 3
        parts = zip(*(means[part * layers : (part + 1) * layers] for part in range(3)), strict=True)
        return [{"b": b, "std": max(0.0, square - b * b) ** 0.5, "gradient": norm} for b, square, norm in parts]

    def state(self) -> dict[str, Any]:
        """The settled part as plain data."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    @staticmethod
    def of(state: Any, levels: int, soft_layers: int, path: Path) -> MetricAccumulator:
        """The window that ``state`` described in the checkpoint ``path`` of a model with so many levels and layers.

        Raises BytegolfError if it did not.
        """
        window = described(MetricAccumulator, state, path)
        steps = len(window.losses)
        for rows, width in (
            *((kind, levels) for kind in (window.rates, window.truncated, window.truncated_sequences)),
            (window.soft, 3 * soft_layers),
        ):
            if len(rows) != steps or any(len(row) != width for row in rows):
                raise BytegolfError(f"the window in the checkpoint {path} does not fit the model: delete its folder")
        return window


def _means(steps: list[list[float]]) -> list[float]:
    return [math.fsum(level) / len(level) for level in zip(*steps, strict=True)]
