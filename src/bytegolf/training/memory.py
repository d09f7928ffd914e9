"""What a rank must hold, and how many sequences fit at a time.

Legend as in ``work``.
"""

from __future__ import annotations

from dataclasses import dataclass

from bytegolf.config import Config, HNetConfig, ModelConfig, NetworkConfig, StackConfig, outer_dim
from bytegolf.training.shapes import router_maps, tables, widths
from bytegolf.training.work import BF16, FP32, INT64, most_chunks

SHARE = 0.85
"""of a device's memory that a plan fills: allocators, libraries and communication have the rest"""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one rank."""

    weights: float
    gradients: float
    optimiser: float
    activations: float

    @property
    def total(self) -> float:
        """All of them together."""
        return self.weights + self.gradients + self.optimiser + self.activations


def memory_use(config: Config, parameters: int, sequences: int, ranks: int, rates: list[float]) -> MemoryUse:
    """What training with ``sequences`` at a time takes: fp32 weights and gradients, Muon's momenta (shared), Adam's two
    of the embedding, one of tables.

    What is neither embedding nor table counts as Muon's.
    """
    model = config.model
    adam = model.vocab_size * outer_dim(model.network)
    rows = sum(count * width for count, width in tables(model))
    copies = 1 if config.train.ema_decay else 0
    activations = sequences * config.train.seq_len * activation_bytes(model, rates)
    momenta = FP32 * ((parameters - adam - rows) / ranks + 2 * adam + rows)
    return MemoryUse(FP32 * parameters * (1 + copies), FP32 * parameters, momenta, activations)


def activation_bytes(model: ModelConfig, rates: list[float]) -> float:
    """What a position keeps for the backward pass. Logits are there in bf16 and, with their gradient, in fp32."""
    dim = outer_dim(model.network)
    ends = model.vocab_size * (BF16 + 2 * FP32) + 4 * dim * BF16
    ngrams = (model.ngrams.longest - 1) * model.ngrams.dim * (BF16 + FP32)
    return ends + ngrams + 4 * dim * BF16 * model.soft.layers + _kept(model.network, rates)


def _kept(network: NetworkConfig, rates: list[float]) -> float:
    if isinstance(network, StackConfig):
        keys, hidden = widths(network)
        # streams and norms before both branches, q, k, v before and after rotation, what attention and MLP give
        return network.layers * (9 * network.dim + 3 * keys + 2 * hidden) * BF16
    outer = _kept(network.encoder, []) + _kept(network.decoder, []) + _kept_to_chunk(network)
    within = _kept(network.main, rates[1:]) + 6 * network.encoder.dim * FP32 + network.chunk_hash.dim * (BF16 + FP32)
    return outer + rates[0] * within


def _kept_to_chunk(level: HNetConfig) -> float:
    """What the router compares, and streams before and behind the chunking; a position's keys of a chunk_hash."""
    compared = sum(columns for _, columns in router_maps(level))
    return (10 * level.encoder.dim + compared) * BF16 + (INT64 if level.chunk_hash.dim else 0)


def at_a_time(config: Config, parameters: int, ranks: int, memory: float) -> int:
    """How many sequences of its share of a step a rank takes at a time: ``train.micro_batch``, or what fits.

    The most that fit in ``memory`` bytes and divide the share, whatever routers open; 1 at least. So the accumulation
    of gradients follows from batch, ranks and memory, and changes nothing but the rounding of sums.
    """
    share = config.train.batch_tokens // config.train.seq_len // ranks
    if config.train.micro_batch:
        return min(share, config.train.micro_batch)
    rates = most_chunks(config.model)
    for count in range(share, 1, -1):
        fits = memory_use(config, parameters, count, ranks, rates).total <= SHARE * memory
        if share % count == 0 and fits:
            return count
    return 1
