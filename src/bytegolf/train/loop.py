"""The training loop: the only one. Every variant is a configuration.

Legend: B sequences, L tokens of a sequence.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from bytegolf.config import Config, levels
from bytegolf.data.loader import Loader
from bytegolf.data.shards import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.bpb import Score, bits_per_byte, score
from bytegolf.model.lm import LanguageModel, count_parameters
from bytegolf.planning.memory import at_a_time
from bytegolf.train import checkpoint as store
from bytegolf.train.average import WeightAverage
from bytegolf.train.compiling import compile_stages
from bytegolf.train.distributed import World, device_memory
from bytegolf.train.optim import Optimizer
from bytegolf.train.qat import QuantizedTraining
from bytegolf.train.report import Metrics, Reporter, RouterWatch, clock
from bytegolf.train.schedule import chunk_target, guide_weight, learning_rate, quantises, remaining, training_budget
from bytegolf.train.tensorboard import event_log
from bytegolf.train.window import Window


@dataclass
class Progress:
    """Where a run stands; it is saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    """training time on the configured clock: validation, checkpoints and the warm-up do not count"""
    tokens: int = 0
    bytes: int = 0
    validation_bpb: float | None = None
    """of the last validation, on its sample"""

    @staticmethod
    def of(saved: store.Checkpoint, path: Path) -> Progress:
        """What the checkpoint ``path`` says of these fields; its progress holds more besides."""
        told = saved.progress
        return store.described(Progress, {f.name: told[f.name] for f in fields(Progress) if f.name in told}, path)


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
        world: World,
        reporter: Reporter,
    ) -> None:
        self.config, self.model, self.tokenizer, self.run, self.world = config, model, tokenizer, run, world
        self.reporter, self.validation = reporter, validation
        settings = config.train
        if settings.clock == "processor" and world.device.type != "cpu":
            raise BytegolfError(
                f"train.clock is 'processor', but the CPU's seconds say nothing about training on {world.device.type}: "
                "set train.clock to 'wall'"
            )
        self.loader = Loader(
            train, settings.seq_len, settings.batch_tokens, settings.seed, config.data.order, world.rank, world.size
        )
        self.at_a_time = at_a_time(config, count_parameters(model), world.size, device_memory(world.device))
        """sequences of this rank in one forward pass"""
        self.compiled = compile_stages(model, settings.compile, world.device, reporter.warn)
        self.parallel = world.wrap(model)
        self.optimizer = Optimizer(model, config.optim, world)
        self.average = WeightAverage(model, settings.ema_decay) if settings.ema_decay else None
        self._budget = training_budget(config)
        self._qat: QuantizedTraining | None = None
        self.progress = Progress()
        self.stopped_early = False
        self._window = Window()
        self._watch = RouterWatch()
        self._levels = len(levels(config.model.network))
        self._metrics: Metrics | None = None
        self._validated_step: int | None = None
        self._interrupted = False
        self._mark = 0.0

    # ------------------------------------------------------------------------------------------ running

    def fit(self, resume: bool = False) -> Progress:
        """Train until the budget is used up, or Ctrl-C. ``resume`` goes on from the latest checkpoint, if any."""
        folder = self.run / "checkpoints"
        found = store.checkpoints(folder) if resume else []
        step = int(self.world.agree(store.step_of(found[-1]) if found else -1))
        if step >= 0:
            path = store.path_of(folder, step)
            self._restore(store.load(path), path)
        if remaining(self._budget, self.progress.step, self.progress.seconds) > 0:
            if self.world.leads:
                self._open_metrics(step if step >= 0 else None)
            self._warm_up()
            with self._ctrl_c(), self.reporter:
                self._loop()
        return self.progress

    def _loop(self) -> None:
        settings, progress = self.config.train, self.progress
        validated = saved = progress.seconds
        self._mark = self._now()
        while True:
            factor = learning_rate(self._budget, progress.step, progress.seconds)
            self._set_routers()
            self._step(factor)
            progress.step += 1
            logs = progress.step % settings.log_every == 0
            if logs:  # losses are fetched, so the device's queue is empty: the clock is honest here
                self._settle()
            stop = self._take_time()
            done = remaining(self._budget, progress.step, progress.seconds) <= 0
            if logs:
                self._log(factor)
                self._window = Window()
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
                self._log(factor)
            self._validate()
            self._save()

    def _take_time(self) -> bool:
        """Charge the time since the last call to training; whether any rank was interrupted.

        One collective a step gives all ranks the leader's clock, so that they agree on the schedule and the end.
        """
        now = self._now()
        spent, stop = self.world.total(now - self._mark if self.world.leads else 0.0, float(self._interrupted))
        self._mark = now
        self.progress.seconds += spent
        self._window.seconds += spent
        return stop > 0

    def _now(self) -> float:
        """The time on the clock of the budget, in seconds since some moment."""
        return time.process_time() if self.config.train.clock == "processor" else time.perf_counter()

    @contextlib.contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """What happens in the context is not training time; what was queued before it is."""
        self._settle()
        self._take_time()
        yield
        self._mark = self._now()

    def _step(self, factor: float) -> None:
        """One optimiser step over this rank's share of the global batch, in micro-batches."""
        inputs, targets = self.loader.batch(self.progress.step)
        size = int(self.tokenizer.byte_counts(targets, inputs).sum())
        with self._quantized():
            loss, figures, soft = self._gradients(torch.from_numpy(inputs), torch.from_numpy(targets))
        self._window.add(loss, figures, soft, targets.size, size)
        if self.config.train.grad_clip:
            self.optimizer.clip(self.config.train.grad_clip)
        self.optimizer.step(factor, self.progress.step)
        self.optimizer.zero_grad()
        if self.average:
            self.average.update()

    def _set_routers(self) -> None:
        """What routers are asked for in the next step, which follows from where the run stands, however it came there.

        So do their draws: they come from torch's own generator, which nothing else uses in training.
        """
        progress = self.progress
        done = 1 - remaining(self._budget, progress.step, progress.seconds)
        for level in self.model.levels():
            level.target = chunk_target(level.config.router, done)
            level.guide = guide_weight(level.config.router, done)
        if any(level.config.router.noise for level in self.model.levels()):
            draw = (self.config.train.seed * 1_000_003 + progress.step) * self.world.size + self.world.rank
            torch.manual_seed(draw % (1 << 63))

    def _quantized(self) -> contextlib.AbstractContextManager[None]:
        """What a step's gradients are taken in: late in training, the weights as the artifact would hold them."""
        if not quantises(self._budget, self.progress.step, self.progress.seconds):
            return contextlib.nullcontext()
        if self._qat is None:
            self._qat = QuantizedTraining(self.model, self.config.export)
            self.reporter.say(f"training with quantised weights from step {self.progress.step}")
        return self._qat.applied()

    def _gradients(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Accumulate the gradients of the mean loss: it, without the routers', and the figures of the levels and of
        the soft layers, (3, ·) each.
        """
        device = self.world.device
        sequences, size = inputs.shape[0], self.at_a_time
        total = torch.zeros((), device=device)
        figures = torch.zeros(3, self._levels, device=device)
        chunker = self.model.soft
        soft = torch.zeros(3, len(chunker.layers) if chunker else 0, device=device)
        for first in range(0, sequences, size):
            ids, wanted = (self._to_device(t[first : first + size]) for t in (inputs, targets))
            share = ids.shape[0] / sequences
            last = first + size >= sequences
            with contextlib.nullcontext() if last else self._without_sync():
                out = self.parallel(ids)
                losses = self.model.losses(out, wanted)
                torch.autograd.backward(self.model.objective(out, losses) * share)
            total += losses.detach().mean() * share
            if out.traces:
                figures += torch.stack([trace.figures() for trace in out.traces], 1) * share
            if out.soft:
                soft[:2] += torch.stack([trace.figures() for trace in out.soft], 1) * share
        if chunker:
            soft[2] = chunker.gradient_norms()
        return total, figures, soft

    def _without_sync(self) -> contextlib.AbstractContextManager[None]:
        """Keep gradients local: only the last micro-batch of a step averages them over the ranks."""
        parallel = self.parallel
        if isinstance(parallel, nn.parallel.DistributedDataParallel):
            return parallel.no_sync()
        return contextlib.nullcontext()

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.world.device.type == "cuda":
            return tensor.pin_memory().to(self.world.device, non_blocking=True)
        return tensor.to(self.world.device)

    def _warm_up(self) -> None:
        """Run a few steps and undo them: first steps are slow, and the clock has not started.

        One runs in any case where stages are to be compiled, so that their time is told and not charged to training.
        """
        count = self.config.train.warmup_steps or (1 if self.compiled else 0)
        if not count:
            return
        started = time.perf_counter()
        weights = _copies(self.model.state_dict())
        state = _copies(self.optimizer.state())
        for step in range(count):
            self._gradients(*(torch.from_numpy(a) for a in self.loader.batch(step)))
            self.optimizer.step(0.0, 0)
            self.optimizer.zero_grad()
            if step == 0 and self.compiled and self.compiled.shapes:
                seconds, graphs = time.perf_counter() - started, len(self.compiled.shapes)
                self.reporter.say(f"compiled {graphs} {'graph' if graphs == 1 else 'graphs'} in {seconds:.0f} s")
        self.model.load_state_dict(weights)
        self.optimizer.load_state(state)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()

    # ------------------------------------------------------------------------------------------ telling

    def _open_metrics(self, resumed: int | None) -> None:
        """Start metrics.jsonl, or cut it back to the step ``resumed``: what came later happens again.

        So does the row, if any, of the steps that the checkpoint holds as an open window.
        """
        self._watch = RouterWatch()
        path = self.run / "metrics.jsonl"
        also = event_log(self.run, (resumed or -1) + 1) if self.config.train.tensorboard else None
        if resumed is None:
            self._metrics = Metrics(path, also=also)
            return
        self.reporter.say(f"resuming at step {resumed}")
        logged = resumed - len(self._window.losses)
        self._metrics = Metrics(
            path, lambda row: row["step"] <= (resumed if row["kind"] == "validation" else logged), also
        )
        for row in self._metrics.rows:
            if row["kind"] == "train":
                self._watch_routers(row)

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
        if self._metrics:
            self._metrics.add(kind="alarm", step=self.progress.step, text=text)
        raise BytegolfError(text)

    def _log(self, factor: float) -> None:
        """Write the window as a row of metrics.jsonl and as the live line."""
        if not self._metrics:
            return
        window, progress = self._window, self.progress
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
        self.reporter.progress(self._line(bpb, rates, factor, pace))
        for text in self._watch_routers(row):
            self.reporter.warn(text)
            self._metrics.add(kind="alarm", step=progress.step, text=text)

    def _watch_routers(self, row: dict[str, Any]) -> list[str]:
        """The warnings that a row of training gives rise to."""
        step = row["step"]
        truncation = self._watch.see_truncation(row.get("truncated", []), row.get("truncated_sequences", []), step)
        learned = [level.router.learned for level in self.model.levels()]
        return self._watch.see(row.get("rates", []), step, learned) + truncation

    def _line(self, bpb: float, rates: list[float], factor: float, pace: float) -> str:
        progress = self.progress
        share = remaining(self._budget, progress.step, progress.seconds)
        left = progress.seconds * share / (1 - share) if share < 1 else 0.0
        parts = [
            f"step {progress.step}",
            f"{clock(progress.seconds)} done, {clock(left)} left",
            f"{pace / 1000:.1f} kB/s",
            f"bpb {bpb:.3f}",
        ]
        if rates:
            parts.append("rate " + "/".join(f"{rate:.3f}" for rate in rates))
        parts.append(f"lr ×{factor:.2f}")
        if progress.validation_bpb is not None:
            parts.append(f"val {progress.validation_bpb:.3f}")
        return " · ".join(parts)

    # ------------------------------------------------------------------------------------------ keeping

    def _validate(self) -> None:
        """Score a sample of the validation split with the weights that would be exported."""
        settings = self.config.train
        if not settings.validate_tokens:
            return
        with self._averaged(), self.model.capacity(self.config.eval.capacity, self.config.eval.capacity_divisor):
            sample: Score = score(
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
        if self._metrics:
            self._metrics.add(
                kind="validation",
                step=self.progress.step,
                seconds=round(self.progress.seconds, 3),
                bpb=sample.bpb,
                tokens=sample.tokens,
            )

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.average.applied() if self.average else contextlib.nullcontext()

    def export_state(self) -> dict[str, Tensor]:
        """The weights to ship: averaged ones where averaging is on."""
        with self._averaged():
            return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def _save(self) -> None:
        """Write a checkpoint of the settled window and finite weights; older ones go as configured."""
        norms = torch._foreach_norm([weight for weight in self.model.parameters() if weight.numel()])
        if not bool(torch.stack(list(norms)).isfinite().all()):
            self._broken(f"the weights are not finite after step {self.progress.step}")
        optimizer = self.optimizer.state()  # in which every rank has a share
        if self.world.leads:
            progress = {**vars(self.progress), "window": self._window.state()}
            if self._validated_step != self.progress.step:
                progress["validation_bpb"] = None  # an earlier one says nothing about these weights
            folder = self.run / "checkpoints"
            averaged = self.average.state() if self.average else {}
            store.save(folder, store.Checkpoint(progress, self.model.state_dict(), optimizer, averaged))
            store.prune(folder, self.config.train.keep_checkpoints)
        self.world.wait()

    def _restore(self, saved: store.Checkpoint, path: Path) -> None:
        try:
            self.model.load_state_dict(saved.model)
        except RuntimeError as error:
            raise BytegolfError(
                f"the checkpoint {path} does not fit the model: resume with the run's own config"
            ) from error
        self.optimizer.load_state(saved.optimizer)
        if self.average:
            self.average.load_state(saved.averaged or saved.model)
        self.progress = Progress.of(saved, path)
        soft = self.config.model.soft.layers
        self._window = Window.of(saved.progress.get("window", {}), self._levels, soft, path)

    # ------------------------------------------------------------------------------------------ the rest

    @contextlib.contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C ends training after the current step; a second one interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        before = signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
