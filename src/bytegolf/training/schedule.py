"""What follows from how much of the training budget is used: the learning rate as a share of its peak (linear warm-up,
constant, decay to 0), how long routers' chunks are to be, when QAT starts and training ends. Also the clock that
a budget in seconds is counted on.

Progress is measured in time under a budget in seconds and in steps otherwise; whichever budget ends first counts.

Example: ``max_steps`` = 100, ``decay_fraction`` = 0.4, ``lr_warmup_steps`` = 10.

    step              0     9    10 … 60     80    99
    budget left       1  0.91         0.4    0.2  0.01
    learning rate   0.1     1     1 …  1     0.5  0.025

With ``max_seconds`` = 50 besides, and 1 s per step, time runs out first: at step 30 there are 0.4 of the seconds left
and 0.7 of the steps, so the decay begins there.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Literal

import torch

from bytegolf.config import Config, RouterConfig, TrainConfig
from bytegolf.errors import BytegolfError


def _budgets(config: TrainConfig, step: int, seconds: float) -> list[tuple[float, float]]:
    """Of each budget that is set: the share left before ``step`` at ``seconds``, and the share that the decay takes."""
    found = []
    if config.max_steps > 0:
        decay = config.decay_steps / config.max_steps if config.decay_steps > 0 else config.decay_fraction
        found.append((1 - step / config.max_steps, decay))
    if config.max_seconds > 0:
        decay = config.decay_fraction
        if config.decay_steps > 0:  # at the mean pace so far, which step 0 does not know
            decay = config.decay_steps * (seconds / step) / config.max_seconds if step > 0 else 0.0
        found.append((1 - seconds / config.max_seconds, decay))
    return found


def training_budget(config: Config) -> TrainConfig:
    """The settings of training, its wall-clock budget less what is kept for GPTQ, whose time counts as training's."""
    settings = config.train
    if not (config.export.gptq and settings.max_seconds):
        return settings
    return dataclasses.replace(settings, max_seconds=settings.max_seconds - config.export.gptq_seconds)


def remaining(config: TrainConfig, step: int, seconds: float) -> float:
    """The share of the budget that is left before ``step`` at ``seconds`` of training time; ≤ 0 when it is used up."""
    return min(left for left, _ in _budgets(config, step, seconds))


def decay_left(config: TrainConfig, step: int, seconds: float) -> float:
    """The share of the learning rate's decay that is still to come: 1 before it, 0 at the end.

    The decay covers the last ``decay_fraction`` of the budget, or the last ``decay_steps`` steps: under a wall-clock
    budget, the time that as many steps take at the mean pace so far (S0's warmdown). With two budgets, the one that
    leaves less counts.
    """
    shares = [max(0.0, left) / decay for left, decay in _budgets(config, step, seconds) if decay > 0]
    return min(1.0, *shares) if shares else 1.0


def learning_rate(config: TrainConfig, step: int, seconds: float) -> float:
    """The factor on every learning rate at ``step`` (from 0), after ``seconds`` of training time.

    What is left of the decay, or a linear rise over the first ``lr_warmup_steps`` or ``lr_warmup_fraction``, whichever
    is less. In the shape "sqrt" what is left is 1 − √x of the decay's share x that is over (arXiv 2405.18392): 0.5 at
    a quarter of the decay, where a linear one is still at 0.75.
    """
    factor = decay_left(config, step, seconds)
    if config.decay_shape == "sqrt":
        factor = 1 - math.sqrt(1 - factor)
    if step < config.lr_warmup_steps:
        factor = min(factor, (step + 1) / config.lr_warmup_steps)
    if config.lr_warmup_fraction > 0:
        done = 1 - remaining(config, step, seconds)
        factor = min(factor, max(done / config.lr_warmup_fraction, 1e-3))  # the first step moves, if little
    return factor


def quantises(config: TrainConfig, step: int, seconds: float) -> bool:
    """Whether ``step`` computes with quantised weights: a function of the progress, so that a resumed run agrees."""
    return config.qat_from > 0 and decay_left(config, step, seconds) <= 1 - config.qat_from


def guide_weight(router: RouterConfig, done: float) -> float:
    """The weight of the guide's loss once the share ``done`` of the budget is used: falls to 0 by ``guide_share``."""
    return router.cosine.guide_weight * (1 - min(1.0, max(0.0, done) / router.cosine.guide_share))


def chunk_target(router: RouterConfig, done: float) -> float:
    """N of the ratio loss once the share ``done`` of the budget is used: from ``start_target`` evenly to ``target``.

    Chunks that grow with training are the low-to-high curriculum of arXiv 2605.30080.
    """
    if not router.start_target:
        return router.target
    way = min(1.0, max(0.0, done) / router.target_ramp)
    return router.start_target + way * (router.target - router.start_target)


class Clock:
    """Seconds of training, lap by lap: wall-clock time, or what the processors of this process spent."""

    def __init__(self, kind: Literal["wall", "processor"], device: torch.device) -> None:
        """Raises BytegolfError for the processor's time where another device trains."""
        if kind == "processor" and device.type != "cpu":
            raise BytegolfError(
                f"train.clock is 'processor', but the CPU's seconds say nothing about training on {device.type}: "
                "set train.clock to 'wall'"
            )
        self._kind = kind
        self._mark = 0.0

    def restart(self) -> None:
        """Begin a lap: what passed since the last one is not training time."""
        self._mark = self._now()

    def lap(self) -> float:
        """The seconds of the lap that ends now; the next one begins."""
        now = self._now()
        spent, self._mark = now - self._mark, now
        return spent

    def _now(self) -> float:
        """In seconds since some moment."""
        return time.process_time() if self._kind == "processor" else time.perf_counter()
