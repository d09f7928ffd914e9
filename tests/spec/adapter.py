"""The one place where these tests touch the package: tiny models, their weights by name, their results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import specification as spec
import specified_hashes
import specified_transformer
import torch
from numpy.typing import NDArray
from torch import Tensor

import bytegolf.training.optim
from bytegolf.artifact.quantize import Storage, quantize, steers, storage_of
from bytegolf.config import (
    ChunkHashConfig,
    ExportConfig,
    HNetConfig,
    ModelConfig,
    NetworkConfig,
    NgramConfig,
    OptimConfig,
    RouterConfig,
    SoftConfig,
    StackConfig,
    TrainConfig,
)
from bytegolf.model.layers import storage_kinds
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.cosine import CosineRouter
from bytegolf.ops.chunking import smooth
from bytegolf.ops.rotary import rotary_angles
from bytegolf.training.optim import Muon, Optimizer
from bytegolf.training.schedule import learning_rate

Weights = Mapping[str, NDArray[np.float64]]

SEED = 19
"""Of the weights: one at which every H-Net has chunks of several lengths and no boundary hangs on rounding."""

VOCABULARY = 24
"""Few ids, so that n-grams and chunks recur; 1 is BOS."""


# --- tiny models ----------------------------------------------------------------------------------------------------


def _stack(layers: int, dim: int = 16, window: int = 0) -> StackConfig:
    return StackConfig(layers, dim, heads=4, kv_heads=2, mlp_mult=1.5, window=window)


def _hnet(capacity: str = "exact", chunk_hash: int = 0, layers: int = 3) -> HNetConfig:
    """S2's and S3's shape: local attention outside, full attention over chunks."""
    router = RouterConfig(3.0, 0.05, grad_scale=0.75, capacity=capacity, capacity_divisor=6)  # type: ignore[arg-type]
    return HNetConfig(
        _stack(2, window=6), router, _stack(layers), _stack(2, window=6), ChunkHashConfig(dim=chunk_hash, bits=5)
    )


def _two_levels(capacity: str = "exact") -> HNetConfig:
    """Each main network is wider than the one around it."""

    def router(target: float, divisor: float) -> RouterConfig:
        return RouterConfig(target, 0.03, capacity=capacity, capacity_divisor=divisor)  # type: ignore[arg-type]

    inner = HNetConfig(_stack(1, 24), router(2.0, 3), _stack(3, 32), _stack(1, 24, window=3))
    return HNetConfig(_stack(1, window=8), router(3.0, 2.5), inner, _stack(1))


def _config(name: str) -> tuple[NetworkConfig, NgramConfig, SoftConfig]:
    ngrams, soft = NgramConfig(), SoftConfig()
    match name:
        case "S0":
            return _stack(4), ngrams, soft
        case "S0-local":
            return _stack(3, window=5), ngrams, soft
        case "S1":
            return _stack(2), ngrams, SoftConfig(layers=2)
        case "S1-wide":
            return _stack(2), ngrams, SoftConfig(layers=1, inner=6, regulariser=0.1)
        case "S2":
            return _hnet(), ngrams, soft
        case "S2-bucketed":
            return _hnet("bucketed"), ngrams, soft
        case "S3":
            return _hnet("fixed"), ngrams, soft
        case "two-levels":
            return _two_levels(), ngrams, soft
        case "two-levels-fixed":
            return _two_levels("fixed"), ngrams, soft
    assert name == "hashes"
    return _hnet(chunk_hash=6, layers=1), NgramConfig(longest=9, bits=5, dim=4), soft


def build(
    name: str,
    reset_at_bos: bool = False,
    precision: torch.dtype = torch.float64,
    parameters: torch.dtype = torch.float32,
) -> LanguageModel:
    """A tiny model that computes in ``precision``, no parameter at a special value (0, 1, the identity).

    The package keeps parameters in fp32, whatever it computes in; its step-wise inference relies on that.
    """
    network, ngrams, soft = _config(name)
    torch.manual_seed(SEED)
    config = ModelConfig(
        network,
        VOCABULARY,
        embed_std=0.5,
        softcap=4.0,  # low enough to bend these small logits
        reset_at_bos=reset_at_bos,
        ngrams=ngrams,
        soft=soft,
    )
    model = LanguageModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            # with maps near the identity, vectors that hardly change would hardly open a chunk
            parameter.copy_(noise if ".router." in name else parameter + 0.25 * noise)
    model.precision = precision
    return model.to(parameters)


# --- weights --------------------------------------------------------------------------------------------------------


def weights_of(model: LanguageModel) -> dict[str, NDArray[np.float64]]:
    """A copy of every parameter."""
    return {name: tensor.detach().double().numpy().copy() for name, tensor in model.named_parameters()}


def specified(model: LanguageModel, weights: Weights, exact_tables: bool = True) -> spec.Model:
    """The specification of ``model`` with ``weights`` in place of its own.

    The package keeps the sines and cosines of rotary positions in fp32, whatever the model's dtype. Without
    ``exact_tables`` the specification computes with those, which a test of their own compares.
    """
    config = model.config
    soft = [
        spec.SoftLayer(
            w=weights[f"soft.layers.{i}.boundary_proj.weight"],
            c=weights[f"soft.layers.{i}.boundary_bias"],
            w_out=weights.get(f"soft.layers.{i}.boundary_out.weight"),
            c_out=weights.get(f"soft.layers.{i}.boundary_out_bias"),
            w_mixer=weights[f"soft.layers.{i}.chunk_mixer.weight"],
            c_mixer=weights[f"soft.layers.{i}.mixer_bias"],
        )
        for i in range(config.soft.layers)
    ]
    ngrams = None
    if config.ngrams.longest > 1:
        ngrams = specified_hashes.Ngrams(
            config.ngrams.longest, config.ngrams.bits, weights["ngrams.table"], weights["ngrams.proj.weight"]
        )
    network = _network(config.network, "network.", weights, bool(soft), exact_tables)
    embedding = weights["embedding.weight"]
    return spec.Model(
        embedding, network, config.softcap, config.reset_at_bos, ngrams, soft, soft_regulariser=config.soft.regulariser
    )


def _network(
    config: NetworkConfig, prefix: str, weights: Weights, behind_soft: bool, exact: bool
) -> specified_transformer.Stack | spec.HNet:
    if isinstance(config, StackConfig):
        return _specified_stack(config, prefix, weights, behind_soft, exact)
    chunk_hash = None
    if config.chunk_hash.dim:
        chunk_hash = specified_hashes.ChunkHash(
            config.chunk_hash.bits, weights[f"{prefix}chunk_hash.table"], weights[f"{prefix}chunk_hash.proj.weight"]
        )
    router = config.router
    return spec.HNet(
        encoder=_specified_stack(config.encoder, f"{prefix}encoder.", weights, behind_soft, exact),
        router_q=weights[f"{prefix}router.q_proj.weight"],
        router_k=weights[f"{prefix}router.k_proj.weight"],
        main=_network(config.main, f"{prefix}main.", weights, False, exact),
        residual=weights[f"{prefix}residual.weight"],
        decoder=_specified_stack(config.decoder, f"{prefix}decoder.", weights, False, exact),
        target=router.target,
        loss_weight=router.loss_weight,
        grad_scale=router.grad_scale,
        capacity_divisor=router.capacity_divisor if router.capacity == "fixed" else None,
        pad=weights.get(f"{prefix}pad"),
        chunk_hash=chunk_hash,
    )


def _specified_stack(
    config: StackConfig, prefix: str, weights: Weights, behind_soft: bool, exact: bool
) -> specified_transformer.Stack:
    inner = config.kv_heads * config.dim // config.heads
    blocks = []
    for i in range(config.layers):
        at = f"{prefix}blocks.{i}."
        w_q, w_k, w_v = np.split(weights[f"{at}mixer.qkv.weight"], (config.dim, config.dim + inner))
        blocks.append(
            specified_transformer.Block(
                w_q=w_q,
                w_k=w_k,
                w_v=w_v,
                w_o=weights[f"{at}mixer.proj.weight"],
                q_gain=weights[f"{at}mixer.q_gain"],
                w_1=weights[f"{at}mlp.fc.weight"],
                w_2=weights[f"{at}mlp.proj.weight"],
                mix=weights[f"{at}resid_mix"],
                attention_scale=weights[f"{at}mixer_scale"],
                mlp_scale=weights[f"{at}mlp_scale"],
            )
        )
    return specified_transformer.Stack(
        blocks,
        weights[f"{prefix}skip_weights"],
        config.heads,
        config.kv_heads,
        config.window,
        config.rope_base,
        norms_input=not behind_soft,
        rotary_table=specified_transformer.rotary_table if exact else rotary_table,
    )


# --- results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What the package's model makes of a batch; L positions, B sequences."""

    logits: NDArray[np.float64]  # (B, L, V), softcapped
    p: list[NDArray[np.float64]]  # of each H-Net, outermost first, (B, L)
    proposed: list[NDArray[np.bool_]]
    boundary: list[NDArray[np.bool_]]
    soft: list[NDArray[np.float64]]  # b of each soft layer
    losses: NDArray[np.float64]  # (B, L)
    objective: Tensor


def run(model: LanguageModel, batch: Tensor) -> Result:
    """The forward pass over a batch of L + 1 ids a sequence, and the losses; ``objective`` has a graph."""
    out = model(batch[:, :-1])
    losses = model.losses(out, batch[:, 1:])
    return Result(
        logits=_array(model.cap(out.logits)),
        p=[_array(trace.p) for trace in out.traces],
        proposed=[trace.proposed.numpy() for trace in out.traces],
        boundary=[trace.boundary.numpy() for trace in out.traces],
        soft=[_array(trace.p) for trace in out.soft],
        losses=_array(losses),
        objective=model.objective(out, losses),
    )


def gradients(model: LanguageModel, batch: Tensor) -> dict[str, NDArray[np.float64]]:
    """The gradient of the objective at each parameter that has one."""
    model.zero_grad()
    run(model, batch).objective.backward()
    return {name: _array(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def step_logits(model: LanguageModel, ids: Tensor) -> NDArray[np.float64]:
    """The softcapped logits by step-wise inference, one token after the other, (B, L, V)."""
    state = model.start(*ids.shape)
    return _array(torch.stack([model.step(ids[:, t], state) for t in range(ids.shape[1])], 1))


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().numpy()


# --- parts ----------------------------------------------------------------------------------------------------------


def rotary_table(position: int, width: int, base: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The package's, in fp64 as the model here."""
    cos, sin = rotary_angles(torch.tensor([position]), width, base, torch.float64)
    return _array(cos[0]), _array(sin[0])


def smoothed(z: NDArray[np.float64], p: NDArray[np.float64], starts: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The smoothing of chunks (C, D)."""
    return _array(smooth(*(torch.from_numpy(a)[None] for a in (z, p, starts)))[0])


def routed(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """p and boundaries at the vectors (L, D) by an untrained router, whose maps are the identity."""
    p, boundary = CosineRouter(RouterConfig(2.0), x.shape[1]).double()(torch.from_numpy(x)[None])
    return _array(p[0]), boundary[0].numpy()


def quantized(
    weight: NDArray[np.float32], bits: int, prune: float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes (R, K) and scales (R,)."""
    stored = quantize("w", torch.from_numpy(weight), Storage(f"int{bits}_row", prune))
    assert stored.scale is not None
    return stored.data.numpy(), stored.scale.numpy()


def storage_scheme(name: str, shape: tuple[int, ...]) -> tuple[str, bool]:
    """How a tensor is stored (fp32, fp16 or rows), and whether it is a control tensor, as a model declares it."""
    model = LanguageModel(ModelConfig(vocab_size=260, network=StackConfig(2, 8, 2, 1)))
    kind = storage_kinds(model).get(name, "weight")
    scheme = storage_of(kind, shape, ExportConfig())
    return ("rows" if scheme.quantizer.endswith("_row") else scheme.quantizer), steers(kind, shape)


class MuonRun:
    """Muon on one matrix, some rows of which may count as matrices of their own; in fp64 but for Newton–Schulz.

    That runs in fp32 here (``fp32``) or in what the machine is quick in, and its result is rounded to bf16.
    """

    def __init__(self, weight: NDArray[np.float64], splits: tuple[int, ...], ns_steps: int = 5) -> None:
        self.parameter = torch.nn.Parameter(torch.from_numpy(weight.copy()))
        self.muon = Muon([self.parameter], [splits], [1.0], ns_steps)

    def step(
        self, gradient: NDArray[np.float64], lr: float, momentum: float, weight_decay: float
    ) -> NDArray[np.float64]:
        """The weight after one update."""
        self.parameter.grad = torch.from_numpy(gradient)
        self.muon.step(lr, momentum, weight_decay)
        return _array(self.parameter).copy()


FP32_ITERATIONS = (bytegolf.training.optim, "has_bf16", lambda device: False)
"""What to patch so that Newton–Schulz runs in fp32 on every machine."""


def build_optimizer(model: LanguageModel) -> Optimizer:
    """The package's, as configured by default."""
    return Optimizer(model, OptimConfig())


def train_step(model: LanguageModel, optimizer: Optimizer, batch: Tensor, factor: float, step: int) -> Weights:
    """One update at ``factor`` times the peak learning rates; the gradients that it went by."""
    found = gradients(model, batch)
    optimizer.step(factor, step)
    return found


def rate(step: int, seconds: float, **settings: float) -> float:
    """The factor on every learning rate."""
    return learning_rate(TrainConfig(**{"seq_len": 8, "batch_tokens": 8, **settings}), step, seconds)  # type: ignore[arg-type]
