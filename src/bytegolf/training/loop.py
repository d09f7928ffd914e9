"""The training loop: the only one. Every variant is a configuration.

A step is ``prepare_step``, ``gradients``, ``update``; ``fit`` takes them until the budget is used up, and a loop of
one's own, as ``bytegolf.Trainer`` shows, takes the very same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.checkpoint_folder import Progress
from bytegolf.artifact.export import Exported, export_weights
from bytegolf.config import Config, levels
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.score import score
from bytegolf.model.lora import merged
from bytegolf.progress import Teller
from bytegolf.training.metrics import MetricAccumulator, MetricsLogger
from bytegolf.training.optim import Optimizer
from bytegolf.training.schedule import Clock, learning_rate, remaining, training_budget
from bytegolf.training.setup import Interrupt, TrainingData, all_finite, gathered, model_to_train, released
from bytegolf.training.step import Batch, Objective, StepFigures, Stepper, StepResult


class Trainer:
    """Trains one model on one token stream within the budget of its configuration."""

    def __init__(
        self, config: Config, data: TrainingData, folder: Path | None, world: DistributedContext, reporter: Teller
    ) -> None:
        """The model before its first step. ``folder`` is where metrics.jsonl and checkpoints go (None: nowhere),
        ``world`` this process's place among those that train together.

        Raises BytegolfError for a clock that the device does not have.
        """
        self.config, self.data, self.folder = config, data, folder
        self.world, self.reporter = world, reporter
        self.clock = Clock(config.train.clock, world.device)
        self.model = model_to_train(config, data, world, reporter)
        self.stepper = Stepper(config, self.model, data.train, data.tokenizer, world, reporter)
        self.logger = MetricsLogger(config, self.model, folder, reporter)
        self.progress = Progress()
        """where the run stands; tokens and bytes as of the last row of metrics"""
        self.interrupt = Interrupt()
        self.stopped_early = False
        """whether ``fit`` was interrupted before the budget was used up"""
        self._budget = training_budget(config)
        self._steps = MetricAccumulator()
        self._taken: tuple[Batch, StepFigures] | None = None
        self._factor = 1.0
        self._begun = self._stop = False
        self._resumed: int | None = None
        self._validated_step: int | None = None

    # ------------------------------------------------------------------------------------------ step by step

    @property
    def done(self) -> bool:
        """Whether the budget is used up."""
        return remaining(self._budget, self.progress.step, self.progress.seconds) <= 0

    @property
    def optimizer(self) -> Optimizer:
        """What moves the weights."""
        return self.stepper.optimizer

    def __iter__(self) -> Iterator[Batch]:
        """The batch of each step until the budget is used up; the loop's body has to take the step."""
        while not self.done:
            yield self.next_batch()

    def next_batch(self) -> Batch:
        """What the next step trains on: the same until it is taken."""
        return self.stepper.batch(self.progress.step)

    def step(self, batch: Batch | None = None) -> StepResult:
        """Take one step, by default on ``next_batch``."""
        self.prepare_step()
        self.gradients(batch or self.next_batch())
        return self.update()

    def prepare_step(self) -> None:
        """Have the model be what the next step's gradients are taken at; ``update`` has to follow.

        The first time it warms up and starts the clock of a budget in seconds.
        """
        self._begin()
        self._factor = learning_rate(self._budget, self.progress.step, self.progress.seconds)
        self.stepper.prepare(self.progress.step, self.progress.seconds)

    def gradients(self, batch: Batch, objective: Objective | None = None) -> StepFigures:
        """Add the gradients of ``objective`` (by default the model's own) over ``batch`` to the parameters'."""
        figures = self.stepper.gradients(batch, objective)
        self._taken = batch, figures
        return figures

    def update(self) -> StepResult:
        """Move the weights by their gradients, and count the step.

        Raises BytegolfError, when a row of metrics is due, for a loss that is not finite.
        """
        batch, figures = self._taken or (None, None)
        self._taken = None
        tokens, size = (batch.targets.numel(), batch.bytes) if batch else (0, 0)
        if figures is not None:
            self._steps.add(figures, tokens, size)
        self.stepper.update(self._factor, self.progress.step)
        self._advance(step=self.progress.step + 1)
        logs = self.progress.step % self.config.train.log_every == 0
        if logs:  # losses are fetched, so the device's queue is empty: the clock is honest here
            self._settle()
        self._take_time()
        if logs:
            self._log()
            self._steps = MetricAccumulator()
        return StepResult(self.progress.step, self._factor, tokens, size, figures)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            if self.world.leads:
                self.logger.open(self._resumed, self._steps)
            self.stepper.warm_up()
            self.clock.restart()
            self.stepper.count(fresh=self._resumed is None)
            if self._resumed is None:  # counting is training, and takes of its time
                self._take_time()

    # ------------------------------------------------------------------------------------------ the whole loop

    def fit(self, resume: bool = False) -> Progress:
        """Train until the budget is used up, or Ctrl-C. ``resume`` goes on from the latest checkpoint, if any.

        Raises BytegolfError where that cannot go on: losses or weights that are not finite, a checkpoint that does not
        fit, a disk that is full.
        """
        if resume:
            self.resume()
        if not self.done:
            with self.interrupt.awaited():  # counting and compiling before the first step take their time, too
                self._begin()
                with self.reporter:
                    self._loop()
        elif self._resumed is not None:  # what was validated then may have been another sample
            self.validate()
        return self.progress

    def _loop(self) -> None:
        settings = self.config.train
        validated = saved = self.progress.seconds
        self.clock.restart()
        while True:
            self.step()
            if self.done or self._stop:
                break
            now = self.progress.seconds
            save = settings.checkpoint_every > 0 and now - saved >= settings.checkpoint_every
            validate = settings.validate_every > 0 and (save or now - validated >= settings.validate_every)
            if save or validate:
                with self.untimed():
                    if validate:
                        self.validate()
                        validated = self.progress.seconds
                    if save:
                        self.checkpoint()
                        saved = self.progress.seconds
        self.stopped_early = not self.done
        with self.untimed():
            self._log()  # a row for the steps that are left over; it is written again if they go on
            self.validate()
            self.checkpoint()

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """What happens in the context is not training time; what was queued on the device before it is."""
        self._settle()
        self._take_time()
        yield
        self.clock.restart()

    def _take_time(self) -> None:
        """Charge the lap to training, and hear whether any rank was interrupted.

        One collective per step gives all ranks the leader's clock, so that they agree on the schedule and the end.
        """
        lap = self.clock.lap()
        spent, stop = self.world.total(lap if self.world.leads else 0.0, float(self.interrupt.asked))
        self._advance(seconds=self.progress.seconds + spent)
        self._steps.seconds += spent
        self._stop = stop > 0

    def _advance(self, **changes: Any) -> None:
        self.progress = dataclasses.replace(self.progress, **changes)

    def _settle(self) -> None:
        """Fetch the losses since the last time. Raises BytegolfError if one of them is not finite."""
        tokens, size = self._steps.settle(self.world)
        self._advance(tokens=self.progress.tokens + tokens, bytes=self.progress.bytes + size)
        losses = self._steps.losses
        for index, loss in enumerate(losses, self.progress.step - len(losses) + 1):
            if not math.isfinite(loss):
                self._broken(f"the loss is not finite at step {index}")

    def _log(self) -> None:
        if self._steps.losses:
            self.logger.train(self.progress, self._steps, self._factor)

    def _broken(self, what: str) -> NoReturn:
        text = (
            f"{what}: training stopped before it could spoil a checkpoint; "
            "lower optim.muon_lr, optim.embed_lr or optim.scalar_lr (optim.adamw_lr under adamw), or set "
            "train.grad_clip"
        )
        self.logger.alarm(self.progress.step, text)
        raise BytegolfError(text)

    def validate(self) -> float | None:
        """Bits per byte of a sample of the validation split, with the weights that would be exported.

        None if ``train.validate_tokens`` is 0. Every rank has to ask.
        """
        settings = self.config.train
        if not settings.validate_tokens:
            return None
        # with shards every rank has to take part in every forward pass, so each scores all of it
        world = SINGLE_PROCESS if self.stepper.sharded else self.world
        capacity = self.model.capacity(self.config.eval.capacity, self.config.eval.capacity_divisor)
        with self.stepper.averaged(), capacity, released(self.model):
            sample = score(
                self.model,
                self.data.validation,
                self.data.tokenizer,
                settings.seq_len,
                batch=self.config.eval.batch,
                limit=settings.validate_tokens,
                world=world,
            )
        self._advance(validation_bpb=sample.bpb)
        self._validated_step = self.progress.step
        self.logger.validation(self.progress, sample)
        return sample.bpb

    # ------------------------------------------------------------------------------------------ keeping

    def export_state(self) -> dict[str, Tensor]:
        """The weights to ship, on the CPU: averaged ones where averaging is on, and with adapters merged into them.

        Where weights are spread over the ranks, every rank has to ask, and only the leader gets them.
        """
        with self.stepper.averaged():
            weights = gathered(self.stepper.weights(), self.world)
            return merged({name: tensor.detach().cpu().clone() for name, tensor in weights.items()})

    def export(self, path: Path) -> Exported | None:
        """Write the artifact alone: the leader does, with the help of the other ranks where weights are shards."""
        state = self.export_state() if self.world.leads or self.stepper.sharded else {}
        if not self.world.leads:
            return None
        return export_weights(path, self.config, self.data.tokenizer, state, self.progress, self.world.device)

    def checkpoint(self) -> None:
        """Write a checkpoint of all that a resumed run needs; older ones go as configured. Every rank has to ask.

        Raises BytegolfError for losses or weights that are not finite, and without a folder.
        """
        folder = self._checkpoints()
        self._settle()
        if not all_finite(self.model.parameters(), self.world):
            self._broken(f"the weights are not finite after step {self.progress.step}")
        optimizer = gathered(self.stepper.optimizer.state(), self.world)  # in which every rank has a share
        weights = gathered(self.stepper.weights(), self.world)
        averaged = gathered(self.stepper.average.state(), self.world) if self.stepper.average else {}
        if self.world.leads:
            # losses that no row of metrics holds yet go along: with rows every 10 steps and a checkpoint at step 14,
            # the row of step 20 averages steps 11 to 20, also in a resumed run
            progress = {**dataclasses.asdict(self.progress), "window": self._steps.state()}
            progress[store.SAMPLE] = self.config.train.validate_tokens
            if self._validated_step != self.progress.step:
                progress["validation_bpb"] = None  # an earlier one says nothing about these weights
            store.save(folder, store.Checkpoint(progress, weights, optimizer, averaged))
            store.prune(folder, self.config.train.keep_checkpoints)
        self.world.wait()

    def _checkpoints(self) -> Path:
        if self.folder is None:
            raise BytegolfError("this trainer has no folder for checkpoints: give it one, as Trainer(…, folder=…)")
        return self.folder / "checkpoints"

    def resume(self) -> bool:
        """Go back to where the folder's latest checkpoint was written, before the first step; whether there is one.

        All that the next steps depend on is restored or follows from the number of steps: weights, moments, average,
        the seconds used, and losses that no row of metrics holds yet. So the run goes on bit for bit as it would have.

        Raises BytegolfError for a checkpoint that is damaged or of another model.
        """
        folder = self._checkpoints()
        found = store.checkpoints(folder)
        step = int(self.world.agree(store.step_of(found[-1]) if found else -1))
        if step < 0:
            return False
        path = store.path_of(folder, step)
        saved = store.load(path)
        try:
            self.stepper.load_weights(saved.model)
        except RuntimeError as error:
            raise BytegolfError(
                f"the checkpoint {path} does not fit the model: resume with the run's own config"
            ) from error
        self.stepper.optimizer.load_state(saved.optimizer)
        if self.stepper.average:
            self.stepper.average.load_state(saved.averaged or saved.model)
        self.progress = Progress.of(saved.progress, path)
        depth, layers = len(levels(self.config.model.network)), self.config.model.soft.layers
        self._steps = MetricAccumulator.of(saved.progress.get("window", {}), depth, layers, path)
        self._resumed = step
        return True
