"""What routers make from the training text before training begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bytegolf.model.routers.base import Material

if TYPE_CHECKING:
    from bytegolf.model.lm import LanguageModel

CALIBRATION_LENGTH, CALIBRATION_ROWS = 1024, 8
"""The sequences of training text, and how many, on which a calibrated router is set to its target rate."""


@torch.no_grad()
def prepare_routers(model: LanguageModel, material: Material) -> None:
    """Have each router make what it needs, the outermost first. Raises BytegolfError if one cannot.

    A calibrated router sees a few sequences of the text.
    """
    length = min(CALIBRATION_LENGTH, len(material.tokens))
    rows = material.tokens[: len(material.tokens) // max(length, 1) * length].reshape(-1, max(length, 1))
    for depth, level in enumerate(model.levels()):
        router = level.router
        router.prepare(material)
        if router.calibrated and len(rows):
            ids = torch.from_numpy(rows[:CALIBRATION_ROWS].astype(np.int64)).to(model.embedding.weight.device)
            trace = model(ids).traces[depth]
            seen = trace.p < 1
            router.calibrate(trace.p[seen if trace.valid is None else seen & trace.valid], level.target)
