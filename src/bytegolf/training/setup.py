"""What training starts from: its text, and the initial model."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bytegolf.artifact.loading import LoadedModel
from bytegolf.artifact.opening import load_model
from bytegolf.artifact.run_folder import RunFolder
from bytegolf.config import Config
from bytegolf.data.shards import TokenStream, open_split
from bytegolf.data.tokenizer import Tokenizer, load_tokenizer
from bytegolf.device import has_bf16, pick_precision
from bytegolf.distributed import DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import float_state
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import Material
from bytegolf.model.stack import Stack
from bytegolf.ops import native
from bytegolf.progress import Teller
from bytegolf.training.sharding import shard, shards

ROUTER_TOKENS = 1 << 22
"""How much of the training split a router that is made from it may see."""


class TrainingData:
    """What a model is trained on and validated with."""

    def __init__(self, tokenizer: Tokenizer, train: TokenStream, validation: TokenStream) -> None:
        # attribute by attribute, as the audit of a submission's script follows validation tokens by name
        self.tokenizer = tokenizer
        self.train = train
        self.validation = validation

    @staticmethod
    def open(config: Config) -> TrainingData:
        """The splits in ``config.data.path``.

        Raises BytegolfError where they are missing, too short for a sequence, or not in the model's alphabet.
        """
        folder, name = Path(config.data.path), config.data.tokenizer
        tokenizer = load_tokenizer(name, folder)
        if config.model.vocab_size != tokenizer.vocab_size:
            raise BytegolfError(
                f"the model has model.vocab_size = {config.model.vocab_size}, but the tokenizer {tokenizer.name} has "
                f"{tokenizer.vocab_size} ids: set model.vocab_size={tokenizer.vocab_size}, or choose another "
                "data.tokenizer"
            )
        train = open_split(folder, name, "train", tokenizer.vocab_size)
        validation = open_split(folder, name, "val", tokenizer.vocab_size)
        for stream, split in ((train, "training"), (validation, "validation")):
            if len(stream) <= config.train.seq_len:
                raise BytegolfError(
                    f"the {split} split has {len(stream)} tokens, too few for one sequence of train.seq_len = "
                    f"{config.train.seq_len}: prepare more text or lower train.seq_len"
                )
        return TrainingData(tokenizer, train, validation)


def model_to_train(config: Config, data: TrainingData, world: DistributedContext, reporter: Teller) -> LanguageModel:
    """The initial model on this rank's device, or the rank's shard of it, in the precision that is to be computed in.

    What is slow there is told.
    """
    device = world.device
    if device.type == "cpu" and (reason := native.why_not()):  # builds the kernels, if need be
        reporter.warn(reason)
    model = initial_model(config, data.tokenizer, data.train)
    # sharding moves part by part, as the whole model may not fit on the device
    model = shard(model, config, world) if shards(config, world) else model.to(device)
    for module in model.modules():
        if isinstance(module, Stack):
            module.recompute = config.train.recompute
    model.precision = pick_precision(config.train.precision, device)
    if model.precision == torch.bfloat16 and not has_bf16(device):
        reporter.warn(
            "train.precision is bf16, in which this device cannot multiply: steps take many times as long as with auto"
        )
    return model


def resolve(config: Config | str | os.PathLike[str], changes: Sequence[str | Mapping[str, Any]] = ()) -> Config:
    """The configuration of a preset's name, a TOML file or a ``Config``, with ``changes``; and, where there is a
    ``train.init``, with its model and tokenizer, on which ``changes`` of ``model.…`` hold.

    Once that is done the file's hash is in the configuration, and it comes back as it is: so a run's own config.toml
    trains it again. Raises BytegolfError if the file cannot be loaded.
    """
    config = config.with_(*changes) if isinstance(config, Config) else Config.load(os.fspath(config), changes)
    if not config.train.init or config.train.init_sha256:
        return config
    found = _start_of(config)
    own = [each for each in changes if isinstance(each, str) and each.startswith("model.")]
    taken = {
        "model": found.config.model,
        "data.tokenizer": found.tokenizer.name,
        "plugins": sorted({*config.plugins, *found.config.plugins}),
        "train.init": found.origin or str(Path(config.train.init).absolute()),
        "train.init_sha256": found.artifact.sha256,
    }
    return config.with_(taken, *own)


def _start_of(config: Config) -> LoadedModel:
    """The model of ``train.init``."""
    path = RunFolder(Path(config.train.init)).artifact if Path(config.train.init).is_dir() else Path(config.train.init)
    with contextlib.suppress(OSError):
        status = path.stat()
        return _read(config.train.init, config.data.path, status.st_mtime_ns, status.st_size)
    return _read(config.train.init, config.data.path, 0, 0)


@functools.lru_cache(maxsize=1)
def _read(source: str, data: str, *stamp: int) -> LoadedModel:
    """(why) Kept: the configuration is made of it, then the weights, and behind training the chunks before it. Weights
    as they were imported are mapped, and cost no memory.
    """
    return load_model(source, Path(data), "cpu")


def _init_weights(config: Config, model: LanguageModel) -> None:
    """Have the model begin with the weights of ``train.init``."""
    source, expected = config.train.init, config.train.init_sha256
    found = _start_of(config)
    if expected and found.artifact.sha256 != expected:
        raise BytegolfError(
            f"train.init = {source} is another model than this run began with: give that one, or set "
            "train.init_sha256 to '' and train into another --out"
        )
    try:
        model.load_state_dict(float_state(found.model))
    except RuntimeError as error:
        raise BytegolfError(
            f"the weights of train.init = {source} do not fit the model of the configuration: leave out what changes "
            "its shapes"
        ) from error


def initial_model(config: Config, tokenizer: Tokenizer, stream: TokenStream) -> LanguageModel:
    """The model before training on ``stream``: the same for the same seed and text.

    Raises BytegolfError for a model of ``train.init`` that cannot be loaded or does not fit.
    """
    torch.manual_seed(config.train.seed)
    model = LanguageModel(config.model)
    if config.train.init:
        _init_weights(config, model)
        return model
    sample = stream.slice(0, min(len(stream), ROUTER_TOKENS))
    if model.soft and config.model.soft.init == "bpe":
        from bytegolf.training.soft_boundaries import fit_to_bpe  # which reaches all that trains a tokenizer

        fit_to_bpe(model, tokenizer, sample)
    model.prepare_routers(Material(tokenizer, sample, Path(config.data.path)))
    return model
