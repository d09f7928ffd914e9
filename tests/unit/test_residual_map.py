"""A level without a learned map around the chunks: the encoder's output goes to the decoder as it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from bytegolf.config import Config, HNetConfig, ModelConfig, StackConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.lm import LanguageModel
from bytegolf.training.optim import assignments


def tiny(**changes: Any) -> ModelConfig:
    """hnet-2stage at a width of 16, its outer level changed."""
    config = Config.load("hnet-2stage").model
    assert isinstance(config.network, HNetConfig)

    def narrow(stack: StackConfig | HNetConfig) -> StackConfig:
        assert isinstance(stack, StackConfig)
        return dataclasses.replace(stack, layers=1, dim=16, heads=2, kv_heads=2)

    def narrowed(level: HNetConfig, **own: Any) -> HNetConfig:
        inner = narrowed(level.main) if isinstance(level.main, HNetConfig) else narrow(level.main)
        outer = dataclasses.replace(level, encoder=narrow(level.encoder), main=inner, decoder=narrow(level.decoder))
        return dataclasses.replace(outer, **own)

    network = narrowed(config.network, **changes)
    return dataclasses.replace(config, network=network)


def test_an_identity_is_a_plain_skip_that_training_leaves_alone() -> None:
    torch.manual_seed(0)
    model = LanguageModel(tiny(residual="identity"))
    level = model.levels()[0]
    encoded = torch.randn(2, 5, 16)
    assert torch.equal(level.around(encoded), encoded)
    moved = [each.name for each in assignments(model, Config.load("hnet-2stage").optim)]
    assert "network.residual.weight" not in moved
    assert "network.main.residual.weight" in moved  # the inner level has a learned one
    ids = torch.randint(1, 30, (2, 12))
    model.losses(model(ids), ids).mean().backward()
    assert level.residual.weight.grad is None


def test_an_identity_has_no_bias() -> None:
    with pytest.raises(BytegolfError, match="bias"):
        tiny(residual="identity", residual_bias=True)
