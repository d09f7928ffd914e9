"""What a training run tells of itself: what rows of metrics.jsonl are added up from, the live line, alarms.

Legend: N chunking levels, S layers of soft chunking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytegolf.artifact.checkpoint_folder import Progress, described
from bytegolf.bpb import Score, bits_per_byte
from bytegolf.config import Config
from bytegolf.distributed import DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.model.lm import LanguageModel
from bytegolf.progress import Teller, clock
from bytegolf.training.metrics_file import AlarmRow, MetricsFile, SoftRow, TrainRow, ValidationRow, event_log
from bytegolf.training.schedule import remaining, training_budget
from bytegolf.training.step import StepFigures

COLLAPSED_LOW, COLLAPSED_HIGH = 0.01, 0.90
"""Boundary rates beyond which a router no longer chunks."""

TRUNCATED_SHARE = 0.01
"""Share of sequences beyond which a capacity that truncates is worth a warning."""

PATIENCE = 5
"""Rows of metrics in a row that a rate must be so before anyone is warned: untrained routers pass through 0.003."""


class RouterWatch:
    """Tells of routers that do not chunk, or are cut short, once that is so for ``PATIENCE`` rows of metrics."""

    def __init__(self) -> None:
        self._streaks: dict[tuple[int, str], int] = {}

    def see(self, rates: list[float], step: int, learned: Sequence[bool] = ()) -> list[str]:
        """Take in each level's boundary rate of one row; warnings, one per level when its patience has just run out.

        ``learned`` tells which routers have a loss that could be weighed more (none given: all); what a fixed rule does
        follows from the rule and the text.
        """
        warnings = []
        for level, rate in enumerate(rates):
            for side, collapsed in (("low", rate < COLLAPSED_LOW), ("high", rate > COLLAPSED_HIGH)):
                if self._lasts(level, side, collapsed):
                    advice = f"raise {_key(level)}.loss_weight"
                    if learned and not learned[level]:
                        advice = f"it follows a fixed rule, so choose another {_key(level)}.kind, or its target"
                    what = "opens almost no chunks" if side == "low" else "makes nearly every position a chunk"
                    warnings.append(
                        f"the router of level {level} {what} (rate {rate:.3f} at step {step}, and so in {PATIENCE} "
                        f"rows of metrics in a row): {advice}"
                    )
        return warnings

    def see_truncation(self, truncated: list[int], sequences: list[float], step: int) -> list[str]:
        """The same for what a fixed capacity truncated: each level's boundaries in one row, and share of sequences.

        Untrained routers propose half of the positions, and a capacity is for trained ones.
        """
        return [
            f"the capacity of level {level} truncated {boundaries:,} boundaries in {share:.0%} of sequences (the row "
            f"of step {step}, and likewise {PATIENCE} rows in a row): lower {_key(level)}.capacity_divisor, or set "
            f"{_key(level)}.capacity=bucketed, which truncates nothing"
            for level, (boundaries, share) in enumerate(zip(truncated, sequences, strict=True))
            if self._lasts(level, "truncated", share > TRUNCATED_SHARE)
        ]

    def _lasts(self, level: int, what: str, now: bool) -> bool:
        """Count how long ``what`` has been so; whether it has just become too long."""
        streak = self._streaks.get((level, what), 0) + 1 if now else 0
        self._streaks[level, what] = streak
        return streak == PATIENCE


def _key(level: int) -> str:
    """The configuration key of a level's router."""
    return f"model.network{'.main' * level}.router"


@dataclass
class MetricAccumulator:
    """The steps since the last row of metrics.jsonl: means over all ranks, once they are settled.

    A step's figures stay on the device until ``settle``, which fetches those of all steps at once: a GPU is not waited
    for in between. With ``log_every`` = 3 and a checkpoint after step 4:

        add 1, add 2, add 3, settle: a row of steps 1–3, and a new accumulator
        add 4, settle: the checkpoint holds the losses of step 4, not yet in a row
        add 5, add 6, settle: a row of steps 4–6, whether or not the run was resumed in between
    """

    losses: list[float] = field(default_factory=list)
    """one per step"""
    rates: list[list[float]] = field(default_factory=list)
    """one per step and chunking level"""
    truncated: list[list[float]] = field(default_factory=list)
    """boundaries per sequence beyond the capacity; one per step and chunking level"""
    truncated_sequences: list[list[float]] = field(default_factory=list)
    """share of sequences that had some; one per step and chunking level"""
    soft: list[list[float]] = field(default_factory=list)
    """of soft chunking, one per step: each layer's mean of b, then of b², then the norm of its predictor's gradient"""
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0
    _pending: list[Tensor] = field(default_factory=list)
    _pending_tokens: int = 0
    _pending_bytes: int = 0
    _levels: int = 0

    def add(self, figures: StepFigures, tokens: int, size: int) -> None:
        """Take in one step of this rank, which read so many tokens and bytes. Fetches nothing."""
        self._pending.append(torch.cat((figures.loss.reshape(1), figures.levels.flatten(), figures.soft.flatten())))
        self._levels = figures.levels.shape[1]
        self._pending_tokens += tokens
        self._pending_bytes += size

    def settle(self, world: DistributedContext) -> tuple[int, int]:
        """Fetch what is pending and put the ranks together; the tokens and bytes that this adds. All ranks call it.

        A step's row on the wire is loss, then N numbers of each kind of ``StepFigures.levels``, then 3·S of ``soft``.
        """
        rows = torch.stack(self._pending).tolist() if self._pending else []
        mine = [value / world.size for row in rows for value in row]
        tokens, size, *values = world.total(self._pending_tokens, self._pending_bytes, *mine)
        width = len(values) // len(rows) if rows else 1
        levels = self._levels
        for first in range(0, len(values), width):
            self.losses.append(values[first])
            for kind, found in enumerate((self.rates, self.truncated, self.truncated_sequences)):
                at = first + 1 + kind * levels
                found.append(values[at : at + levels])
            self.soft.append(values[first + 1 + 3 * levels : first + width])
        self._pending, self._pending_tokens, self._pending_bytes = [], 0, 0
        self.tokens += int(tokens)
        self.bytes += int(size)
        return int(tokens), int(size)

    def row(self, progress: Progress, seq_len: int, factor: float) -> TrainRow:
        """These steps, settled, as a row of metrics.jsonl; the last had the learning rates times ``factor``."""
        loss = math.fsum(self.losses) / len(self.losses)
        sequences, soft = self.tokens / seq_len, _means(self.soft)
        layers = zip(*(soft[part * len(soft) // 3 : (part + 1) * len(soft) // 3] for part in range(3)), strict=True)
        return TrainRow(
            step=progress.step,
            seconds=round(progress.seconds, 3),
            tokens=progress.tokens,
            bytes=progress.bytes,
            loss=loss,
            bpb=bits_per_byte(loss * self.tokens, self.bytes),
            rates=_means(self.rates),
            truncated=[round(mean * sequences) for mean in _means(self.truncated)],
            truncated_sequences=_means(self.truncated_sequences),
            lr=factor,
            bytes_per_second=round(self.bytes / self.seconds, 1) if self.seconds else 0.0,
            soft=[SoftRow(b, max(0.0, square - b * b) ** 0.5, norm) for b, square, norm in layers],
        )

    def state(self) -> dict[str, Any]:
        """The settled part as plain data."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    @staticmethod
    def of(state: Any, levels: int, soft_layers: int, path: Path) -> MetricAccumulator:
        """What ``state`` describes in the checkpoint ``path`` of a model with so many levels and layers.

        Raises BytegolfError if it did not.
        """
        window = described(MetricAccumulator, state, path)
        steps = len(window.losses)
        for rows, width in (
            *((kind, levels) for kind in (window.rates, window.truncated, window.truncated_sequences)),
            (window.soft, 3 * soft_layers),
        ):
            if len(rows) != steps or any(len(row) != width for row in rows):
                raise BytegolfError(f"the window in the checkpoint {path} does not fit the model: delete its folder")
        return window


def _means(steps: list[list[float]]) -> list[float]:
    return [math.fsum(level) / len(level) for level in zip(*steps, strict=True)]


class MetricsLogger:
    """Tells how a run goes, once it is open; the ranks that do not lead leave theirs closed."""

    def __init__(self, config: Config, model: LanguageModel, run: Path | None, reporter: Teller) -> None:
        """Without a ``run`` folder rows are told to the ``reporter`` and not written down."""
        self.config, self.run, self.reporter = config, run, reporter
        self._budget = training_budget(config)
        self._learned = [level.router.learned for level in model.levels()]
        self._watch = RouterWatch()
        self._open = False
        self._file: MetricsFile | None = None

    def open(self, resumed: int | None, steps: MetricAccumulator) -> None:
        """Start metrics.jsonl, or cut it back to the step ``resumed``: what came later happens again.

        So does the row, if any, of the ``steps`` that the checkpoint holds.
        """
        self._open, self._watch = True, RouterWatch()
        if resumed is not None:
            self.reporter.say(f"resuming at step {resumed}")
        if self.run is None:
            return
        also = event_log(self.run, (resumed or -1) + 1) if self.config.train.tensorboard else None

        def keep(row: dict[str, Any]) -> bool:
            last = -1 if resumed is None else resumed
            return bool(row["step"] <= (last if row["kind"] == "validation" else last - len(steps.losses)))

        self._file = MetricsFile(self.run / "metrics.jsonl", None if resumed is None else keep, also)
        for row in self._file.rows:
            if row["kind"] == "train":
                truncation = row.get("truncated", []), row.get("truncated_sequences", [])
                self._warnings(row["step"], row.get("rates", []), *truncation)

    def _add(self, row: TrainRow | ValidationRow | AlarmRow) -> None:
        if self._file:
            self._file.add(row)

    def train(self, progress: Progress, steps: MetricAccumulator, factor: float) -> None:
        """Tell of ``steps``, of which the last had the learning rates times ``factor``."""
        if not self._open:
            return
        row = steps.row(progress, self.config.train.seq_len, factor)
        self._add(row)
        self.reporter.progress(self._line(progress, row))
        for text in self._warnings(row.step, row.rates, row.truncated, row.truncated_sequences):
            self.reporter.warn(text)
            self.alarm(progress.step, text)

    def validation(self, progress: Progress, sample: Score) -> None:
        """Tell of a sample's score."""
        self._add(ValidationRow(progress.step, round(progress.seconds, 3), sample.bpb, sample.tokens))

    def alarm(self, step: int, text: str) -> None:
        """Write down what is wrong at ``step``."""
        self._add(AlarmRow(step, text))

    def _warnings(
        self, step: int, rates: list[float], truncated: list[int], truncated_sequences: list[float]
    ) -> list[str]:
        """What a row of training gives reason to warn of, with the rows before it."""
        truncation = self._watch.see_truncation(truncated, truncated_sequences, step)
        return self._watch.see(rates, step, self._learned) + truncation

    def _line(self, progress: Progress, row: TrainRow) -> str:
        """A row of training as one line for people."""
        share = remaining(self._budget, progress.step, progress.seconds)
        left = progress.seconds * share / (1 - share) if share < 1 else 0.0
        parts = [
            f"step {progress.step}",
            f"{clock(progress.seconds)} done, {clock(left)} left",
            f"{row.bytes_per_second / 1000:.1f} kB/s",
            f"bpb {row.bpb:.3f}",
        ]
        if row.rates:
            parts.append("rate " + "/".join(f"{rate:.3f}" for rate in row.rates))
        parts.append(f"lr ×{row.lr:.2f}")
        if progress.validation_bpb is not None:
            parts.append(f"val {progress.validation_bpb:.3f}")
        return " · ".join(parts)
