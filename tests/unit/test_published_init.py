"""Weights at the start as the public H-Nets' (arXiv 2507.07955): the scale of each tensor, by its public name."""

from __future__ import annotations

import dataclasses
import re

import public_hnet
import pytest
import torch
from torch import Tensor

from bytegolf.config.public_hnet import from_public
from bytegolf.model.lm import LanguageModel
from bytegolf.model.public_names import public_names

LAYOUT = ["m2", ["T1m2", ["T3"], "m2T1"], "m2"]
INNERMOST = "backbone.main_network.main_network.main_network"
BRANCHES = {"backbone": 4, "backbone.main_network": 4 + 8, INNERMOST: 4 + 8 + 6}
"""That are added on the way through: m is one, T two; stage by stage, the outer ones included. An innermost stack lies
in a stage of its own."""


def tensors() -> dict[str, Tensor]:
    config = from_public(public_hnet.public(LAYOUT, (128, 128, 192), d_state=16))
    model = LanguageModel(dataclasses.replace(config, init="hnet", embed_std=1.0))
    names = public_names(config)
    return {names[name].name: names[name].theirs(parameter.detach()) for name, parameter in model.named_parameters()}


def scale(name: str) -> float:
    """The published standard deviation of a matrix."""
    if name == "embeddings.weight":
        return 1.0
    if not re.search(r"(out_proj|fc2)\.weight$", name):
        return 0.02
    stage = re.match(r"(backbone(\.main_network)*)\.", name)
    assert stage is not None
    return float(0.02 / BRANCHES[stage[1]] ** 0.5)


def test_each_tensor() -> None:
    seen = set()
    for name, tensor in tensors().items():
        kind = name.rpartition("layers.")[2].lstrip("0123456789.")
        seen.add(kind)
        if "routing_module" in name:
            assert torch.equal(tensor, torch.eye(len(tensor))), name
        elif "residual_proj" in name or name.endswith("pad_dimension"):
            assert not tensor.any(), name
        elif "norm" in name or name.endswith(".D"):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif name.endswith("dt_bias"):
            step = torch.nn.functional.softplus(tensor)
            assert 1e-3 * 0.999 < float(step.min()) < float(step.max()) < 0.1 * 1.001, name
        elif name.endswith("A_log"):
            assert 0 <= float(tensor.min()) <= float(tensor.max()) <= torch.log(torch.tensor(16.0)), name
        elif "conv1d" in name:
            assert float(tensor.abs().max()) <= 4**-0.5, name
        else:  # normal: the sample's deviation is off by its own error, 1/√(2n), a few times at most
            assert tensor.ndim == 2, name
            assert float(tensor.std()) == pytest.approx(scale(name), rel=5 / (2 * tensor.numel()) ** 0.5), name
            assert abs(float(tensor.mean())) < 5 * scale(name) / tensor.numel() ** 0.5, name
    assert {"mixer.in_proj.weight", "mixer.Wqkv.weight", "mlp.fc1.weight", "mlp.fc2.weight"} <= seen
