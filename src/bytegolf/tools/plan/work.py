"""What one rank does in a training step, counted from the module tree: products, passes over memory, kernels started.

The linear maps of a model give its products; what mixes positions or works on channels one by one says by ``cost`` what
that takes (``model.layers.Cost``), so a new mixer or router is counted without a change here.

Counts are of the code as it is written: a fused stack (compiled, or native on a CPU) passes over its activations as
often as it must, an eager one once for every operation. Backward is twice forward where not said otherwise.

Legend: n positions, D width, C chunks of a sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from bytegolf.config import Config, ModelConfig, levels
from bytegolf.model.embed import row_tables
from bytegolf.model.hnet import HNet
from bytegolf.model.layers import Cost
from bytegolf.model.lm import LanguageModel
from bytegolf.model.stack import Stack
from bytegolf.training.memory import BF16, FP32, INT64, linear_maps
from bytegolf.training.optim import MUON, assignments

Shape = tuple[int, int]
"""inner and outer width of a map"""

Kind = Literal["matmul", "attention", "memory", "scan", "scatter", "loop"]

SPREAD = 1.3
"""Room for chunks over their mean: sequences are padded to the batch's longest (S2). Guessed."""

_FORWARD_BACKWARD = 3
_HASH_PASSES = 16
"""over keys, prefix sums and places of chunks, to know which chunk ended before each position"""
_LOOP_KERNELS = 21
"""that a chunk of a sequential smoothing starts: 4 forward, 17 backward (two products with a broadcast weight, and for
each of three slices zeros, a copy and a sum)"""


@dataclass(frozen=True)
class Code:
    """How a training script is written, as far as its speed depends on it."""

    compiled: bool
    """whether stacks of constant length are compiled"""
    native: bool = False
    """whether stacks of any length are as good as compiled, and so is chunking (our own code on a CPU)"""
    smoothing: Literal["blocked", "scan", "loop"] = "blocked"
    """blocked = products with small triangular matrices (ours); scan = an associative scan, whose backward is a C × C
    matrix per channel (published S3); loop = one chunk after the other (published S2)"""
    atomics: bool = False
    """whether gathers run backward by atomic additions (the published scripts)"""


@dataclass(frozen=True)
class Op:
    """Some operations of one kind in one part of the model, forward and backward, over a rank's whole step."""

    part: str
    kind: Kind
    flops: float = 0.0
    """of matrix products and attention; elements, for a scan or scatter"""
    bytes: float = 0.0
    kernels: float = 0.0


def chunk_rates(config: ModelConfig, rate: float | None = None) -> list[float]:
    """Each level's room for chunks per position, outermost first; ``rate`` replaces the mean of every level, 1/N."""
    found = []
    for level in levels(config.network):
        router = level.router
        mean = rate or 1 / router.target
        found.append(1 / router.capacity_divisor if router.capacity == "fixed" else min(1.0, SPREAD * mean))
    return found


def forward_flops(network: Stack | HNet, positions: float, length: float, rates: list[float]) -> float:
    """FLOPs of a forward pass over ``positions`` positions in sequences of ``length``; ``rates``: of each level."""
    if isinstance(network, Stack):
        mixing = sum(cost.flops for cost in _costs(network, length))
        return positions * (2 * _weights(_maps(network)) + mixing)
    parts = (network.encoder, network.decoder)
    outer = sum(forward_flops(part, positions, length, []) for part in parts)
    outer += positions * 2 * _weights(_maps(network.router, network.residual))
    outer += positions * rates[0] * 2 * _weights(_maps(network.chunk_hash))
    return outer + forward_flops(network.main, positions * rates[0], length * rates[0], rates[1:])


def step_work(
    config: Config, model: LanguageModel, ranks: int, code: Code, rates: list[float], passes: int = 1
) -> list[Op]:
    """All that one of ``ranks`` does in a step of ``model`` (or its outline), in ``passes`` micro-batches."""
    positions = config.train.batch_tokens / ranks
    operations = [
        *_network(model.network, "network", positions, config.train.seq_len, rates, code, False),
        *_ends(model, positions, code),
        *_soft(model, positions),
    ]
    work = [Op(op.part, op.kind, op.flops, op.bytes, op.kernels * passes) for op in operations]
    return [*work, *_optimiser(config, model, ranks)]


def matrices(config: Config, model: LanguageModel) -> list[Shape]:
    """Every matrix that Muon moves."""
    return [shape for one in assignments(model, config.optim) if one.learning_rate == MUON for shape in one.shapes]


def _maps(*modules: nn.Module | None) -> list[Shape]:
    """The linear maps in modules, each as one product (packed maps are run together)."""
    found = (each.weight.shape for module in modules if module is not None for each in linear_maps(module))
    return [(inner, outer) for outer, inner in found]


def _costs(stack: Stack, length: float) -> Iterator[Cost]:
    """What the parts of a stack's blocks say of themselves."""
    for part in stack.modules():
        if hasattr(part, "cost"):
            yield cast("Any", part).cost(length)


def _weights(shapes: Iterable[Shape]) -> int:
    return sum(inner * columns for inner, columns in shapes)


def _matmul(part: str, rows: float, shapes: Iterable[Shape]) -> Iterator[Op]:
    """Products with weights, each followed by two more backward; one operation each, as each has its own bottleneck."""
    for inner, columns in shapes:
        flops = 2 * rows * inner * columns
        size = BF16 * (rows * inner + rows * columns + inner * columns)
        yield Op(part, "matmul", 3 * flops, 3 * size, 3)


def _stack(stack: Stack, part: str, positions: float, length: float, fused: bool) -> Iterator[Op]:
    layers, dim = stack.config.layers, stack.config.dim
    if not layers:
        return
    yield from _matmul(part, positions, _maps(stack))
    costs = list(_costs(stack, length))
    mixing = positions * sum(cost.flops for cost in costs)  # backward takes two and a half times as much
    yield Op(part, "attention", 3.5 * mixing, 0.0, 4 * layers)
    if fused:  # mix and norm; norm, rotation and gain of q and k; add and norm; relu²; add
        passes, kernels = layers * 10 * dim + sum(cost.fused for cost in costs), 5
    else:  # each product, sum, cast, norm and half of a rotation by itself
        passes, kernels = layers * 29 * dim + sum(cost.eager for cost in costs), 40
    size = _FORWARD_BACKWARD * positions * passes * BF16
    yield Op(part, "memory", 0.0, size, _FORWARD_BACKWARD * layers * kernels)


def _network(
    network: Stack | HNet, part: str, positions: float, length: float, rates: list[float], code: Code, ragged: bool
) -> Iterator[Op]:
    """``ragged``: lengths change from batch to batch, so nothing is compiled."""
    fused = code.native or (code.compiled and not ragged)
    if isinstance(network, Stack):
        yield from _stack(network, part, positions, length, fused)
        return
    for inner, stack in (("encoder", network.encoder), ("decoder", network.decoder)):
        yield from _stack(stack, f"{part}.{inner}", positions, length, fused)
    yield from _chunking(network, f"{part}.chunking", positions, length, rates[0], code)
    rate, ragged = rates[0], network.config.router.capacity == "exact" or ragged
    yield from _network(network.main, f"{part}.main", positions * rate, length * rate, rates[1:], code, ragged)


def _chunking(level: HNet, part: str, positions: float, length: float, rate: float, code: Code) -> Iterator[Op]:
    """Router, selection, chunk hash, smoothing, expansion, residual."""
    dim, chunks = level.config.encoder.dim, positions * rate
    yield from _matmul(part, positions, _maps(level.router, level.residual))
    if level.chunk_hash is not None:
        yield from _matmul(part, chunks, _maps(level.chunk_hash))
        # a hash of each position's chunk so far, in 64 bits; then a row per chunk
        rows = 8 * chunks * level.config.chunk_hash.dim * FP32
        yield Op(part, "memory", 0.0, _HASH_PASSES * positions * INT64 + rows, 20)
    # the published code's is one compiled graph; ours is eager
    compiled = code.compiled and code.atomics and level.config.router.capacity == "fixed"
    passes, kernels = (8, 10) if compiled or code.native else (30, 40)
    yield Op(part, "memory", 0.0, _FORWARD_BACKWARD * passes * positions * dim * BF16, _FORWARD_BACKWARD * kernels)
    if code.atomics:
        yield Op(part, "scatter", (positions + chunks) * dim)
    if code.smoothing == "scan":
        yield Op(part, "scan", 2 * chunks * dim * length * rate, 0.0, 20)  # two leaves: decay and value
    elif code.smoothing == "loop":
        # backward, each chunk's slice becomes a whole tensor of zeros that is added up: written, read and written
        size = 3 * chunks * dim * BF16 * length * rate
        yield Op(part, "loop", 0.0, size, _LOOP_KERNELS * length * rate)
    else:
        block = min(64.0, length * rate)
        yield from _matmul(part, chunks, [(int(block), dim)])
        yield Op(part, "memory", 0.0, _FORWARD_BACKWARD * chunks * (6 * block * FP32 + 8 * dim * BF16), 90)


def _ends(model: LanguageModel, positions: float, code: Code) -> Iterator[Op]:
    """Embedding, n-grams, logits and loss."""
    vocabulary, dim = model.embedding.weight.shape
    yield from _matmul("logits", positions, [(dim, vocabulary)])
    # softcap and cross-entropy, in fp32 from the logits on
    size = 24 if code.compiled else 66
    yield Op("logits", "memory", 0.0, positions * vocabulary * size, 10 if code.compiled else 30)
    yield Op("embedding", "memory", 0.0, 6 * positions * dim * BF16, 10)
    if model.ngrams is not None:
        maps = _maps(model.ngrams)
        yield from _matmul("embedding", positions, maps)
        width = sum(inner for inner, _ in maps)
        yield Op("embedding", "memory", 0.0, 8 * positions * width * FP32, 20 * model.ngrams.lengths)


def _soft(model: LanguageModel, positions: float) -> Iterator[Op]:
    """Soft chunking layers."""
    for layer in model.soft.layers if model.soft else ():
        yield from _matmul("soft", positions, _maps(layer))
        size = _FORWARD_BACKWARD * 12 * positions * model.embedding.weight.shape[1] * BF16
        yield Op("soft", "memory", 0.0, size, _FORWARD_BACKWARD * 12)


def _optimiser(config: Config, model: LanguageModel, ranks: int) -> Iterator[Op]:
    """Muon with its five iterations on a rank's share of the matrices; Adam on the embedding, and RMSprop on the rows
    of tables that the step has looked up; every update applied.
    """
    found = matrices(config, model)
    flops = sum(5 * 2 * min(r, c) ** 2 * (2 * max(r, c) + min(r, c)) for r, c in found) / ranks
    weights = _weights(found)
    tables = [each.table.shape for each in row_tables(model)]
    looked_up = sum(min(rows, config.train.batch_tokens) * width for rows, width in tables)
    size = FP32 * (6 * weights / ranks + 3 * weights) + FP32 * 7 * model.embedding.weight.numel() + FP32 * 5 * looked_up
    if config.optim.algorithm == "adamw":  # reads weight, gradient and two moments of each, and writes three of them
        whole = sum(parameter.numel() for parameter in model.parameters()) - sum(math.prod(shape) for shape in tables)
        share = ranks if config.train.parallel == "fsdp" else 1
        size = FP32 * 7 * whole / share + FP32 * 5 * looked_up
    yield Op("optimiser", "matmul", flops, 0.0, 17 * len(set(found)))
    yield Op("optimiser", "memory", 0.0, size, 2 * len(found) + 20)
