"""A model's step as one native call, whose results do not depend on how tokens are grouped.

``LanguageModel.step`` starts dozens of operations a token; at batch 1 these take longer than the arithmetic, and two
threads wait for each other at each. ``ExactModel`` packs the weights once, holds the states itself, and takes any
number of tokens of any number of sequences through the whole model in one call (``ops/kernels/exact_*.cpp``).

Its logits of a position are the same to the last bit whether the position comes alone or behind others in one call,
whatever sequences are beside it, and on how many threads (``kernels/exact_lanes.h`` has the rules). So a text can be
encoded many positions at a time and decoded one by one. They are those of ``LanguageModel`` up to rounding.

What it knows is a flat stack or H-Net of S0's blocks with attention, cosine routers, n-grams and chunk hashes, in fp32
on a CPU: the families of the presets cpu-demo, cpu-30min, cpu-gpt and hnet-2stage. ``stepper`` gives the model itself
for all else: other mixers, routers, soft chunking, a fixed capacity, other devices and dtypes.

Legend: B sequences of a state, R of them in a call, L tokens of each, V alphabet.
"""

from __future__ import annotations

import dataclasses
import struct
import weakref
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.model.hnet import HNet
from bytegolf.model.lm import LanguageModel
from bytegolf.model.mixers.base import Rows
from bytegolf.model.stack import Stack
from bytegolf.ops import native
from bytegolf.ops.rotary import rotary_frequencies

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
        except _UnknownError:
            return model
        _packed[model] = known
    return known[1]


_packed: weakref.WeakKeyDictionary[LanguageModel, tuple[list[tuple[int, int]], ExactModel]]
_packed = weakref.WeakKeyDictionary()


def _possible(model: LanguageModel) -> bool:
    """Whether kernels are there, and the model is where and what they can read."""
    weight = model.embedding.weight
    right = weight.device.type == "cpu" and weight.dtype == model.precision == torch.float32
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
        plan = _Plan(model)
        self.reset = model.config.reset_at_bos
        self.alphabet = model.config.vocab_size
        handle = torch.zeros(1, dtype=torch.int64)
        native.call("exact_open", _FP32, torch.tensor(plan.words, dtype=torch.int64), handle)
        self._handle = int(handle)
        self._tables = plan.tables
        """n-gram and chunk tables, which are read where they lie"""
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
        packed = (torch.from_numpy(addresses), ids.contiguous(), torch.from_numpy(there))
        native.call("exact_extend", _FP32, self._handle, *packed, batch, length, int(self.reset), threads, logits)
        return logits


class _UnknownError(Exception):
    """The kernels do not know a part of a model."""


def _known(config: Any, *names: str) -> None:
    """Raise unless all fields of a configuration but ``names`` have their default: what else there is, we ignore."""
    for field in dataclasses.fields(config):
        if field.name in names:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if getattr(config, field.name) != default:
            raise _UnknownError(field.name)


class _Plan:
    """The description of a model that ``exact_open`` reads, a word (int64) at a time; ``exact_model.h`` has the parts.

    Weights are named by the address of their fp32 rows, 0 for none; fp64 numbers are their own bits.

        model:  V, D, id of BOS (−2: none), softcap, embedding; N, bits, E, table, map (n-grams; N = 0: none); network
        network: 0 and a stack, or 1 and a level
        stack:  layers, D, H, G, hidden width, window, whether its input is normalised, rotary frequencies; for each
                layer: qkv, out, q gain, MLP in, MLP out, scales of mixer and MLP, two mixes, skip
        level:  D, D of the main network, M, whether p is shaped, sharpness, offset, query, key, residual, pad;
                bits, E, table, map (chunk hashes; E = 0: none); encoder, main network, decoder
    """

    def __init__(self, model: LanguageModel) -> None:
        self.words: list[int] = []
        self.tables: list[Tensor] = []
        self._parameters = dict(model.named_parameters())
        self._used: set[str] = set()
        self._kept: list[Tensor] = []
        config = model.config
        _known(config, "network", "vocab_size", "embed_std", "softcap", "reset_at_bos", "ngrams", "init", "soft")
        if model.soft is not None:
            raise _UnknownError("soft")
        width = model.embedding.weight.shape[1]
        # (why) without the reset no id may count as a BOS: −2 stands for it, which is nobody's
        self.words += [config.vocab_size, width, config.bos if config.reset_at_bos else -2, _bits(config.softcap)]
        self._weight("embedding.weight")
        if model.ngrams is None:
            self.words += [0] * 5
        else:
            _known(config.ngrams, "longest", "bits", "dim")
            self.words += [model.ngrams.lengths, config.ngrams.bits, config.ngrams.dim]
            self._table("ngrams.table")
            self._weight("ngrams.proj.weight")
        self._network(model.network, "network.")
        if self._used != set(self._parameters):  # a part that somebody added
            raise _UnknownError(str(set(self._parameters) - self._used))

    def _network(self, network: Any, prefix: str) -> None:
        self.words.append(int(isinstance(network, HNet)))
        (self._level if isinstance(network, HNet) else self._stack)(network, prefix)

    def _stack(self, stack: Stack, prefix: str) -> None:
        config = stack.config
        _known(config, "layers", "dim", "heads", "kv_heads", "mlp_mult", "window", "rope_base", "qk_gain", "lr_mult")
        hidden = int(config.mlp_mult * config.dim)
        self.words += [config.layers, config.dim, config.heads, config.kv_heads, hidden, config.window]
        self.words.append(int(stack.norms_input))
        frequencies = (
            rotary_frequencies(config.dim // config.heads, config.rope_base) if config.layers else torch.zeros(0)
        )
        self._tensor(frequencies if config.layers else None)
        skips = self._take(f"{prefix}skip_weights")
        for index in range(config.layers):
            block = f"{prefix}blocks.{index}."
            for name in ("mixer.qkv.weight", "mixer.proj.weight", "mixer.q_gain", "mlp.fc.weight", "mlp.proj.weight"):
                self._weight(block + name)
            self._weight(f"{block}mixer_scale")
            self._weight(f"{block}mlp_scale")
            for mix in self._take(f"{block}resid_mix"):
                self._tensor(mix)
            popped = stack.pushed <= index < 2 * stack.pushed
            self._tensor(skips[index - stack.pushed] if popped else None)

    def _level(self, level: HNet, prefix: str) -> None:
        config, router = level.config, level.config.router
        _known(config, "encoder", "router", "main", "decoder", "chunk_hash")
        # fields that matter in training only, and those below
        training = ("loss_weight", "grad_scale", "surprisal_weight", "lr_mult", "ratio", "start_target", "target_ramp")
        rules = ("whitespace", "bpe", "entropy", "options", "ratio_over", "capacity", "capacity_divisor")
        _known(router, "target", "cosine", "capacity_buckets", *training, *rules)
        learning = ("noise", "policy_weight", "policy_discount", "guide_weight", "guide_share")
        _known(router.cosine, "dim", "init", "sharpness", *learning)
        query = self._take(f"{prefix}router.q_proj.weight")
        inner = level.main.encoder.config.dim if isinstance(level.main, HNet) else level.main.config.dim
        offset = f"{prefix}router.offset"
        shift = float(self._take(offset)) if offset in self._parameters else 0.0
        shaped = router.cosine.sharpness != 1 or offset in self._parameters
        self.words += [config.encoder.dim, inner, query.shape[0], int(shaped)]
        self.words += [_bits(router.cosine.sharpness), _bits(shift)]
        self._tensor(query)
        self._weight(f"{prefix}router.k_proj.weight")
        self._weight(f"{prefix}residual.weight")
        self._tensor(self._take(f"{prefix}pad") if level.pad is not None else None)
        if level.chunk_hash is None:
            self.words += [0] * 4
        else:
            _known(config.chunk_hash, "dim", "bits")
            self.words += [config.chunk_hash.bits, config.chunk_hash.dim]
            self._table(f"{prefix}chunk_hash.table")
            self._weight(f"{prefix}chunk_hash.proj.weight")
        self._stack(level.encoder, f"{prefix}encoder.")
        self._network(level.main, f"{prefix}main.")
        self._stack(level.decoder, f"{prefix}decoder.")

    def _take(self, name: str) -> Tensor:
        """The parameter ``name``, which is now accounted for."""
        if name not in self._parameters:
            raise _UnknownError(name)
        self._used.add(name)
        return self._parameters[name].detach()

    def _tensor(self, tensor: Tensor | None) -> None:
        if tensor is None:
            self.words.append(0)
            return
        if tensor.dtype != torch.float32:
            raise _UnknownError(str(tensor.dtype))
        self._kept.append(tensor.contiguous())  # until it is packed
        self.words.append(self._kept[-1].data_ptr())

    def _weight(self, name: str) -> None:
        self._tensor(self._take(name))

    def _table(self, name: str) -> None:
        self._weight(name)
        self.tables.append(self._kept[-1])


def _bits(number: float) -> int:
    """The bits of an fp64 number as an int64."""
    return int.from_bytes(struct.pack("<d", number), "little", signed=True)
