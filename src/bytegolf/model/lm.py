"""The language model: embedding and n-gram embeddings, a flat or hierarchical network, a head, softcapped logits.

Legend: B batch, L positions, V alphabet, D width.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bytegolf.config import CapacityMode, ModelConfig, check_fixed_capacity, outer_dim
from bytegolf.errors import BytegolfError
from bytegolf.model.embed import NOTHING, NgramEmbedding, embed_step
from bytegolf.model.hnet import HNet, HNetState, build_network
from bytegolf.model.init import published_init
from bytegolf.model.layers import Linear, declare
from bytegolf.model.mixers.base import Rows, StackState
from bytegolf.model.routers.base import Material
from bytegolf.model.routers.losses import policy_loss, surprisal_loss
from bytegolf.model.soft_chunk import SoftChunker, SoftState
from bytegolf.model.stack import Stack
from bytegolf.model.trace import RouterTrace, SoftTrace, StepTrace
from bytegolf.ops import native
from bytegolf.ops.autograd import wide
from bytegolf.ops.cross_entropy import softcap_cross_entropy
from bytegolf.ops.embedding import normed_embedding

CALIBRATION_LENGTH, CALIBRATION_ROWS = 1024, 8
"""The sequences of training text, and how many, on which a calibrated router is set to its target rate."""


@dataclass(frozen=True)
class Forward:
    """What a forward pass gives."""

    logits: Float[Tensor, "B L V"]
    """before the softcap, in the compute dtype; ``LanguageModel.cap`` applies it"""
    traces: list[RouterTrace]
    """one per chunking level, outermost first; empty for a flat model"""
    soft: list[SoftTrace] = field(default_factory=list)
    """one per layer of soft chunking, first to last"""

    def router_loss(self) -> Tensor | float:
        """The sum of the levels' weighted ratio losses."""
        return sum((trace.loss for trace in self.traces), 0.0)


@dataclass
class ModelState:
    """The state of step-wise inference for a batch of sequences."""

    network: StackState | HNetState
    traces: list[StepTrace]
    """of the last step, outermost level first"""
    history: Int[Tensor, "B H"]
    """the last ids of each sequence, as far back as an n-gram reaches (H = 0 without n-grams)"""
    soft: SoftState | None = None
    """of soft chunking, where there is some"""
    length: int | None = None
    """how many tokens it takes, under a fixed capacity (None: any number)"""


class LanguageModel(nn.Module):
    """A causal language model over token ids.

    ``precision`` is the dtype of activations and matrix products (parameters stay fp32); set it before use.
    """

    learning_rates: ClassVar = {"embedding.": "embed_lr", "head.": "embed_lr"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.precision = torch.float32
        self.observers: list[Callable[[Forward], None]] = []
        """each is told of the forward pass whenever losses are asked for"""
        dim = outer_dim(config.network)
        self.embedding = nn.Embedding(config.vocab_size, dim)
        declare(self, "embedding", "embedding.weight")
        nn.init.normal_(self.embedding.weight, std=config.embed_std)
        self.ngrams = NgramEmbedding(config.ngrams, dim, config.bos) if config.ngrams.longest > 1 else None
        self.network = build_network(config.network, config.vocab_size)
        self.soft = SoftChunker(dim, config.soft) if config.soft.layers else None
        if self.soft and not config.soft.norm:
            outermost = self.network if isinstance(self.network, Stack) else self.network.encoder
            outermost.norms_input = False
        self.head = None if config.tied else Linear(dim, config.vocab_size)
        if self.head is not None:
            declare(self, "embedding", "head.weight")
        if config.init == "hnet":
            published_init(self, config)

    @property
    def receptive_field(self) -> int | None:
        """How many ids before its own a position's embedding depends on; None: all of them."""
        if self.soft and self.config.soft.blend == "chunk":
            return None
        return self._context + self.config.soft.layers

    @property
    def _context(self) -> int:
        """How many ids before its own a position's n-grams reach."""
        return self.ngrams.context if self.ngrams else 0

    def embed(self, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """The network's input for ``ids``, before which there is nothing."""
        return self.embed_traced(ids)[0]

    def embed_traced(self, ids: Int[Tensor, "B L"]) -> tuple[Float[Tensor, "B L D"], list[SoftTrace]]:
        """``embed``, and what soft chunking did."""
        x = self.look_up(ids)
        if self.soft is None:
            return x, []
        found: tuple[Tensor, list[SoftTrace]] = self.soft(
            x, ids == self.config.bos if self.config.reset_at_bos else None
        )
        return found

    def look_up(self, ids: Int[Tensor, "B L"], history: Int[Tensor, "B H"] | None = None) -> Float[Tensor, "B L D"]:
        """The embedding of ``ids`` and of the n-grams that end there; ``history`` comes before (None: nothing does)."""
        if self.config.embed_norm:
            x = normed_embedding(ids, self.embedding.weight, self.precision)
        else:
            x = F.embedding(ids, self.embedding.weight).to(self.precision)
        if self.ngrams is None:
            return x
        if history is None:
            history = self._no_history(len(ids))
        found: Tensor = self.ngrams(torch.cat((history, ids), 1), self.config.reset_at_bos, self.precision)
        return x + found

    def _no_history(self, batch: int) -> Int[Tensor, "B H"]:
        return torch.full((batch, self._context), NOTHING, device=self.embedding.weight.device)

    def project(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """The logits of the network's output, before the softcap."""
        if self.head is not None:
            return self.head(x)
        return F.linear(x, self.embedding.weight.to(x.dtype))

    def forward(self, ids: Int[Tensor, "B L"]) -> Forward:
        """Logits of the token after each position, from the tokens up to it.

        Raises BytegolfError if there are none.
        """
        if not ids.numel():
            raise BytegolfError(f"a batch of {ids.shape[0]} sequences of {ids.shape[1]} tokens is empty: give some")
        documents = (ids == self.config.bos).cumsum(1) if self.config.reset_at_bos else None
        x, soft = self.embed_traced(ids)
        traces: list[RouterTrace] = []
        x = self.network(x, documents, None, traces, ids)
        return Forward(self.project(x), traces, soft)

    def losses(self, out: Forward, targets: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """−log p(target) at each position, in nats and fp32."""
        for observe in self.observers:
            observe(out)
        flat = softcap_cross_entropy(out.logits.flatten(0, 1), targets.flatten(), self.config.softcap)
        return flat.view(targets.shape)

    def objective(self, out: Forward, losses: Float[Tensor, "B L"]) -> Float[Tensor, ""]:
        """What training minimises, given ``losses`` of the forward pass ``out``: their mean and the routers' losses."""
        total = losses.mean() + out.router_loss()
        if self.soft:
            total = total + self.soft.loss(out.soft, losses)
        if isinstance(self.network, HNet) and self.network.router.learned:
            settings = self.network.config.router
            if settings.surprisal_weight > 0:
                total = total + settings.surprisal_weight * surprisal_loss(out.traces[0].p, losses)
            if settings.cosine.policy_weight > 0:
                trace = out.traces[0]
                total = total + settings.cosine.policy_weight * policy_loss(
                    trace.p, trace.proposed, losses, settings.cosine.policy_discount
                )
        return total

    def cap(self, logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B V"]:
        """The softcap, in at least fp32: cap·tanh(z/cap) (S0)."""
        logits = logits.to(wide(logits.dtype))
        cap = self.config.softcap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def levels(self) -> list[HNet]:
        """The chunking levels, outermost first; empty for a flat model."""
        return [module for module in self.modules() if isinstance(module, HNet)]

    @torch.no_grad()
    def prepare_routers(self, material: Material) -> None:
        """Have each router make what it needs before training begins, the outermost first. Raises BytegolfError if one
        cannot. A calibrated router sees a few sequences of the text.
        """
        length = max(1, min(CALIBRATION_LENGTH, len(material.tokens)))
        rows = material.tokens[: len(material.tokens) // length * length].reshape(-1, length)
        for depth, level in enumerate(self.levels()):
            level.router.prepare(material)
            if level.router.calibrated and len(rows):
                ids = torch.from_numpy(rows[:CALIBRATION_ROWS].astype(np.int64)).to(self.embedding.weight.device)
                trace = self(ids).traces[depth]
                seen = trace.p < 1
                level.router.calibrate(trace.p[seen if trace.valid is None else seen & trace.valid], level.target)

    def set_capacity(self, mode: CapacityMode | Literal[""] = "", divisor: float = 0.0) -> None:
        """Give every level another ``router.capacity`` and ``capacity_divisor`` from now on; "" and 0 leave them.

        Raises BytegolfError for a fixed capacity where documents must not see each other.
        """
        if mode == "fixed" and divisor != 1:  # room for every position truncates nothing
            check_fixed_capacity(self.config, "the capacity")
        for level in self.levels():
            level.capacity = level.capacity.changed(mode, divisor)

    @contextlib.contextmanager
    def capacity(self, mode: CapacityMode | Literal[""] = "", divisor: float = 0.0) -> Iterator[None]:
        """``set_capacity`` for as long as the context lasts."""
        before = [level.capacity for level in self.levels()]
        self.set_capacity(mode, divisor)
        try:
            yield
        finally:
            for level, capacity in zip(self.levels(), before, strict=True):
                level.capacity = capacity

    def start(self, batch: int, length: int | None = None) -> ModelState:
        """An empty state for ``batch`` sequences.

        ``length`` is how many tokens each is going to have: a fixed capacity is a share of it, and ``step`` then gives
        what ``forward`` gives for sequences of that length, and takes no more. Without such a capacity there is room
        for so many, and more make the state grow.

        Raises BytegolfError under a fixed capacity without a length.
        """
        fixed = any(level.capacity.mode == "fixed" for level in self.levels())
        if fixed and length is None:
            raise BytegolfError(
                "this model's chunks have a fixed capacity, a share of the sequence's length: say the length that "
                "steps are to go up to, or set the capacity to exact"
            )
        device = self.embedding.weight.device
        state = self.network.start(batch, device, self.precision, length)
        soft = self.soft.start(batch, device, self.precision) if self.soft else None
        return ModelState(state, [], self._no_history(batch), soft, length if fixed else None)

    def fork(self, state: ModelState, draft: bool = False) -> ModelState:
        """A copy of ``state`` from which one may go on; the original is as it was when one comes back to it.

        With ``draft``, steps of the copy, which must be of one sequence, leave the main network out: it shares that
        one's state, unseen. Raises BytegolfError for a draft of a flat model, which has nothing to leave out.
        """
        if not draft:
            return copy.deepcopy(state)
        if not isinstance(state.network, HNetState):
            raise BytegolfError("a flat model has no outer networks to draft with: generate without drafts")
        found = copy.deepcopy(state, {id(state.network.main): state.network.main})
        assert isinstance(found.network, HNetState)
        found.network.drafting = True
        return found

    @torch.no_grad()
    def step(self, ids: Int[Tensor, " R"], state: ModelState, rows: Rows | None = None) -> Float[Tensor, "R V"]:
        """Feed one token to each of the sequences ``rows`` (None: all) of ``state``: ``extend`` by one token."""
        return self.extend(ids.unsqueeze(1), state, rows)[:, 0]

    @torch.no_grad()
    def extend(
        self, ids: Int[Tensor, "R L"], state: ModelState, rows: Rows | None = None, counts: Rows | None = None
    ) -> Float[Tensor, "R L V"]:
        """Feed tokens to the sequences ``rows`` (None: all) of ``state``; the softcapped logits behind each token, as
        ``forward`` gives at that position.

        Of a row's L tokens the first ``counts`` are there (None: all) and the rest is padding, whose logits mean
        nothing. The state is changed in place, and is what L steps would have made of it. Raises BytegolfError beyond
        the length of a fixed capacity.
        """
        state.traces = []
        if state.length is not None:
            _check_length(state, rows, ids.shape[1] if counts is None else counts)
        if not self.config.reset_at_bos:
            return self._extend(ids, state, rows, counts)
        every = np.arange(ids.shape[0]) if rows is None else rows
        there = np.full(len(every), ids.shape[1]) if counts is None else counts
        starts = (ids == self.config.bos).cpu().numpy()
        cuts = [0, *(int(at) for at in np.flatnonzero(starts.any(0)) if at), ids.shape[1]]
        pieces = []
        for start, end in itertools.pairwise(cuts):  # a document's first token is the first of a piece
            fresh = every[starts[:, start] & (start < there)]
            state.network.reset(fresh)
            if state.soft:
                state.soft.reset(fresh)
            left = np.clip(there - start, 0, end - start)
            live = left > 0
            if live.all():
                padded = (left < end - start).any()
                pieces.append(self._extend(ids[:, start:end], state, rows, left if padded else None))
                continue
            pick = torch.from_numpy(live).to(ids.device)
            found = self._extend(ids[pick, start:end], state, every[live], left[live])
            pieces.append(found.new_zeros(len(every), *found.shape[1:]).index_put((pick,), found))
        return torch.cat(pieces, 1)

    def _extend(self, ids: Tensor, state: ModelState, rows: Rows | None, counts: Rows | None) -> Tensor:
        """``extend`` by tokens of which none but a row's first starts a document, and none of no tokens."""
        x = self._look_up_next(ids, state, rows, counts)
        if self.soft and state.soft:
            x = self.soft.extend(x, state.soft, rows, counts)
        x = self.network.extend(x, state.network, rows, counts, state.traces, ids)
        return self.cap(self.project(x))

    def _look_up_next(self, ids: Tensor, state: ModelState, rows: Rows | None, counts: Rows | None) -> Tensor:
        if self.config.embed_norm and native.one_position(ids, self.embedding.weight, self.precision):
            history = state.history[0 if rows is None else int(rows[0])]
            settings = (self.embedding.weight, self.ngrams, self.config.reset_at_bos, self.precision)
            return embed_step(int(ids), history, *settings)
        if not self._context:
            return self.look_up(ids)
        every = slice(None) if rows is None else torch.from_numpy(rows)
        history = state.history[every]
        x = self.look_up(ids, history)
        latest = torch.cat((history, ids), 1)
        if counts is not None:
            last = torch.from_numpy(counts).to(ids.device).unsqueeze(1)
            latest = latest.gather(1, last + torch.arange(self._context, device=ids.device))
        state.history[every] = latest[:, -self._context :]
        return x


def _check_length(state: ModelState, rows: Rows | None, more: Rows | int) -> None:
    assert isinstance(state.network, HNetState)
    taken = state.network.encoder.lengths[slice(None) if rows is None else rows]
    if (taken + more).max() > state.length:
        raise BytegolfError(
            f"the state was started for sequences of {state.length} tokens, and its fixed capacity is a share of "
            "that: start one for more, or set the capacity to exact"
        )


class _Undrawn(TorchFunctionMode):
    """Makes ``nn.init`` leave tensors as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


def outline(config: ModelConfig) -> LanguageModel:
    """The model on the meta device: names and shapes without storage.

    Nothing is drawn: drawing on that device would import torch's compiler, which takes longer than all the rest.
    """
    with torch.device("meta"), _Undrawn():
        return LanguageModel(config)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters (a tied tensor counts once)."""
    return sum(parameter.numel() for parameter in model.parameters())
