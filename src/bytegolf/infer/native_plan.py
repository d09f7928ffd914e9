"""What the whole-model step has to know of a model (``native_step``): a description that ``exact_open`` reads.

It is a list of words (int64): numbers, fp64 numbers as their own bits, and weights by their address, 0 for none.
Vectors and S0's matrices are fp32, and the kernels copy them. A matrix is two words, how it is kept and its address: 0
copied and packed, 1 fp32 read where it lies, 2 bf16 read where it lies, 3 int8 codes read where they lie, with the
address of their scales as a third word; the latter three are S4's.

    model:   V, D, id of BOS (−2: none), softcap, embedding, whether it is normed, head; N, bits, E, table, map
             (n-grams; N = 0: none, and no map follows); network
    network: 0 and a stage, or 1 and a level
    stage:   0 and a stack, or 1 and a pre-norm stack
    stack:   layers, D, H, G, hidden width, window, whether its input is normed, rotary frequencies; for each layer:
             qkv, out, q gain, MLP in, MLP out, scales of mixer and MLP, two mixes, skip
    pre-norm stack: layers, D, ε, gain at the end; for each layer: gain; 0 and attention, or 1 and Mamba-2; hidden
             width of the MLP (0: none), and its gain, in, out
    attention: H, G, window, rotated dimensions, whether clockwise, frequencies, qkv, out
    Mamba-2: H, P, N, K, in, taps (K, X), their bias, bias of dt, log a of dt = 1, D, gain, out
    level:   D, D of the main network, M, whether a boundary takes more than ½, whether z̄ starts from 0, whether p is
             shaped, sharpness, offset, map of the position, of the one before it, residual, its bias, pad; bits, E,
             table, map (chunk hashes; E = 0: none, and no map follows); encoder, main network, decoder
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import torch
from torch import Tensor

from bytegolf.model.hnet import HNet
from bytegolf.model.lm import LanguageModel
from bytegolf.model.mixers.attention import Attention
from bytegolf.model.mixers.mamba2 import Mamba2
from bytegolf.model.stack import PreNormStack, Stack
from bytegolf.ops.rotary import rotary_frequencies

PACKED, SINGLE, HALF, CODES = range(4)
"""How a matrix is kept (``Matrix::Kept`` in kernels/exact_lanes.h)."""


class UnknownPartError(Exception):
    """The kernels do not know a part of a model."""


def _known(config: Any, *names: str) -> None:
    """Raise unless all fields of a configuration but ``names`` have their default: what else there is, we ignore."""
    for field in dataclasses.fields(config):
        if field.name in names:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if getattr(config, field.name) != default:
            raise UnknownPartError(field.name)


class Plan:
    """The description of a model; see the module. Raises UnknownPartError."""

    def __init__(self, model: LanguageModel) -> None:
        self.words: list[int] = []
        self.there: list[Tensor] = []
        """what is read where it lies, for as long as the kernels are used"""
        self.shared = False
        """whether matrices are among these"""
        self._parameters = dict(model.named_parameters())
        self._buffers = dict(model.named_buffers())
        self._used: set[str] = set()
        self._kept: list[Tensor] = []
        config = model.config
        fields = ("network", "vocab_size", "embed_std", "softcap", "reset_at_bos", "ngrams", "init", "soft", "bos")
        _known(config, *fields, "tied", "embed_norm")
        if model.soft is not None:
            raise UnknownPartError("soft")
        width = model.embedding.weight.shape[1]
        # (why) without the reset no id may count as a BOS: −2 stands for it, which is nobody's
        self.words += [config.vocab_size, width, config.bos if config.reset_at_bos else -2, _bits(config.softcap)]
        embedding = self._take("embedding.weight").float()
        self._vector(embedding)
        self.words.append(int(config.embed_norm))
        outermost = model.network.encoder if isinstance(model.network, HNet) else model.network
        there = isinstance(outermost, PreNormStack)
        if model.head is not None:
            self._matrix("head.weight", there)
        else:
            self._matrix("embedding.weight", there)
        if model.ngrams is None:
            self.words += [0] * 4
        else:
            of_training = ("dropout", "start", "folds", "scale")
            _known(config.ngrams, "longest", "bits", "dim", *of_training)
            self.words += [model.ngrams.lengths, config.ngrams.bits, config.ngrams.dim]
            self._table("ngrams.table")
            self._matrix("ngrams.proj.weight", there)
        self._network(model.network, "network.")
        if self._used != set(self._parameters):  # a part that somebody added
            raise UnknownPartError(str(set(self._parameters) - self._used))

    def _network(self, network: Any, prefix: str) -> None:
        self.words.append(int(isinstance(network, HNet)))
        (self._level if isinstance(network, HNet) else self._stage)(network, prefix)

    def _stage(self, stack: Stack, prefix: str) -> None:
        self.words.append(int(isinstance(stack, PreNormStack)))
        if isinstance(stack, PreNormStack):
            self._prenorm(stack, prefix)
        else:
            self._stack(stack, prefix)

    # ------------------------------------------------------------------------------------------------ S0's blocks

    def _stack(self, stack: Stack, prefix: str) -> None:
        config = stack.config
        _known(config, "layers", "dim", "heads", "kv_heads", "mlp_mult", "window", "rope_base", "qk_gain", "lr_mult")
        hidden = int(config.mlp_mult * config.dim)
        self.words += [config.layers, config.dim, config.heads, config.kv_heads, hidden, config.window]
        self.words.append(int(stack.norms_input))
        frequencies = rotary_frequencies(config.dim // config.heads, config.rope_base) if config.layers else None
        self._vector(frequencies)
        skips = self._take(f"{prefix}skip_weights")
        for index in range(config.layers):
            block = f"{prefix}blocks.{index}."
            for name in ("mixer.qkv", "mixer.proj"):
                self._matrix(f"{block}{name}.weight", False)
            self._vector(self._take(f"{block}mixer.q_gain"))
            for name in ("mlp.fc", "mlp.proj"):
                self._matrix(f"{block}{name}.weight", False)
            self._vector(self._take(f"{block}mixer_scale"))
            self._vector(self._take(f"{block}mlp_scale"))
            for mix in self._take(f"{block}resid_mix"):
                self._vector(mix)
            popped = stack.pushed <= index < 2 * stack.pushed
            self._vector(skips[index - stack.pushed] if popped else None)

    # ------------------------------------------------------------------------------------------------ S4's blocks

    def _prenorm(self, stack: PreNormStack, prefix: str) -> None:
        config = stack.config
        if config.qk_norm and any(isinstance(block.mixer, Attention) for block in stack.blocks):
            raise UnknownPartError("qk_norm")
        self.words += [config.layers, config.dim, _bits(config.norm_eps)]
        self._vector(self._take(f"{prefix}norm.weight") if stack.norm is not None else None)
        for index, (_, mlp) in enumerate(config.order):
            block, mixer = f"{prefix}blocks.{index}.", stack.get_submodule(f"blocks.{index}.mixer")
            self._vector(self._take(f"{block}norm.weight"))
            self.words.append(int(isinstance(mixer, Mamba2)))
            if type(mixer) is Mamba2:
                self._mamba(mixer, f"{block}mixer.")
            elif type(mixer) is Attention:
                self._attention(mixer, f"{block}mixer.")
            else:
                raise UnknownPartError(type(mixer).__name__)
            if mlp not in ("none", "swiglu"):
                raise UnknownPartError(mlp)
            self.words.append(0 if mlp == "none" else config.hidden)
            if mlp != "none":
                self._vector(self._take(f"{block}mlp_norm.weight"))
                self._matrix(f"{block}mlp.fc.weight", True)
                self._matrix(f"{block}mlp.proj.weight", True)

    def _attention(self, mixer: Attention, prefix: str) -> None:
        shape = mixer.shape
        self.words += [shape.heads, shape.groups, shape.window, shape.turned, int(shape.clockwise)]
        self._vector(rotary_frequencies(shape.turned, shape.base) if shape.turned else None)
        self._matrix(f"{prefix}qkv.weight", True)
        self._matrix(f"{prefix}proj.weight", True)

    def _mamba(self, mixer: Mamba2, prefix: str) -> None:
        taps = self._take(f"{prefix}conv")
        self.words += [mixer.shape.heads, mixer.shape.width, mixer.shape.state, len(taps)]
        self._matrix(f"{prefix}in_proj.weight", True)
        self._vector(taps)
        self._vector(self._take(f"{prefix}conv_bias"))
        self._vector(self._take(f"{prefix}dt_bias"))
        self._vector(-torch.exp(self._take(f"{prefix}a_log")))
        self._vector(self._take(f"{prefix}skip"))
        self._vector(self._take(f"{prefix}norm"))
        self._matrix(f"{prefix}out_proj.weight", True)

    # ------------------------------------------------------------------------------------------------ levels

    def _level(self, level: HNet, prefix: str) -> None:
        config, router = level.config, level.config.router
        _known(config, "encoder", "router", "main", "decoder", "chunk_hash", "residual_bias", "residual_fp32")
        # fields that matter in training only, and those below
        training = ("loss_weight", "grad_scale", "surprisal_weight", "lr_mult", "ratio", "start_target", "target_ramp")
        rules = ("whitespace", "bpe", "entropy", "options", "ratio_over", "capacity", "capacity_divisor")
        _known(router, "target", "cosine", "capacity_buckets", "smooth_from", *training, *rules)
        learning = ("noise", "policy_weight", "policy_discount", "guide_weight", "guide_share")
        _known(router.cosine, "dim", "init", "sharpness", "query", "strict", *learning)
        there = isinstance(level.encoder, PreNormStack)
        maps = [f"{prefix}router.{which}_proj.weight" for which in "qk"]
        if router.cosine.query == "previous":
            maps.reverse()
        inner = level.main.encoder.config.dim if isinstance(level.main, HNet) else level.main.config.dim
        offset = f"{prefix}router.offset"
        shift = float(self._take(offset)) if offset in self._parameters else 0.0
        shaped = router.cosine.sharpness != 1 or offset in self._parameters
        self.words += [config.encoder.dim, inner, self._take(maps[0]).shape[0]]
        self.words += [int(router.cosine.strict), int(router.smooth_from == "zero")]
        self.words += [int(shaped), _bits(router.cosine.sharpness), _bits(shift)]
        for name in maps:
            self._matrix(name, there)
        self._matrix(f"{prefix}residual.weight", there)
        self._vector(self._take(f"{prefix}residual.bias") if config.residual_bias else None)
        self._vector(self._take(f"{prefix}pad") if level.pad is not None else None)
        if level.chunk_hash is None:
            self.words += [0] * 3
        else:
            _known(config.chunk_hash, "dim", "bits", "dropout")
            self.words += [config.chunk_hash.bits, config.chunk_hash.dim]
            self._table(f"{prefix}chunk_hash.table")
            self._matrix(f"{prefix}chunk_hash.proj.weight", there)
        self._stage(level.encoder, f"{prefix}encoder.")
        self._network(level.main, f"{prefix}main.")
        self._stage(level.decoder, f"{prefix}decoder.")

    # ------------------------------------------------------------------------------------------------ weights

    def _take(self, name: str) -> Tensor:
        """The parameter ``name``, which is now accounted for."""
        if name not in self._parameters:
            raise UnknownPartError(name)
        self._used.add(name)
        return self._parameters[name].detach()

    def _vector(self, tensor: Tensor | None) -> None:
        if tensor is None:
            self.words.append(0)
            return
        if tensor.dtype != torch.float32:
            raise UnknownPartError(str(tensor.dtype))
        self._kept.append(tensor.contiguous())  # until it is copied
        self.words.append(self._kept[-1].data_ptr())

    def _matrix(self, name: str, there: bool) -> None:
        """A matrix, to be read ``there`` where it lies, or copied."""
        weight = self._take(name)
        if not there:
            self.words.append(PACKED)
            self._vector(weight)
            return
        scale = self._buffers.get(f"{name.removesuffix('weight')}scale")
        kinds = {torch.float32: SINGLE, torch.bfloat16: HALF, torch.int8: CODES}
        if weight.dtype not in kinds or (weight.dtype == torch.int8) != (scale is not None):
            raise UnknownPartError(str(weight.dtype))
        self.shared = True
        lying = [each.contiguous() for each in (weight, scale) if each is not None]
        self.there += lying
        self.words += [kinds[weight.dtype], *(each.data_ptr() for each in lying)]

    def _table(self, name: str) -> None:
        self._vector(self._take(name))
        self.there.append(self._kept[-1])


def _bits(number: float) -> int:
    """The bits of an fp64 number as an int64."""
    return int.from_bytes(struct.pack("<d", number), "little", signed=True)
