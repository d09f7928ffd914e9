"""What one rank does in a training step, counted from a configuration: products, passes over memory, kernels started.

Counts are of the code as it is written: a fused stage (compiled, or native on a CPU) passes over its activations as
often as it must, an eager one once for every operation. Backward is twice forward where not said otherwise.

Legend: n positions, D width, K width of keys, H hidden width of the MLP, C chunks of a sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from bytegolf.config import Config, HNetConfig, ModelConfig, NetworkConfig, StackConfig, levels, outer_dim
from bytegolf.training.shapes import (
    Shape,
    block_maps,
    chunk_hash_map,
    matrices,
    ngram_map,
    router_maps,
    soft_maps,
    tables,
    widths,
)

Kind = Literal["matmul", "attention", "memory", "scan", "scatter", "loop"]

BF16, FP32, INT64 = 2, 4, 8
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
    """whether stages of constant length are compiled"""
    native: bool = False
    """whether stages of any length are as good as compiled, and so is chunking (our own code on a CPU)"""
    smoothing: Literal["blocked", "scan", "loop"] = "blocked"
    """blocked = products with small triangular matrices (ours); scan = an associative scan, whose backward is a C × C
    matrix a channel (published S3); loop = one chunk after the other (published S2)"""
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
    """Each level's room for chunks a position, outermost first; ``rate`` replaces the mean of every level, 1/N."""
    found = []
    for level in levels(config.network):
        router = level.router
        mean = rate or 1 / router.target
        found.append(1 / router.capacity_divisor if router.capacity == "fixed" else min(1.0, SPREAD * mean))
    return found


def most_chunks(config: ModelConfig) -> list[float]:
    """The room for chunks a position that each level can come to need: an untrained router may open one at each."""
    routers = [level.router for level in levels(config.network)]
    return [1 / router.capacity_divisor if router.capacity == "fixed" else 1.0 for router in routers]


def forward_flops(network: NetworkConfig, positions: float, length: float, rates: list[float]) -> float:
    """FLOPs of a forward pass over ``positions`` positions in sequences of ``length``; ``rates``: of each level."""
    if isinstance(network, StackConfig):
        seen = min(network.window, length / 2) if network.window else length / 2
        weights = _weights(block_maps(network))
        return network.layers * positions * (2 * weights + 4 * network.dim * seen)
    dim = outer_dim(network)
    parts = (network.encoder, network.decoder)
    outer = sum(forward_flops(part, positions, length, []) for part in parts)
    outer += positions * 2 * (_weights(router_maps(network)) + dim * dim)
    outer += positions * rates[0] * 2 * _weights(chunk_hash_map(network))
    return outer + forward_flops(network.main, positions * rates[0], length * rates[0], rates[1:])


def step_work(config: Config, ranks: int, code: Code, rates: list[float], passes: int = 1) -> list[Op]:
    """All that one of ``ranks`` does in a step, in ``passes`` micro-batches."""
    train, model = config.train, config.model
    positions = train.batch_tokens / ranks
    operations = [
        *_network(model.network, "network", positions, train.seq_len, rates, code, False),
        *_ends(model, positions, code),
        *_soft(model, positions),
    ]
    work = [Op(op.part, op.kind, op.flops, op.bytes, op.kernels * passes) for op in operations]
    return [*work, *_optimiser(config, ranks)]


def _weights(shapes: Iterable[Shape]) -> int:
    return sum(inner * columns for inner, columns in shapes)


def _packed(stage: StackConfig) -> list[Shape]:
    """The maps of a block as they are run: q, k and v in one product."""
    query, key, value, *others = block_maps(stage)
    return [(stage.dim, query[1] + key[1] + value[1]), *others]


def _matmul(part: str, rows: float, shapes: Iterable[Shape], layers: int = 1) -> Iterator[Op]:
    """Products with weights, each followed by two more backward; one operation each, as each has its own bottleneck."""
    for inner, columns in shapes:
        flops = 2 * rows * inner * columns
        size = BF16 * (rows * inner + rows * columns + inner * columns)
        yield Op(part, "matmul", 3 * layers * flops, 3 * layers * size, 3 * layers)


def _stage(stage: StackConfig, part: str, positions: float, length: float, fused: bool) -> Iterator[Op]:
    if not stage.layers:
        return
    keys, hidden = widths(stage)
    yield from _matmul(part, positions, _packed(stage), stage.layers)
    seen = min(stage.window, length / 2) if stage.window else length / 2
    attention = 4 * positions * stage.dim * seen  # backward takes two and a half times as much
    yield Op(part, "attention", 3.5 * stage.layers * attention, 0.0, 4 * stage.layers)
    if fused:  # mix and norm; norm, rotation and gain of q and k; add and norm; relu²; add
        passes, kernels = 10 * stage.dim + 2 * (stage.dim + keys) + 2 * hidden, 5
    else:  # each product, sum, cast, norm and half of a rotation by itself
        passes, kernels = 29 * stage.dim + 14 * (stage.dim + keys) + 4 * hidden, 40
    layers = _FORWARD_BACKWARD * stage.layers
    yield Op(part, "memory", 0.0, layers * positions * passes * BF16, layers * kernels)


def _network(
    network: NetworkConfig, part: str, positions: float, length: float, rates: list[float], code: Code, ragged: bool
) -> Iterator[Op]:
    """``ragged``: lengths change from batch to batch, so nothing is compiled."""
    if isinstance(network, StackConfig):
        yield from _stage(network, part, positions, length, code.native or (code.compiled and not ragged))
        return
    for inner, stage in (("encoder", network.encoder), ("decoder", network.decoder)):
        yield from _stage(stage, f"{part}.{inner}", positions, length, code.native or (code.compiled and not ragged))
    yield from _chunking(network, f"{part}.chunking", positions, length, rates[0], code)
    within = network.router.capacity == "exact" or ragged
    yield from _network(
        network.main, f"{part}.main", positions * rates[0], length * rates[0], rates[1:], code, ragged=within
    )


def _chunking(level: HNetConfig, part: str, positions: float, length: float, rate: float, code: Code) -> Iterator[Op]:
    """Router, selection, chunk_hash, smoothing, expansion, residual."""
    dim, chunks = level.encoder.dim, positions * rate
    yield from _matmul(part, positions, [*router_maps(level), (dim, dim)])
    if level.chunk_hash.dim:
        yield from _matmul(part, chunks, chunk_hash_map(level))
        # a hash of each position's chunk so far, in 64 bits; then a row a chunk
        yield Op(part, "memory", 0.0, _HASH_PASSES * positions * INT64 + 8 * chunks * level.chunk_hash.dim * FP32, 20)
    compiled = code.compiled and code.atomics and level.router.capacity == "fixed"  # theirs in one graph; ours is eager
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


def _ends(model: ModelConfig, positions: float, code: Code) -> Iterator[Op]:
    """Embedding, n-grams, logits and loss."""
    dim, ngrams = outer_dim(model.network), model.ngrams
    yield from _matmul("logits", positions, [(dim, model.vocab_size)])
    # softcap and cross-entropy, in fp32 from the logits on
    size = 24 if code.compiled else 66
    yield Op("logits", "memory", 0.0, positions * model.vocab_size * size, 10 if code.compiled else 30)
    yield Op("embedding", "memory", 0.0, 6 * positions * dim * BF16, 10)
    if ngrams.longest > 1:
        width = (ngrams.longest - 1) * ngrams.dim
        yield from _matmul("embedding", positions, ngram_map(model))
        yield Op("embedding", "memory", 0.0, 8 * positions * width * FP32, 20 * (ngrams.longest - 1))


def _soft(model: ModelConfig, positions: float) -> Iterator[Op]:
    """Soft chunking layers."""
    dim, soft = outer_dim(model.network), model.soft
    for _ in range(soft.layers):
        yield from _matmul("soft", positions, soft_maps(soft, dim))
        yield Op("soft", "memory", 0.0, _FORWARD_BACKWARD * 12 * positions * dim * BF16, _FORWARD_BACKWARD * 12)


def _optimiser(config: Config, ranks: int) -> Iterator[Op]:
    """Muon with its five iterations on a rank's share of the matrices; Adam on the embedding, and on the rows of tables
    that the step has looked up; every update applied.
    """
    model, found = config.model, list(matrices(config))
    flops = sum(5 * 2 * min(r, c) ** 2 * (2 * max(r, c) + min(r, c)) for r, c in found) / ranks
    weights = _weights(found)
    embedding = model.vocab_size * outer_dim(model.network)
    looked_up = sum(min(rows, config.train.batch_tokens) * width for rows, width in tables(model))
    size = FP32 * (6 * weights / ranks + 3 * weights) + FP32 * 7 * embedding + FP32 * 5 * looked_up
    yield Op("optimiser", "matmul", flops, 0.0, 17 * len(set(found)))
    yield Op("optimiser", "memory", 0.0, size, 2 * len(found) + 20)
