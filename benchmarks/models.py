"""Models to measure inference with: a trained one, or a preset's shape with random weights and its chunk rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bytegolf.config import Config, load, preset_names
from bytegolf.model.hnet import Level
from bytegolf.model.lm import LanguageModel
from bytegolf.recipes.opening import open_model
from bytegolf.train.distributed import pick_device, pick_precision


def get(source: str, precision: str = "auto") -> tuple[LanguageModel, Config]:
    """The model of a preset (random weights, 1/N of the positions open a chunk), a run's folder or an artifact."""
    if source not in preset_names():
        opened = open_model(Path(source), precision=precision)
        return opened.model, opened.config
    config = load(source)
    torch.manual_seed(0)
    device = pick_device("auto")
    model = LanguageModel(config.model).to(device).eval()
    for parameter in model.parameters():  # matrices that start at zero would make every position alike
        if parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)
    calibrate(model)
    model.precision = pick_precision(precision, device)
    return model, config


@torch.no_grad()
def calibrate(model: LanguageModel) -> None:
    """Have each router open a chunk at 1/N of the positions: its p is stretched so that this share is above ½."""
    network = model.network
    text = torch.randint(4, 260, (4, 1024), device=model.embedding.weight.device)
    while isinstance(network, Level):
        found: list[Tensor] = []
        hook = network.router.register_forward_hook(lambda *call, found=found: found.append(call[2][0]))
        model(text)
        hook.remove()
        middle = float(torch.quantile(found[0][:, 1:].flatten(), 1 - 1 / network.config.router.target))
        network.router.forward = _stretched(network.router.forward, middle)
        network.router.extend = _stretched(network.router.extend, middle)
        network = network.main


def _stretched(call: Callable[..., tuple[Tensor, ...]], middle: float) -> Callable[..., tuple[Tensor, ...]]:
    def routed(*arguments: Tensor) -> tuple[Tensor, ...]:
        p, _, *rest = call(*arguments)
        p = torch.where(p < middle, p / (2 * middle), 0.5 + (p - middle) / (2 * (1 - middle)))
        return p, p >= 0.5, *rest

    return routed
