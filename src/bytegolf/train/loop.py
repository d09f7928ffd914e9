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
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from bytegolf.config import Config
from bytegolf.data.loader import Loader
from bytegolf.data.shards import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.bpb import Score, bits_per_byte, score
from bytegolf.model.lm import LanguageModel
from bytegolf.train import checkpoint as store
from bytegolf.train.average import WeightAverage
from bytegolf.train.distributed import World
from bytegolf.train.optim import Optimizer
from bytegolf.train.report import Metrics, Reporter, clock
from bytegolf.train.schedule import learning_rate, remaining


@dataclass
class Progress:
    """Where a run stands; it is saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    """training time: validation, checkpoints and the warm-up do not count"""
    tokens: int = 0
    bytes: int = 0
    validation_bpb: float | None = None
    """of the last validation, on its sample"""


@dataclass
class _Window:
    """What is summed up between two rows of metrics.jsonl; losses stay on the device until then."""

    losses: list[Tensor] = field(default_factory=list)
    rates: list[Tensor] = field(default_factory=list)
    bytes: int = 0
    tokens: int = 0
    seconds: float = 0.0


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
        self.loader = Loader(
            train, settings.seq_len, settings.batch_tokens, settings.seed, config.data.order, world.rank, world.size
        )
        self.parallel = world.wrap(model)
        self.optimizer = Optimizer(model, config.optim)
        self.average = WeightAverage(model, settings.ema_decay) if settings.ema_decay else None
        self.progress = Progress()
        self.stopped_early = False
        self._metrics: Metrics | None = None
        self._interrupted = False

    # ------------------------------------------------------------------------------------------ running

    def fit(self, resume: bool = False) -> Progress:
        """Train until the budget is used up, or Ctrl-C. ``resume`` goes on from the latest checkpoint, if any."""
        folder = self.run / "checkpoints"
        found = store.checkpoints(folder) if resume else []
        if found:
            self._restore(store.load(found[-1]))
            if self.world.leads:
                self.reporter.say(f"resuming at step {self.progress.step} from {found[-1]}")
        self._metrics = None
        if self.world.leads:
            self._metrics = Metrics(self.run / "metrics.jsonl", self.progress.step if found else None)
        if remaining(self.config.train, self.progress.step, self.progress.seconds) > 0:
            self._warm_up()
            with self._ctrl_c(), self.reporter:
                self._loop()
        return self.progress

    def _loop(self) -> None:
        settings, progress = self.config.train, self.progress
        window = _Window()
        validated = saved = progress.seconds
        while True:
            started = time.perf_counter()
            factor = learning_rate(settings, progress.step, progress.seconds)
            self._step(factor, window)
            progress.step += 1
            logs = progress.step % settings.log_every == 0
            if logs:  # losses are fetched, so the device's queue is empty: the clock is honest here
                self._synchronize()
            spent = time.perf_counter() - started
            # one collective a step: the leader's clock, and whether anyone was interrupted
            spent, stop = self.world.total(spent if self.world.leads else 0.0, float(self._interrupted))
            progress.seconds += spent
            window.seconds += spent
            done = remaining(settings, progress.step, progress.seconds) <= 0
            if logs or done or stop:
                self._log(window, factor)
                window = _Window()
            if stop:
                self.stopped_early = True
            if done or stop:
                break
            due = settings.checkpoint_every and progress.seconds - saved >= settings.checkpoint_every
            if settings.validate_every and (due or progress.seconds - validated >= settings.validate_every):
                self._validate()
                validated = progress.seconds
            if due:
                self._save()
                saved = progress.seconds
        self._synchronize()
        self._validate()
        self._save()

    def _step(self, factor: float, window: _Window) -> None:
        """One optimiser step over this rank's share of the global batch, in micro-batches."""
        inputs, targets = (torch.from_numpy(a) for a in self.loader.batch(self.progress.step))
        window.bytes += int(self.tokenizer.byte_counts(targets.numpy(), inputs.numpy()).sum())
        window.tokens += targets.numel()
        loss, rates = self._gradients(inputs, targets)
        window.losses.append(loss)
        window.rates.append(rates)
        if self.config.train.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.grad_clip)
        self.optimizer.step(factor, self.progress.step)
        self.optimizer.zero_grad()
        if self.average:
            self.average.update()

    def _gradients(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients of the mean loss; that loss (without the routers') and each level's rate."""
        settings, device = self.config.train, self.world.device
        sequences = inputs.shape[0]
        size = settings.micro_batch or sequences
        total = torch.zeros((), device=device)
        rates = torch.zeros(0, device=device)
        for first in range(0, sequences, size):
            ids, wanted = (self._to_device(t[first : first + size]) for t in (inputs, targets))
            share = ids.shape[0] / sequences
            last = first + size >= sequences
            with contextlib.nullcontext() if last else self._without_sync():
                out = self.parallel(ids)
                loss = self.model.losses(out, wanted).mean()
                ((loss + out.router_loss()) * share).backward()
            total += loss.detach() * share
            if out.traces:
                rate = torch.stack([trace.rate() for trace in out.traces]) * share
                rates = rate if not rates.numel() else rates + rate
        return total, rates

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
        """Run a few steps and undo them: first steps are slow, and the clock has not started."""
        if not self.config.train.warmup_steps:
            return
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        state = {name: tensor.clone() for name, tensor in self.optimizer.state().items()}
        for step in range(self.config.train.warmup_steps):
            self._gradients(*(torch.from_numpy(a) for a in self.loader.batch(step)))
            self.optimizer.step(0.0, 0)
            self.optimizer.zero_grad()
        self._synchronize()
        self.model.load_state_dict(weights)
        self.optimizer = Optimizer(self.model, self.config.optim)
        if self.progress.step:
            self.optimizer.load_state(state)

    # ------------------------------------------------------------------------------------------ telling

    def _log(self, window: _Window, factor: float) -> None:
        loss, rates = torch.stack(window.losses).mean(), torch.stack(window.rates).mean(0)
        mean, size, tokens, *levels = self.world.total(
            float(loss) / self.world.size, window.bytes, window.tokens, *(rates / self.world.size).tolist()
        )
        progress = self.progress
        progress.bytes += int(size)
        progress.tokens += int(tokens)
        if not math.isfinite(mean):
            raise BytegolfError(
                f"the loss is not finite at step {progress.step}: training stopped before it could spoil a checkpoint; "
                "lower optim.muon_lr, optim.embed_lr or optim.scalar_lr, or set train.grad_clip"
            )
        if not self._metrics:
            return
        bpb = bits_per_byte(mean * tokens, int(size))
        pace = size / window.seconds if window.seconds else 0.0
        self._metrics.add(
            kind="train",
            step=progress.step,
            seconds=round(progress.seconds, 3),
            tokens=progress.tokens,
            bytes=progress.bytes,
            loss=mean,
            bpb=bpb,
            rates=levels,
            lr=factor,
            bytes_per_second=round(pace, 1),
        )
        self.reporter.progress(self._line(bpb, levels, factor, pace))
        for alarm in self.reporter.routers(levels, progress.step):
            self._metrics.add(kind="alarm", step=progress.step, text=alarm)

    def _line(self, bpb: float, rates: list[float], factor: float, pace: float) -> str:
        progress = self.progress
        share = remaining(self.config.train, progress.step, progress.seconds)
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
        if self.world.leads:
            with self._averaged():
                sample: Score = score(
                    self.model,
                    self.validation,
                    self.tokenizer,
                    settings.seq_len,
                    batch=self.config.eval.batch,
                    limit=settings.validate_tokens,
                )
            self.progress.validation_bpb = sample.bpb
            if self._metrics:
                self._metrics.add(
                    kind="validation",
                    step=self.progress.step,
                    seconds=round(self.progress.seconds, 3),
                    bpb=sample.bpb,
                    tokens=sample.tokens,
                )
        self.world.wait()

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.average.applied() if self.average else contextlib.nullcontext()

    def export_state(self) -> dict[str, Tensor]:
        """The weights to ship: averaged ones where averaging is on."""
        with self._averaged():
            return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def _save(self) -> None:
        if self.world.leads:
            folder = self.run / "checkpoints"
            store.save(
                folder,
                store.Checkpoint(
                    vars(self.progress).copy(),
                    self.model.state_dict(),
                    self.optimizer.state(),
                    self.average.state() if self.average else {},
                ),
            )
            store.prune(folder, self.config.train.keep_checkpoints)
        self.world.wait()

    def _restore(self, saved: store.Checkpoint) -> None:
        self.model.load_state_dict(saved.model)
        self.optimizer.load_state(saved.optimizer)
        if self.average:
            self.average.load_state(saved.averaged or saved.model)
        known: dict[str, Any] = {key: saved.progress[key] for key in vars(self.progress) if key in saved.progress}
        self.progress = Progress(**known)

    # ------------------------------------------------------------------------------------------ the rest

    def _synchronize(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()

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
