"""A model's step as one native call, whose results do not depend on how tokens are grouped.

``LanguageModel.step`` starts dozens of operations a token; at batch 1 these take longer than the arithmetic, and two
threads wait for each other at each. ``ExactModel`` packs the weights once, holds the states itself, and takes any
number of tokens of any number of sequences through the whole model in one call (``ops/kernels/exact_*.cpp``).

Its logits of a position are the same to the last bit whether the position comes alone or behind others in one call,
whatever sequences are beside it, and on how many threads (``kernels/exact_lanes.h`` has the rules). So a text can be
encoded many positions at a time and decoded one by one. They are those of ``LanguageModel`` up to rounding.

What it knows (``native_plan``) is flat models and H-Nets in fp32 on a CPU, of S0's blocks or of the public H-Nets'
(S4: Mamba-2, attention and SwiGLU on a residual stream). S4's matrices may be in bf16 or int8 codes and are read where
they lie, by as many threads as torch has: they are neither copied nor widened. ``stepper`` gives the model itself for
all else: other mixers, routers, soft chunking, a fixed capacity, other devices and dtypes.

Legend: B sequences of a state, R of them in a call, L tokens of each, V alphabet.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.infer.native_plan import Plan, UnknownPartError
from bytegolf.model.lm import LanguageModel
from bytegolf.model.mixers.base import Rows
from bytegolf.ops import native

TOKENS_PER_THREAD = 128
"""What a thread is worth starting for: milliseconds of work, as it waits for the others once a call, and on a machine
whose cores are busy that wait is long (16 tokens on two threads: a tenth of the pace of one)."""


@runtime_checkable
class Stepper(Protocol):
    """What generation and compression use of a model."""

    def start(self, batch: int, length: int | None = None) -> Any:
        """An empty state for ``batch`` sequences, of ``length`` tokens if that is known."""

    def step(self, ids: Int[Tensor, " R"], state: Any, rows: Rows | None = None) -> Float[Tensor, "R V"]:
        """Feed one token to each of the sequences ``rows`` (None: all): the softcapped logits of the next."""

    def extend(
        self, ids: Int[Tensor, "R L"], state: Any, rows: Rows | None = None, counts: Rows | None = None
    ) -> Float[Tensor, "R L V"]:
        """Feed the first ``counts`` (None: all) of L tokens to each; the logits behind each."""

    def fork(self, state: Any, draft: bool = False) -> Any:
        """A copy of ``state`` to go on from and to come back from; with ``draft``, without the main network."""


def stepper(model: LanguageModel) -> Stepper:
    """The fastest way to take ``model`` on token by token: ``ExactModel`` where it can be, else the model itself.

    It is packed once per model, and again when weights have changed since.
    """
    if not _possible(model):
        return model
    stamp = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in model.parameters()]
    known = _packed.get(model)
    if known is None or known[0] != stamp:
        try:
            known = (stamp, ExactModel(model))
        except UnknownPartError:
            return model
        _packed[model] = known
    return known[1]


_packed: weakref.WeakKeyDictionary[LanguageModel, tuple[list[tuple[int, int]], ExactModel]]
_packed = weakref.WeakKeyDictionary()


def _possible(model: LanguageModel) -> bool:
    """Whether kernels are there, and the model is where and what they can read."""
    weight = model.embedding.weight
    kinds = (torch.float32, torch.bfloat16)
    right = weight.device.type == "cpu" and weight.dtype in kinds and model.precision == torch.float32
    return right and all(level.capacity.mode != "fixed" for level in model.levels()) and native.why_not() is None


@dataclass(frozen=True)
class ExactState:
    """What is remembered of B sequences, in the kernels' own memory."""

    addresses: Int[np.ndarray, " B"]

    def __post_init__(self) -> None:
        weakref.finalize(self, _free, self.addresses)


def _free(addresses: Int[np.ndarray, " B"]) -> None:
    native.call("exact_forget", _FP32, torch.from_numpy(addresses), len(addresses))


_FP32 = torch.empty(0)


class ExactModel:
    """A LanguageModel packed for the exact kernels; its weights are those of the moment when this was made.

    Raises an internal error for a model that they do not know: see ``stepper``.
    """

    def __init__(self, model: LanguageModel) -> None:
        plan = Plan(model)
        self.reset = model.config.reset_at_bos
        self.alphabet = model.config.vocab_size
        handle = torch.zeros(1, dtype=torch.int64)
        native.call("exact_open", _FP32, torch.tensor(plan.words, dtype=torch.int64), handle)
        self._handle = int(handle)
        self._there = plan.there
        """n-gram and chunk tables, and matrices of S4's blocks, which are read where they lie"""
        self._shared = plan.shared
        self._levels = 1 + len(model.levels())
        weakref.finalize(self, native.call, "exact_close", _FP32, self._handle)

    def start(self, batch: int, length: int | None = None) -> ExactState:
        """An empty state for ``batch`` sequences."""
        addresses = torch.zeros(batch, dtype=torch.int64)
        native.call("exact_start", _FP32, self._handle, batch, addresses)
        return ExactState(addresses.numpy())

    def step(self, ids: Int[Tensor, " R"], state: ExactState, rows: Rows | None = None) -> Float[Tensor, "R V"]:
        """``LanguageModel.step``."""
        return self.extend(ids.unsqueeze(1), state, rows)[:, 0]

    def extend(
        self, ids: Int[Tensor, "R L"], state: ExactState, rows: Rows | None = None, counts: Rows | None = None
    ) -> Float[Tensor, "R L V"]:
        """``LanguageModel.extend``; the logits of padding are 0."""
        batch, length = ids.shape
        native.check_range(ids, self.alphabet, "id")
        addresses = state.addresses if rows is None else state.addresses[rows]
        assert len(addresses) == batch
        there = np.full(batch, length) if counts is None else counts.astype(np.int64)
        logits = (
            torch.zeros(batch, length, self.alphabet)
            if counts is not None
            else torch.empty(batch, length, self.alphabet)
        )
        threads = max(1, min(torch.get_num_threads(), batch * length // TOKENS_PER_THREAD, batch))
        if self._shared:  # within products: each weight is read once for all sequences
            threads = 1
        packed = (torch.from_numpy(addresses), ids.contiguous(), torch.from_numpy(there))
        native.call("exact_extend", _FP32, self._handle, *packed, batch, length, int(self.reset), threads, logits)
        return logits

    def fork(self, state: ExactState, draft: bool = False) -> ExactState:
        """``LanguageModel.fork``: of the two, one goes on until one comes back to the other; they take no turns."""
        addresses = torch.zeros(len(state.addresses), dtype=torch.int64)
        native.call("exact_fork", _FP32, torch.from_numpy(state.addresses), len(state.addresses), int(draft), addresses)
        return ExactState(addresses.numpy())

    def positions(self, state: ExactState) -> list[list[int]]:
        """For each sequence, how many positions of each level it has had: tokens, chunks, chunks of chunks.

        A level that begins with an encoder without blocks counts as well.
        """
        found = torch.zeros(len(state.addresses), self._levels, dtype=torch.int64)
        native.call(
            "exact_positions", _FP32, torch.from_numpy(state.addresses), len(state.addresses), self._levels, found
        )
        return found.tolist()
