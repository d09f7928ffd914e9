"""The learning rate as a share of its peak: linear warm-up, constant, linear decay to 0; how long routers' chunks are
to be; when QAT starts and training ends.

Progress is measured in time under a wall-clock budget and in steps otherwise; whichever budget ends first counts.
"""

from __future__ import annotations

import dataclasses

from bytegolf.config import Config, RouterConfig, TrainConfig


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

    What is left of the decay, or a linear rise over the first ``lr_warmup_steps``, whichever is less.
    """
    factor = decay_left(config, step, seconds)
    if step < config.lr_warmup_steps:
        factor = min(factor, (step + 1) / config.lr_warmup_steps)
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
