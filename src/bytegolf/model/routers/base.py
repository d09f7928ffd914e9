"""What an HNet asks of a router: the probability that a chunk begins at each position, and where one does.

One router per file of this folder; ``build_router`` finds the one that a configuration names.

Routers of a fixed rule (``FixedRouter``) are the controls that a learned one must beat: their p is 1 where a chunk
starts and 0 elsewhere, without a gradient.

Legend: B batch, or the rows of an extension, L positions, D width, M width of a memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from bytegolf.config import RouterConfig, options_of
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.ops.autograd import wide
from bytegolf.registry import ROUTERS

THRESHOLD = 0.5
"""A chunk begins where p is at least this."""

Vectors = Float[Tensor, "B L D"]
Probabilities = Float[Tensor, "B L"]
Marks = Bool[Tensor, "B L"]
Tokens = Int[Tensor, "B L"] | None
"""The ids at the positions, which only the outermost level knows."""


@dataclass(frozen=True)
class Material:
    """What a router may be made from before training starts: nothing but the training split."""

    tokenizer: Tokenizer
    tokens: NDArray[np.uint16]
    """the beginning of the training split"""
    folder: Path
    """the data's, where further tokenizers lie"""


class Router(nn.Module, ABC):
    """Says where chunks begin, from what lies at a position and before it.

    What a router knows goes with the model, as parameters or buffers, and so into checkpoint and artifact. Subclasses
    are made with the same three arguments as this one, and registered by ``register_router``.
    """

    learned: ClassVar[bool] = False
    """whether p has a gradient, so that there are losses to train it by"""
    learning_rates: ClassVar = {"": "router_lr"}
    Options: ClassVar[type[Any] | None] = None
    """a frozen dataclass that the table ``router.options`` is read into (None: the router takes no options)"""
    receptive_field: int | None = None
    """how many positions before its own, of the vectors x, decide p; None: all of them"""

    def __init__(self, config: RouterConfig, dim: int, vocab_size: int = 0, guide: Router | None = None) -> None:
        """A router of vectors of width ``dim`` (D) at tokens of ``vocab_size`` ids, or 0 at an inner level, which sees
        no tokens; ``guide`` is a fixed rule that training may hold p against.
        """
        super().__init__()
        self.config = config
        self.guide = guide
        self.options: Any = options_of(self.Options, config.options, f"the router {config.kind!r}")

    @abstractmethod
    def forward(self, x: Vectors, first: Marks | None = None, tokens: Tokens = None) -> tuple[Probabilities, Marks]:
        """p (fp32 or wider) and the boundaries at the positions of ``x``.

        ``first`` marks positions besides the first where a document starts, whose p is 1.
        """

    @abstractmethod
    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """What is remembered of the positions before, (B, M), of ``batch`` sequences that have none."""

    @abstractmethod
    def extend(
        self, x: Vectors, memory: Tensor, first: Bool[Tensor, " B"], tokens: Tokens = None
    ) -> tuple[Probabilities, Marks, Tensor]:
        """p, the boundaries, and what is to be remembered behind each position, (B, L, M), of positions that come after
        those of ``memory`` (B, M).

        A row whose ``first`` position this is opens a chunk there, whatever its memory.
        """

    def prepare(self, material: Material) -> None:
        """Make what the rule needs; called once, before training. Raises BytegolfError where it cannot be made."""

    @property
    def calibrated(self) -> bool:
        """Whether ``calibrate`` is to be called before training, with what the model's first p are."""
        return False

    def calibrate(self, p: Float[Tensor, " X"], target: float) -> None:
        """Move p so that of positions whose probabilities are ``p`` now, one in ``target`` opens a chunk."""


def build_router(config: RouterConfig, dim: int, vocab_size: int) -> Router:
    """The router that ``config`` names. Raises BytegolfError for one that nothing registered."""
    found = ROUTERS.find(config.kind, __package__)
    if not issubclass(found, Router):
        raise BytegolfError(f"the router {config.kind!r} is no subclass of bytegolf.model.routers.base.Router")
    return found(config, dim, vocab_size)


class FixedRouter(Router):
    """A rule over token ids and positions, the same for a whole sequence and for its continuation: ``scan``."""

    receptive_field = 0  # the rule looks at no vectors; whole windows are asked again, since it may count from a start
    width: int = 1
    """M: how many integers are remembered of what came before."""

    @abstractmethod
    def scan(self, tokens: Tokens, first: Marks, memory: Int[Tensor, "B M"]) -> tuple[Marks, Int[Tensor, "B L M"]]:
        """Where chunks start, and the memory behind each position, of positions that come after those of ``memory``.

        ``first`` marks where documents start: a chunk does too, and what came before counts for nothing.
        """

    def mark(self, tokens: Tokens, first: Marks) -> Marks:
        """Where chunks start in whole sequences."""
        first = first.clone()
        first[:, 0] = True
        return self.scan(tokens, first, self.start(first.shape[0], first.device, torch.int64))[0]

    def forward(self, x: Vectors, first: Marks | None = None, tokens: Tokens = None) -> tuple[Probabilities, Marks]:
        boundary = self.mark(
            tokens, torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if first is None else first
        )
        return boundary.to(wide(x.dtype)), boundary

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, self.width, dtype=torch.int64, device=device)

    def extend(
        self, x: Vectors, memory: Tensor, first: Bool[Tensor, " B"], tokens: Tokens = None
    ) -> tuple[Probabilities, Marks, Tensor]:
        starts = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        starts[:, 0] = first
        boundary, memories = self.scan(tokens, starts, memory)
        return boundary.to(wide(x.dtype)), boundary, memories


def positions(first: Marks, before: Int[Tensor, "B 1"]) -> Int[Tensor, "B L"]:
    """Each position's number in its document, the sequence having ``before`` positions of it already."""
    index = torch.arange(first.shape[1], device=first.device).expand(first.shape)
    latest = torch.where(first, index, -1).cummax(1).values
    return torch.where(latest >= 0, index - latest, before + index)


def mix(key: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """A hash of 64 bits that wraps around: SplitMix64's multiplier, twice, with the high bits folded in between."""
    for _ in range(2):
        key = key * -4_658_895_280_553_007_687
        key = key ^ ((key >> 31) & 0x1_FFFF_FFFF)
    return key
