"""The public H-Nets' weights at the start (arXiv 2507.07955 and its public code)."""

from __future__ import annotations

import torch
from torch import nn

from bytegolf.config import ModelConfig
from bytegolf.model.hnet import HNet
from bytegolf.model.layers import Linear
from bytegolf.model.stack import Stack

STD = 0.02
"""Of linear maps."""


@torch.no_grad()
def published_init(model: nn.Module, config: ModelConfig) -> None:
    """Embeddings N(0, 1) (``embed_std``), linear maps N(0, .02), of which those at a branch's end are divided by √n.

    n is the number of branches that are added on the way through: of encoder and decoder, for theirs, and besides of
    all around them, for those of a main network. Routers start as the identity, the map around the chunks as 0, gains
    as 1; Mamba-2's own vectors as its paper has them (``mixers.mamba2``).
    """
    nn.init.normal_(model.get_submodule("embedding").weight, std=config.embed_std)  # type: ignore[arg-type]
    head = getattr(model, "head", None)
    if head is not None:
        nn.init.normal_(head.weight, std=STD)
    _network(model.get_submodule("network"), 0)


def _network(network: nn.Module, branches: int) -> None:
    if isinstance(network, HNet):
        branches += _branches(network.encoder) + _branches(network.decoder)
        for stack in (network.encoder, network.decoder):
            _stack(stack, branches)
        _network(network.main, branches)
    elif isinstance(network, Stack):
        _stack(network, branches + _branches(network))


def _branches(stack: Stack) -> int:
    """How many branches a stack adds to its stream."""
    return sum(1 if mlp == "none" else 2 for _, mlp in stack.config.order)


def _stack(stack: Stack, branches: int) -> None:
    for name, module in stack.named_modules():
        if isinstance(module, Linear):
            ends = name.rpartition(".")[2] in ("proj", "out_proj")
            nn.init.normal_(module.weight, std=STD / branches**0.5 if ends else STD)
