"""Models to measure inference with: a trained one, or a preset's shape with random weights and its chunk rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bytegolf.artifact.loading import load_own
from bytegolf.config import Config, preset_names
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.device import choose_device, pick_precision
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import Material
from bytegolf.model.routers.cosine import CosineRouter


def get(source: str, precision: str = "auto") -> tuple[LanguageModel, Config]:
    """The model of a preset (random weights, 1/N of the positions open a chunk), a run's folder or an artifact."""
    if source not in preset_names():
        opened = load_own(Path(source), precision=precision)
        return opened.model, opened.config
    config = Config.load(source)
    torch.manual_seed(0)
    device = choose_device("auto")
    model = LanguageModel(config.model).to(device).eval()
    for parameter in model.parameters():  # matrices that start at zero would make every position alike
        if parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)
    calibrate(model)
    model.precision = pick_precision(precision, device)
    return model, config


def calibrate(model: LanguageModel) -> None:
    """Have each learned router open a chunk at 1/N of the positions of random bytes, by an offset to its log odds."""
    for level in model.levels():
        if isinstance(level.router, CosineRouter):
            level.router.offset = torch.nn.Parameter(torch.zeros((), device=model.embedding.weight.device))
    tokens = np.random.default_rng(0).integers(4, 260, 1 << 13).astype(np.uint16)
    model.prepare_routers(Material(ByteTokenizer(), tokens, Path()))
