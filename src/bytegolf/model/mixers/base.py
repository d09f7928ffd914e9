"""What a block asks of a mixer, the part that takes information from earlier positions to later ones.

A mixer is one file with one class:

    @register_mixer("ema")
    class MovingAverage(Mixer[EmaState]):
        def __init__(self, config): ...
        def forward(self, x, documents=None): ...           # whole sequences
        def start(self, batch, device, dtype, length=0): ...    # an empty state of a sequence, or many
        def extend(self, x, state, span): ...               # the next positions: what forward gives there

and ``kind = "ema"`` in the configuration of a stack chooses it. Everything else has defaults: linear maps are moved by
Muon and stored as weights, vectors by Adam and in fp32. A tensor that is special says so: ``model.layers.declare`` how
the artifact stores it, ``learning_rates`` (see ``training.optim``) how it is trained, ``cost`` (``model.layers.Cost``)
what it computes besides its linear maps.

Legend: B batch, L positions, D width, R rows of an extension, N last positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from bytegolf.config import StackConfig, options_of
from bytegolf.errors import BytegolfError
from bytegolf.registry import MIXERS

Rows = NDArray[np.int64]
"""Numbers of sequences of a state, or one count per sequence; (R,), on the host."""

State = TypeVar("State")
"""What one mixer remembers of B sequences: a dataclass whose tensors have B as their first axis."""


@dataclass
class StackState:
    """What a stack remembers: how many positions each sequence has had, and what its mixers do.

    How many positions each sequence has had is kept on the host, so that a step asks the device for nothing.
    """

    lengths: Rows
    blocks: list[Any]
    """each mixer's state"""
    shared: Any
    """what all mixers of the stack use (``Mixer.share``)"""
    kinds: dict[str, StackState] = field(default_factory=dict)
    """where the stack has several kinds of mixers: each kind's part of this state, with the same ``lengths``"""

    def reset(self, rows: Rows) -> None:
        """Forget the sequences ``rows``: a new document starts in them."""
        self.lengths[rows] = 0


@dataclass(frozen=True)
class Span:
    """L new positions of R sequences of a state: the same for every block of a stack, so worked out once.

    For instance, a state of B = 3 sequences of 5, 0 and 2 positions, of which rows = [0, 1] get L = 4 more, counts =
    [4, 1] of them real: ``index`` is [0, 1], ``first`` [False, True] and ``ends`` [4, 1]. The mixer starts sequence 1
    afresh, whatever its state holds, and leaves sequence 1's state as it is behind the first of its four positions.
    """

    index: Tensor | slice
    """the sequences, as an index into the first axis of a state's tensors"""
    first: Bool[Tensor, " R"]
    """whether nothing came before in a sequence: what a state holds of it is of a document that is over"""
    ends: Int[Tensor, " R"]
    """how many of the L positions are there; the rest is padding, which leaves no trace"""

    @staticmethod
    def of(state: StackState, rows: Rows | None, counts: Rows | None, length: int, device: torch.device) -> Span:
        """Of the sequences ``rows`` (None: all) with ``counts`` (None: ``length``) new positions."""
        at = state.lengths if rows is None else state.lengths[rows]
        return Span(
            index=slice(None) if rows is None else torch.from_numpy(rows).to(device),
            first=torch.from_numpy(at == 0).to(device),
            ends=torch.from_numpy(np.full(len(at), length) if counts is None else counts).to(device),
        )


class Mixer(nn.Module, ABC, Generic[State]):
    """Takes (B, L, D) to (B, L, D), so that each position depends on earlier ones only."""

    Options: ClassVar[type[Any] | None] = None
    """a frozen dataclass that the table ``options`` of the stack is read into (None: the mixer takes no options)"""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.options: Any = options_of(self.Options, config.options, f"the mixer {config.kind!r}")

    @property
    def receptive_field(self) -> int | None:
        """How many positions before its own an output depends on; None: all of them."""
        return None

    @abstractmethod
    def forward(self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        """Mix whole sequences; ``documents`` numbers each position's document, and none sees another's (None: all
        one)."""

    @abstractmethod
    def start(self, batch: int, device: torch.device, dtype: torch.dtype, length: int = 0) -> State:
        """An empty state for ``batch`` sequences; ``length`` is how many positions are expected, 0 = unknown."""

    @abstractmethod
    def extend(self, x: Float[Tensor, "R L D"], state: State, span: Any) -> Float[Tensor, "R L D"]:
        """The next positions of the sequences that ``span`` names: the result of ``forward`` there. ``state``, of all
        sequences, is changed in place.
        """

    def tail(
        self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None, keep: int
    ) -> Float[Tensor, "B N D"]:
        """The last ``keep`` (N) positions of ``forward``; cheaper, where a mixer knows how."""
        return self.forward(x, documents)[:, x.shape[1] - keep :]

    def see(self, window: int) -> None:
        """From now on each position depends on the last ``window`` ones, itself included (0: all).

        What a mixer does that forgets by itself: nothing.
        """

    @classmethod
    def share(cls, config: StackConfig, device: torch.device, dtype: torch.dtype, length: int) -> Any:
        """What the states of all blocks of a stack have in common; None if nothing."""
        return None

    @classmethod
    def span(cls, state: StackState, rows: Rows | None, counts: Rows | None, length: int, device: torch.device) -> Any:
        """What ``extend`` gets of the new positions, worked out once for all blocks of a stack."""
        return Span.of(state, rows, counts, length, device)

    @classmethod
    def native_step(
        cls, blocks: Sequence[Any], skip_weights: Tensor, x: Tensor, state: StackState, rows: Rows | None
    ) -> Float[Tensor, "1 1 D"] | None:
        """A kernel for one position of one sequence through all blocks (``model.stack.Block``) of a stack, whose state
        takes it in; None if there is none for ``x``, and ``extend`` is to do it.
        """
        return None


def mixer_class(config: StackConfig) -> type[Mixer[Any]]:
    """The mixer that a stack is configured with. Raises BytegolfError for one that nothing registered."""
    found = MIXERS.find(config.kind, __package__)
    if not issubclass(found, Mixer):
        raise BytegolfError(f"the mixer {config.kind!r} is no subclass of bytegolf.model.mixers.base.Mixer")
    return found
