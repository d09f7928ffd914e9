"""The training loop: the only one. Every variant is a configuration."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.run_progress import Progress
from bytegolf.config import Config, levels
from bytegolf.data.shards import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.distributed import DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.score import score
from bytegolf.model.lm import LanguageModel
from bytegolf.progress import Reporter
from bytegolf.training.clock import Clock
from bytegolf.training.interrupt import Interrupt
from bytegolf.training.metric_accumulator import MetricAccumulator
from bytegolf.training.metrics_logger import MetricsLogger
from bytegolf.training.schedule import learning_rate, remaining, training_budget
from bytegolf.training.stepper import Stepper


class Trainer:
    """Trains one model on one token stream within the budget of its configuration."""

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        train: TokenStream,
        validation: TokenStream,
        tokenizer: Tokenizer,
        run: Path,
        world: DistributedContext,
        reporter: Reporter,
    ) -> None:
        self.config, self.model, self.validation, self.tokenizer = config, model, validation, tokenizer
        self.run, self.world, self.reporter = run, world, reporter
        self.clock = Clock(config.train.clock, world.device)
        self.stepper = Stepper(config, model, train, tokenizer, world, reporter)
        self.journal = MetricsLogger(config, model, run, reporter)
        self.interrupt = Interrupt()
        self.progress = Progress()
        self.stopped_early = False
        self._budget = training_budget(config)
        self._window = MetricAccumulator()
        self._validated_step: int | None = None

    def fit(self, resume: bool = False) -> Progress:
        """Train until the budget is used up, or Ctrl-C. ``resume`` goes on from the latest checkpoint, if any.

        Raises BytegolfError where that cannot go on: losses or weights that are not finite, a checkpoint that does not
        fit, a disk that is full.
        """
        folder = self.run / "checkpoints"
        found = store.checkpoints(folder) if resume else []
        step = int(self.world.agree(store.step_of(found[-1]) if found else -1))
        if step >= 0:
            path = store.path_of(folder, step)
            self._restore(store.load(path), path)
        if self._left() > 0:
            if self.world.leads:
                self.journal.open(step if step >= 0 else None, self._window)
            self.stepper.warm_up()
            with self.interrupt.awaited(), self.reporter:
                self._loop()
        return self.progress

    def _loop(self) -> None:
        settings, progress = self.config.train, self.progress
        validated = saved = progress.seconds
        self.clock.restart()
        while True:
            factor = learning_rate(self._budget, progress.step, progress.seconds)
            self.stepper.step(factor, progress, self._window)
            progress.step += 1
            logs = progress.step % settings.log_every == 0
            if logs:  # losses are fetched, so the device's queue is empty: the clock is honest here
                self._settle()
            stop = self._take_time()
            done = self._left() <= 0
            if logs:
                self.journal.steps(progress, self._window, factor)
                self._window = MetricAccumulator()
            if done or stop:
                break
            save = settings.checkpoint_every > 0 and progress.seconds - saved >= settings.checkpoint_every
            validate = settings.validate_every > 0 and (save or progress.seconds - validated >= settings.validate_every)
            if save or validate:
                with self._clock_stopped():
                    if validate:
                        self._validate()
                        validated = progress.seconds
                    if save:
                        self._save()
                        saved = progress.seconds
        self.stopped_early = not done
        with self._clock_stopped():
            if self._window.losses:  # a row for the steps that are left over; it is written again if they go on
                self.journal.steps(progress, self._window, factor)
            self._validate()
            self._save()

    def _left(self) -> float:
        """The share of the budget that is left; ≤ 0 when it is used up."""
        return remaining(self._budget, self.progress.step, self.progress.seconds)

    # ------------------------------------------------------------------------------------------ what it has come to

    def _take_time(self) -> bool:
        """Charge the lap to training; whether any rank was interrupted.

        One collective a step gives all ranks the leader's clock, so that they agree on the schedule and the end.
        """
        lap = self.clock.lap()
        spent, stop = self.world.total(lap if self.world.leads else 0.0, float(self.interrupt.asked))
        self.progress.seconds += spent
        self._window.seconds += spent
        return stop > 0

    @contextlib.contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """What happens in the context is not training time; what was queued before it is."""
        self._settle()
        self._take_time()
        yield
        self.clock.restart()

    def _settle(self) -> None:
        """Fetch the losses since the last time. Raises BytegolfError if one of them is not finite."""
        window, progress = self._window, self.progress
        tokens, size = window.settle(self.world)
        progress.tokens += tokens
        progress.bytes += size
        for index, loss in enumerate(window.losses, progress.step - len(window.losses) + 1):
            if not math.isfinite(loss):
                self._broken(f"the loss is not finite at step {index}")

    def _broken(self, what: str) -> NoReturn:
        text = (
            f"{what}: training stopped before it could spoil a checkpoint; "
            "lower optim.muon_lr, optim.embed_lr or optim.scalar_lr, or set train.grad_clip"
        )
        self.journal.alarm(self.progress.step, text)
        raise BytegolfError(text)

    def _validate(self) -> None:
        """Score a sample of the validation split with the weights that would be exported."""
        settings = self.config.train
        if not settings.validate_tokens:
            return
        with self.stepper.averaged(), self.model.capacity(self.config.eval.capacity, self.config.eval.capacity_divisor):
            sample = score(
                self.model,
                self.validation,
                self.tokenizer,
                settings.seq_len,
                batch=self.config.eval.batch,
                limit=settings.validate_tokens,
                collect=self.world.collect,
                turn=(self.world.rank, self.world.size),
            )
        self.progress.validation_bpb, self._validated_step = sample.bpb, self.progress.step
        self.journal.validation(self.progress, sample)

    # ------------------------------------------------------------------------------------------ keeping

    def export_state(self) -> dict[str, Tensor]:
        """The weights to ship, on the CPU: averaged ones where averaging is on."""
        with self.stepper.averaged():
            return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def _save(self) -> None:
        """Write a checkpoint of the settled window and finite weights; older ones go as configured."""
        norms = torch._foreach_norm([weight for weight in self.model.parameters() if weight.numel()])
        if not bool(torch.stack(list(norms)).isfinite().all()):
            self._broken(f"the weights are not finite after step {self.progress.step}")
        optimizer = self.stepper.optimizer.state()  # in which every rank has a share
        if self.world.leads:
            progress = {**vars(self.progress), "window": self._window.state()}
            if self._validated_step != self.progress.step:
                progress["validation_bpb"] = None  # an earlier one says nothing about these weights
            folder = self.run / "checkpoints"
            averaged = self.stepper.average.state() if self.stepper.average else {}
            store.save(folder, store.Checkpoint(progress, self.model.state_dict(), optimizer, averaged))
            store.prune(folder, self.config.train.keep_checkpoints)
        self.world.wait()

    def _restore(self, saved: store.Checkpoint, path: Path) -> None:
        """Go back to where the checkpoint ``path`` was written."""
        try:
            self.model.load_state_dict(saved.model)
        except RuntimeError as error:
            raise BytegolfError(
                f"the checkpoint {path} does not fit the model: resume with the run's own config"
            ) from error
        self.stepper.optimizer.load_state(saved.optimizer)
        if self.stepper.average:
            self.stepper.average.load_state(saved.averaged or saved.model)
        self.progress = Progress.of(saved, path)
        soft = self.config.model.soft.layers
        self._window = MetricAccumulator.of(
            saved.progress.get("window", {}), len(levels(self.config.model.network)), soft, path
        )
