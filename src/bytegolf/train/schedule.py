"""The learning rate as a share of its peak: linear warm-up, constant, linear decay to 0; and when training ends.

Progress is measured in time under a wall-clock budget and in steps otherwise; whichever budget ends first counts.
"""

from __future__ import annotations

from bytegolf.config import TrainConfig


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


def remaining(config: TrainConfig, step: int, seconds: float) -> float:
    """The share of the budget that is left before ``step`` at ``seconds`` of training time; ≤ 0 when it is used up."""
    return min(left for left, _ in _budgets(config, step, seconds))


def learning_rate(config: TrainConfig, step: int, seconds: float) -> float:
    """The factor on every learning rate at ``step`` (from 0), after ``seconds`` of training time.

    The decay covers the last ``decay_fraction`` of the budget, or the last ``decay_steps`` steps: under a wall-clock
    budget, the time that as many steps take at the mean pace so far (S0's warmdown). With two budgets, the one that
    asks for less counts.
    """
    factor = 1.0
    for left, decay in _budgets(config, step, seconds):
        if decay > 0:
            factor = min(factor, max(0.0, left) / decay)
    if step < config.lr_warmup_steps:
        factor = min(factor, (step + 1) / config.lr_warmup_steps)
    return factor
