"""From a configuration to a trainer: checks, the initial model, and its training."""

from __future__ import annotations

from pathlib import Path

import torch

from bytegolf.config import Config
from bytegolf.data.shards import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.device import has_bf16, pick_precision
from bytegolf.distributed import DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import Material
from bytegolf.model.routers.prepare import prepare_routers
from bytegolf.ops import native
from bytegolf.progress import Reporter
from bytegolf.training.loop import Trainer
from bytegolf.training.soft_boundaries import fit_edges

ROUTER_TOKENS = 1 << 22
"""How much of the training split a router that is made from it may see."""


def fit(
    config: Config,
    tokenizer: Tokenizer,
    train: TokenStream,
    validation: TokenStream,
    folder: Path,
    world: DistributedContext,
    reporter: Reporter,
    resume: bool = False,
) -> Trainer:
    """A trainer that has used up the budget on the split ``train``; of the other it prints a sample's score."""
    if world.device.type == "cpu" and (reason := native.why_not()):  # builds the kernels, if need be
        reporter.warn(reason)
    model = initial_model(config, tokenizer, train).to(world.device)
    model.precision = pick_precision(config.train.precision, world.device)
    if model.precision == torch.bfloat16 and not has_bf16(world.device):
        reporter.warn(
            "train.precision is bf16, in which this device cannot multiply: steps take many times as long as with auto"
        )
    trainer = Trainer(config, model, train, validation, tokenizer, folder, world, reporter)
    trainer.fit(resume)
    return trainer


def check_tokenizer(config: Config, tokenizer: Tokenizer) -> None:
    """Raise unless the model's alphabet is the tokenizer's."""
    if config.model.vocab_size != tokenizer.vocab_size:
        raise BytegolfError(
            f"the model has model.vocab_size = {config.model.vocab_size}, but the tokenizer {tokenizer.name} has "
            f"{tokenizer.vocab_size} ids: set model.vocab_size={tokenizer.vocab_size}, or choose another data.tokenizer"
        )


def check_length(stream: TokenStream, seq_len: int, split: str) -> None:
    """Raise unless ``stream`` fills at least one sequence and its targets."""
    if len(stream) <= seq_len:
        raise BytegolfError(
            f"the {split} split has {len(stream)} tokens, too few for one sequence of train.seq_len = {seq_len}: "
            "prepare more text or lower train.seq_len"
        )


def initial_model(config: Config, tokenizer: Tokenizer, stream: TokenStream) -> LanguageModel:
    """The model before training on ``stream``: the same for the same seed and text."""
    torch.manual_seed(config.train.seed)
    model = LanguageModel(config.model)
    sample = stream.slice(0, min(len(stream), ROUTER_TOKENS))
    if model.soft and config.model.soft.init == "bpe":
        fit_edges(model, tokenizer, sample)
    prepare_routers(model, Material(tokenizer, sample, Path(config.data.path)))
    return model
