"""What a loaded model is, before anything is asked of it."""

from __future__ import annotations

from pathlib import Path

import torch

from bytegolf.artifact.loading import LoadedModel
from bytegolf.artifact.run_folder import data_folder
from bytegolf.config import Config
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.model.lm import LanguageModel
from bytegolf.model.outline import count_parameters


class Description:
    """A model's parts and where they come from."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def __repr__(self) -> str:
        chunked = f"{self.levels} {'level' if self.levels == 1 else 'levels'} of chunks" if self.levels else "flat"
        return f"<bytegolf.Model {self.name}: {self.parameters:,} parameters, {self.tokenizer.name}, {chunked}>"

    @property
    def name(self) -> str:
        """The name of its configuration."""
        return self.config.name

    @property
    def config(self) -> Config:
        """The configuration that it was trained with."""
        return self._loaded.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back."""
        return self._loaded.tokenizer

    @property
    def module(self) -> LanguageModel:
        """The network, a ``torch.nn.Module`` in evaluation mode."""
        return self._loaded.model

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return count_parameters(self.module)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.module.embedding.weight.device

    @property
    def levels(self) -> int:
        """How many levels of chunking it has; 0 for a flat model."""
        return len(self.module.levels()) or self.config.model.soft.layers

    @property
    def path(self) -> Path:
        """The artifact's file."""
        return self._loaded.path

    @property
    def data(self) -> Path | None:
        """The folder of the data that it was trained on, wherever one stands; None if they are not to be found."""
        return data_folder(self.path.parent, self.config)

    @property
    def origin(self) -> str:
        """``hf:owner/name@COMMIT`` of a model from the hub: it names these very weights; else empty."""
        return self._loaded.origin

    @property
    def sha256(self) -> str:
        """Of the artifact's file, in hexadecimal."""
        return self._loaded.artifact.sha256
