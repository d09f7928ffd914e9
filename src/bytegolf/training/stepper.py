"""One optimiser step: what routers are asked for, gradients, clipping, update, average."""

from __future__ import annotations

import contextlib
import time

import torch
from torch import Tensor

from bytegolf.artifact.run_progress import Progress
from bytegolf.config import Config
from bytegolf.data.loader import Loader
from bytegolf.data.shards import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.distributed import DistributedContext
from bytegolf.model.lm import LanguageModel
from bytegolf.progress import Reporter
from bytegolf.training.average import WeightAverage
from bytegolf.training.compiling import compile_stacks
from bytegolf.training.gradients import Gradients
from bytegolf.training.metric_accumulator import MetricAccumulator
from bytegolf.training.optim import Optimizer
from bytegolf.training.qat import QuantizedTraining
from bytegolf.training.schedule import chunk_target, guide_weight, quantises, remaining, training_budget


class Stepper:
    """Moves a model's weights, a step of its share of the global batch at a time."""

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        train: TokenStream,
        tokenizer: Tokenizer,
        world: DistributedContext,
        reporter: Reporter,
    ) -> None:
        settings = config.train
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.world, self.reporter = world, reporter
        self.loader = Loader(
            train, settings.seq_len, settings.batch_tokens, settings.seed, config.data.order, world.rank, world.size
        )
        self.compiled = compile_stacks(model, settings.compile, world.device, reporter.warn)
        self.gradients = Gradients(config, model, world)
        self.optimizer = Optimizer(model, config.optim, world)
        self.average = WeightAverage(model, settings.ema_decay) if settings.ema_decay else None
        self._budget = training_budget(config)
        self._qat: QuantizedTraining | None = None

    def step(self, factor: float, progress: Progress, window: MetricAccumulator) -> None:
        """The step that comes after ``progress``, its learning rates times ``factor``; ``window`` gets its figures."""
        self._set_routers(progress)
        inputs, targets = self.loader.batch(progress.step)
        size = int(self.tokenizer.byte_counts(targets, inputs).sum())
        with self._quantized(progress):
            figures = self.gradients.accumulate(torch.from_numpy(inputs), torch.from_numpy(targets))
        window.add(figures, targets.size, size)
        if self.config.train.grad_clip:
            self.optimizer.clip(self.config.train.grad_clip)
        self.optimizer.step(factor, progress.step)
        self.optimizer.zero_grad()
        if self.average:
            self.average.update()

    def _set_routers(self, progress: Progress) -> None:
        """What routers are asked for in the next step, which follows from where the run stands, however it came there.

        So do their draws: they come from torch's own generator, which nothing else uses in training.
        """
        done = 1 - remaining(self._budget, progress.step, progress.seconds)
        for level in self.model.levels():
            level.target = chunk_target(level.config.router, done)
            level.guide = guide_weight(level.config.router, done)
        if any(level.config.router.cosine.noise for level in self.model.levels()):
            draw = (self.config.train.seed * 1_000_003 + progress.step) * self.world.size + self.world.rank
            torch.manual_seed(draw % (1 << 63))

    def _quantized(self, progress: Progress) -> contextlib.AbstractContextManager[None]:
        """What a step's gradients are taken in: late in training, the weights as the artifact would hold them."""
        if not quantises(self._budget, progress.step, progress.seconds):
            return contextlib.nullcontext()
        if self._qat is None:
            self._qat = QuantizedTraining(self.model, self.config.export)
            self.reporter.say(f"training with quantised weights from step {progress.step}")
        return self._qat.applied()

    def warm_up(self) -> None:
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
            self.gradients.accumulate(*(torch.from_numpy(array) for array in self.loader.batch(step)))
            self.optimizer.step(0.0, 0)
            self.optimizer.zero_grad()
            if step == 0 and self.compiled and self.compiled.shapes:
                seconds, graphs = time.perf_counter() - started, len(self.compiled.shapes)
                self.reporter.say(f"compiled {graphs} {'graph' if graphs == 1 else 'graphs'} in {seconds:.0f} s")
        self.model.load_state_dict(weights)
        self.optimizer.load_state(state)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The model holds the weights to ship within the context: averaged ones where averaging is on."""
        return self.average.applied() if self.average else contextlib.nullcontext()


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
