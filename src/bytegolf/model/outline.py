"""A model's names and shapes without its numbers: to count, to plan, and to check a stranger's weights against."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bytegolf.config import ModelConfig
from bytegolf.model.lm import LanguageModel


class _Undrawn(TorchFunctionMode):
    """Makes ``nn.init`` leave tensors as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


def outline(config: ModelConfig) -> LanguageModel:
    """The model on the meta device: names and shapes without storage.

    Nothing is drawn: drawing on that device would import torch's compiler, which takes longer than all the rest.
    """
    with torch.device("meta"), _Undrawn():
        return LanguageModel(config)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters (a tied tensor counts once)."""
    return sum(parameter.numel() for parameter in model.parameters())
