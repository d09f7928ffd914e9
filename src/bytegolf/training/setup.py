"""What training starts from: its text, and the initial model."""

from __future__ import annotations

from pathlib import Path

import torch

from bytegolf.config import Config
from bytegolf.data.shards import TokenStream, open_split
from bytegolf.data.tokenizer import Tokenizer, load_tokenizer
from bytegolf.device import has_bf16, pick_precision
from bytegolf.errors import BytegolfError
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import Material
from bytegolf.ops import native
from bytegolf.progress import Teller

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


def model_to_train(config: Config, data: TrainingData, device: torch.device, reporter: Teller) -> LanguageModel:
    """The initial model on ``device``, in the precision that is to be computed in; what is slow there is told."""
    if device.type == "cpu" and (reason := native.why_not()):  # builds the kernels, if need be
        reporter.warn(reason)
    model = initial_model(config, data.tokenizer, data.train).to(device)
    model.precision = pick_precision(config.train.precision, device)
    if model.precision == torch.bfloat16 and not has_bf16(device):
        reporter.warn(
            "train.precision is bf16, in which this device cannot multiply: steps take many times as long as with auto"
        )
    return model


def initial_model(config: Config, tokenizer: Tokenizer, stream: TokenStream) -> LanguageModel:
    """The model before training on ``stream``: the same for the same seed and text."""
    torch.manual_seed(config.train.seed)
    model = LanguageModel(config.model)
    sample = stream.slice(0, min(len(stream), ROUTER_TOKENS))
    if model.soft and config.model.soft.init == "bpe":
        from bytegolf.training.soft_boundaries import fit_to_bpe  # which reaches all that trains a tokenizer

        fit_to_bpe(model, tokenizer, sample)
    model.prepare_routers(Material(tokenizer, sample, Path(config.data.path)))
    return model
