"""The names of the public H-Nets' tensors, and ours (arXiv 2507.07955 and its public checkpoints)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from bytegolf.config import ModelConfig
from bytegolf.model.lm import outline

Change = Callable[[Tensor], Tensor]


class PublicName(NamedTuple):
    """Where a parameter of ours is in a public checkpoint."""

    name: str
    shape: tuple[int, ...]
    """there"""
    ours: Change
    """its tensor as we have it; a view of it, where shapes allow"""
    theirs: Change
    """and back"""


_PARTS = (
    (r"^embedding\.", "embeddings."),
    (r"^head\.", "lm_head."),
    (r"\.blocks\.(\d+)\.norm\.", r".layers.\1.norm1."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.mlp\.fc\.", ".mlp.fc1."),
    (r"\.mlp\.proj\.", ".mlp.fc2."),
    (r"\.mixer\.qkv\.", ".mixer.Wqkv."),
    (r"\.mixer\.proj\.", ".mixer.out_proj."),
    (r"\.mixer\.conv$", ".mixer.conv1d.weight"),
    (r"\.mixer\.conv_bias$", ".mixer.conv1d.bias"),
    (r"\.mixer\.a_log$", ".mixer.A_log"),
    (r"\.mixer\.skip$", ".mixer.D"),
    (r"\.mixer\.norm$", ".mixer.norm.weight"),
    (r"\.router\.([qk])_proj\.", r".routing_module.\1_proj_layer."),
    (r"\.residual\.", ".residual_proj."),
    (r"\.blocks\.", ".layers."),
    (r"\.norm\.weight$", ".rmsnorm.weight"),
)
"""Our names and theirs, but for where networks lie in one another; the last is for a stack's own norm."""


def public_names(config: ModelConfig) -> dict[str, PublicName]:
    """Every parameter of ours in the model's order, with its place in a public checkpoint."""
    return {name: _public(name, parameter, config) for name, parameter in outline(config).named_parameters()}


def _public(name: str, parameter: nn.Parameter, config: ModelConfig) -> PublicName:
    shape = tuple(parameter.shape)
    if name.endswith(".mixer.conv"):  # (K, X) here, (X, 1, K) there
        return PublicName(_renamed(name, config), (shape[1], 1, shape[0]), _conv_ours, _conv_theirs)
    return PublicName(_renamed(name, config), shape, _same, _same)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _conv_ours(tensor: Tensor) -> Tensor:
    return tensor.squeeze(1).t()


def _conv_theirs(tensor: Tensor) -> Tensor:
    return tensor.t().unsqueeze(1)


def _renamed(name: str, config: ModelConfig) -> str:
    """The name there.

    Our ``network.main.encoder.blocks…`` is ``backbone.main_network.encoder.layers…``. An innermost stack lies in a
    stage of its own: our ``network.main.blocks…`` of a one-stage model is
    ``backbone.main_network.main_network.layers…``. The vector that widens chunks is ours of the stage that makes them,
    there of the stage that takes them.
    """
    found = re.match(r"network((?:\.main)*)\.(.*)", name)
    if found:
        stage = "backbone" + ".main_network" * found[1].count(".main")
        rest = found[2]
        if rest == "pad":
            return f"{stage}.main_network.pad_dimension"
        if rest.startswith(("blocks.", "norm.")):
            stage += ".main_network"
        name = f"{stage}.{rest}"
    mixer_norm = name.endswith(".mixer.norm")
    for ours, theirs in _PARTS:
        if mixer_norm and ours == r"\.norm\.weight$":
            continue
        name = re.sub(ours, theirs, name)
    return name
