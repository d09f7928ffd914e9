"""What a training run tells of itself: rows of metrics.jsonl, the live line, alarms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bytegolf.artifact.run_progress import Progress
from bytegolf.bpb import Score, bits_per_byte
from bytegolf.config import Config
from bytegolf.model.lm import LanguageModel
from bytegolf.progress import Reporter, clock
from bytegolf.training.metric_accumulator import MetricAccumulator
from bytegolf.training.metrics import Metrics, RouterWatch
from bytegolf.training.schedule import remaining, training_budget
from bytegolf.training.tensorboard import event_log


class MetricsLogger:
    """Tells how a run goes, once it is open; the ranks that do not lead leave theirs closed."""

    def __init__(self, config: Config, model: LanguageModel, run: Path, reporter: Reporter) -> None:
        self.config, self.run, self.reporter = config, run, reporter
        self._budget = training_budget(config)
        self._learned = [level.router.learned for level in model.levels()]
        self._watch = RouterWatch()
        self._metrics: Metrics | None = None

    def open(self, resumed: int | None, window: MetricAccumulator) -> None:
        """Start metrics.jsonl, or cut it back to the step ``resumed``: what came later happens again.

        So does the row, if any, of the steps that the checkpoint holds as the open ``window``.
        """
        self._watch = RouterWatch()
        path = self.run / "metrics.jsonl"
        also = event_log(self.run, (resumed or -1) + 1) if self.config.train.tensorboard else None
        if resumed is None:
            self._metrics = Metrics(path, also=also)
            return
        self.reporter.say(f"resuming at step {resumed}")
        logged = resumed - len(window.losses)
        self._metrics = Metrics(
            path, lambda row: row["step"] <= (resumed if row["kind"] == "validation" else logged), also
        )
        for row in self._metrics.rows:
            if row["kind"] == "train":
                self._warnings(row)

    def steps(self, progress: Progress, window: MetricAccumulator, factor: float) -> None:
        """Tell of the steps of ``window``, of which the last had the learning rates times ``factor``."""
        if not self._metrics:
            return
        loss, rates = window.mean_loss(), window.mean_rates()
        truncated, truncated_sequences = window.truncation(self.config.train.seq_len)
        bpb = bits_per_byte(loss * window.tokens, window.bytes)
        pace = window.bytes / window.seconds if window.seconds else 0.0
        row: dict[str, Any] = {
            "kind": "train",
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            "tokens": progress.tokens,
            "bytes": progress.bytes,
            "loss": loss,
            "bpb": bpb,
            "rates": rates,
            "truncated": truncated,
            "truncated_sequences": truncated_sequences,
            "lr": factor,
            "bytes_per_second": round(pace, 1),
        }
        if soft := window.soft_layers():
            row["soft"] = soft
        self._metrics.add(**row)
        self.reporter.progress(self._line(progress, row))
        for text in self._warnings(row):
            self.reporter.warn(text)
            self.alarm(progress.step, text)

    def validation(self, progress: Progress, sample: Score) -> None:
        """Tell of a sample's score."""
        if self._metrics:
            self._metrics.add(
                kind="validation",
                step=progress.step,
                seconds=round(progress.seconds, 3),
                bpb=sample.bpb,
                tokens=sample.tokens,
            )

    def alarm(self, step: int, text: str) -> None:
        """Write down what is wrong at ``step``."""
        if self._metrics:
            self._metrics.add(kind="alarm", step=step, text=text)

    def _warnings(self, row: dict[str, Any]) -> list[str]:
        """What a row of training gives reason to warn of, with the rows before it."""
        step = row["step"]
        truncation = self._watch.see_truncation(row.get("truncated", []), row.get("truncated_sequences", []), step)
        return self._watch.see(row.get("rates", []), step, self._learned) + truncation

    def _line(self, progress: Progress, row: dict[str, Any]) -> str:
        """A row of training as one line for people."""
        share = remaining(self._budget, progress.step, progress.seconds)
        left = progress.seconds * share / (1 - share) if share < 1 else 0.0
        parts = [
            f"step {progress.step}",
            f"{clock(progress.seconds)} done, {clock(left)} left",
            f"{row['bytes_per_second'] / 1000:.1f} kB/s",
            f"bpb {row['bpb']:.3f}",
        ]
        if row["rates"]:
            parts.append("rate " + "/".join(f"{rate:.3f}" for rate in row["rates"]))
        parts.append(f"lr ×{row['lr']:.2f}")
        if progress.validation_bpb is not None:
            parts.append(f"val {progress.validation_bpb:.3f}")
        return " · ".join(parts)
