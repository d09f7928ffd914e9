"""What a rank must hold in training, and how many sequences fit into its memory at a time.

Counted from the module tree, so that it knows of a new mixer or router what its linear maps and its ``cost`` say.

Legend: R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from bytegolf.config import Config, ModelConfig, levels
from bytegolf.model.embed import row_tables
from bytegolf.model.hnet import HNet
from bytegolf.model.layers import Linear
from bytegolf.model.lm import LanguageModel
from bytegolf.model.lora import adaptable_maps
from bytegolf.model.stack import Stack

BF16, FP32, INT64 = 2, 4, 8

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


def linear_maps(module: nn.Module) -> Iterator[Linear]:
    """The linear maps in a module, in its order."""
    return (part for part in module.modules() if isinstance(part, Linear))


def memory_use(config: Config, model: LanguageModel, sequences: int, ranks: int, rates: list[float]) -> MemoryUse:
    """What training ``model`` (or its outline) with ``sequences`` per forward pass takes on each of R ``ranks``.

    fp32 weights and gradients, Muon's momenta (1/R of them), Adam's two moments of the embedding (under AdamW of all),
    RMSprop's one of the tables. What is neither embedding nor table counts as Muon's. Adapters have gradients and
    moments in place of the weights; of shards (fsdp) a rank has 1/R. ``rates``: chunks per position at each level.
    """
    train = config.train
    parameters = sum(parameter.numel() for parameter in model.parameters())
    adam = model.embedding.weight.numel()
    rows = sum(each.table.numel() for each in row_tables(model))
    share = ranks if train.parallel == "fsdp" else 1
    trained, moments = parameters / share, (parameters - adam - rows) / ranks + 2 * adam + rows
    if train.adapters:
        trained = train.adapters * sum(sum(each.weight.shape) for each in adaptable_maps(model).values())
        moments = 2 * trained
    elif config.optim.algorithm == "adamw":
        moments = (2 * (parameters - rows) + rows) / share
    copies = trained if train.ema_decay else 0.0
    if model.ngrams is not None and model.ngrams.config.start == "counts":  # what is left out of each fold
        copies += model.ngrams.config.folds * model.ngrams.table.numel()
    activations = sequences * train.seq_len * activation_bytes(model, rates, train.recompute)
    return MemoryUse(FP32 * (parameters / share + copies), FP32 * trained, FP32 * moments, activations)


def activation_bytes(model: LanguageModel, rates: list[float], recompute: bool = False) -> float:
    """Bytes per position that the backward pass needs. Logits are there in bf16 and, with their gradient, in fp32.

    With ``recompute``, what a block needs within is there for one block of a stack at a time.
    """
    vocabulary, dim = model.embedding.weight.shape
    ends = vocabulary * (BF16 + 2 * FP32) + 4 * dim * BF16
    ngrams = model.ngrams.proj.weight.shape[1] * (BF16 + FP32) if model.ngrams else 0
    soft = 4 * dim * BF16 * len(model.soft.layers) if model.soft else 0
    return ends + ngrams + soft + _kept(model.network, rates, recompute)


def _kept(network: Stack | HNet, rates: list[float], recompute: bool) -> float:
    """Bytes per position of this network's own resolution."""
    if isinstance(network, Stack):
        blocks = [_kept_channels(block) for block in network.blocks]
        if recompute:  # the stream and its last branch before each block, and all of one block
            return BF16 * (3 * network.config.dim * len(blocks) + max(blocks, default=0))
        return BF16 * sum(blocks)
    level, dim, table = network, network.config.encoder.dim, network.config.chunk_hash.dim
    # to chunk: what the router compares, streams before and behind the chunking, a position's key of a chunk hash
    compared = sum(each.weight.shape[0] for each in linear_maps(level.router))
    outer = _kept(level.encoder, [], recompute) + _kept(level.decoder, [], recompute)
    outer += (10 * dim + compared) * BF16 + (INT64 if table else 0)
    within = _kept(level.main, rates[1:], recompute) + 6 * dim * FP32 + table * (BF16 + FP32)
    return outer + rates[0] * within


def _kept_channels(block: nn.Module) -> int:
    """Channels per position of a block: the stream before both of its branches, inputs and outputs of its linear maps,
    and what its parts keep besides.
    """
    maps = list(linear_maps(block))
    stream = 2 * maps[0].weight.shape[1] if maps else 0
    own: int = sum(cast("Any", part).cost(0).kept for part in block.modules() if hasattr(part, "cost"))
    return stream + own + sum(sum(each.weight.shape) for each in maps)


def most_chunks(config: ModelConfig) -> list[float]:
    """Chunks per position that each level may have to hold: an untrained router may open one at every position."""
    routers = [level.router for level in levels(config.network)]
    return [1 / router.capacity_divisor if router.capacity == "fixed" else 1.0 for router in routers]


def at_a_time(config: Config, model: LanguageModel, ranks: int, memory: float) -> int:
    """How many sequences of its share of a step a rank takes at a time: ``train.micro_batch``, or what fits.

    The most that fit into ``memory`` bytes and divide the share, whatever routers open; 1 at least. So the accumulation
    of gradients follows from batch, ranks and memory, and changes nothing but the rounding of sums.
    """
    share = config.train.batch_tokens // config.train.seq_len // ranks
    if config.train.micro_batch:
        return min(share, config.train.micro_batch)
    use = memory_use(config, model, 1, ranks, most_chunks(config.model))
    for count in range(share, 1, -1):
        fits = use.total + (count - 1) * use.activations <= SHARE * memory
        if share % count == 0 and fits:
            return count
    return 1
