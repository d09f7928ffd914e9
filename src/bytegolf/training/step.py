"""One optimiser step: batch, router targets, gradients, clipping, update, average.

Legend: B sequences, L tokens of a sequence, N chunking levels, S layers of soft chunking.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bytegolf.bpb import bits_per_byte
from bytegolf.config import Config
from bytegolf.data.dataset import TokenStream
from bytegolf.data.loader import Loader
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.device import device_memory
from bytegolf.distributed import DistributedContext
from bytegolf.model.counted_start import count, fold_of
from bytegolf.model.embed import row_tables
from bytegolf.model.lm import Forward, LanguageModel
from bytegolf.model.lora import PREFIX, Adapted, adaptable_maps
from bytegolf.progress import Teller
from bytegolf.training.memory import at_a_time
from bytegolf.training.optim import Optimizer
from bytegolf.training.schedule import chunk_target, guide_weight, quantises, remaining, training_budget
from bytegolf.training.setup import compile_stacks, placed, shards
from bytegolf.training.weights import QuantizedTraining, WeightAverage

Objective = Callable[[Forward, Tensor], Tensor]
"""What training minimises: of a forward pass and its losses (B, L) in nats, a scalar."""


class Batch(NamedTuple):
    """This rank's share of a step's global batch, on the CPU."""

    inputs: Int[Tensor, "B L"]
    targets: Int[Tensor, "B L"]
    """the ids that follow"""
    bytes: int
    """of text that the targets stand for"""
    starts: Int[Tensor, " B"] | None = None
    """where the sequences begin in the training split, if they are from there"""


class StepFigures(NamedTuple):
    """What the forward passes of one step gave on this rank, on its device: means over the step's sequences."""

    loss: Float[Tensor, ""]
    """nats per token, without the routers' losses"""
    levels: Float[Tensor, "3 N"]
    """of each chunking level: see ``RouterTrace.figures``"""
    soft: Float[Tensor, "3 S"]
    """of each layer of soft chunking: means of b and of b², and the norm of its boundary predictor's gradient"""


@dataclass(frozen=True)
class StepResult:
    """What a step came to on this rank. ``loss`` and what follows from it wait for the device: on a GPU, ask rarely."""

    step: int
    """steps taken so far, this one included"""
    lr: float
    """factor on the peak learning rates"""
    tokens: int
    """predicted; 0 where the gradients were not taken by ``Trainer.gradients``, which makes the losses NaN"""
    bytes: int
    """of text that these tokens stand for"""
    figures: StepFigures | None

    @property
    def loss(self) -> float:
        """Nats per token, without the routers' losses."""
        return float(self.figures.loss) if self.figures else math.nan

    @property
    def bits_per_byte(self) -> float:
        """The same per byte of text."""
        return bits_per_byte(self.loss * self.tokens, self.bytes) if self.figures else math.nan

    @property
    def rates(self) -> list[float]:
        """Chunks per position of each level, the outermost first; empty for a flat model."""
        return [float(rate) for rate in self.figures.levels[0]] if self.figures else []


class Stepper:
    """Moves a model's weights, a step of its share of the global batch at a time.

    A step is ``batch``, ``prepare``, ``gradients``, ``update``, in this order.
    """

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        train: TokenStream,
        tokenizer: Tokenizer,
        world: DistributedContext,
        reporter: Teller,
    ) -> None:
        settings = config.train
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.world, self.reporter = world, reporter
        self.loader = Loader(
            train, settings.seq_len, settings.batch_tokens, settings.seed, config.data.order, world.rank, world.size
        )
        self.sharded = shards(config, world)
        """whether this rank has only its share of each tensor"""
        compiling = "off" if self.sharded else settings.compile  # a graph would skip the gathering of weights
        self.compiled = compile_stacks(model, compiling, world.device, reporter.warn)
        self.at_a_time = at_a_time(config, model, world.size, device_memory(world.device))
        """sequences of this rank in one forward pass"""
        rank = settings.adapters
        self.adapted = Adapted(model, adaptable_maps(model), rank, settings.seed) if rank else None
        """the model with the adapters that are trained in place of its weights"""
        self._parallel = model if self.sharded else world.wrap(self.adapted or model)
        if world.size == 1:  # several ranks reduce dense gradients: nccl knows no others
            for table in row_tables(model):
                table.sparse_gradients = True
        self.optimizer = Optimizer(self.adapted or model, config.optim, world)
        trained = self.adapted.state() if self.adapted else dict(model.named_parameters())
        self.average = WeightAverage(trained, settings.ema_decay) if settings.ema_decay else None
        self._levels = model.levels()
        self._train = train
        self._budget = training_budget(config)
        self._qat: QuantizedTraining | None = None
        self._quantized = contextlib.ExitStack()

    def batch(self, step: int) -> Batch:
        """What step number ``step`` (from 0) trains on: the same whatever came before it."""
        inputs, targets = self.loader.batch(step)
        size = int(self.tokenizer.byte_counts(targets, inputs).sum())
        starts = torch.from_numpy(self.loader.starts(step))
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), size, starts)

    def count(self, fresh: bool) -> None:
        """Have tables that start from counts be counted; their rows begin anew if ``fresh``.

        Those of a model that training starts from (``train.init``) are what they are.
        """
        ngrams = self.model.ngrams
        if ngrams is not None and ngrams.config.start == "counts" and not self.config.train.init:
            count(ngrams, self._train, self.config.model.vocab_size, self.config.model.reset_at_bos, fresh)

    def prepare(self, step: int, seconds: float) -> None:
        """Have the model be what step number ``step`` takes its gradients at, after ``seconds`` of training.

        All of it follows from where the run stands, however it came there: the routers' targets, the weight of their
        guide, what a forward pass draws (torch's own generator is seeded anew, so that a resumed run draws what an
        uninterrupted one does), and, late in training under QAT, the weights as the artifact would hold them, until
        ``update``.
        """
        done = 1 - remaining(self._budget, step, seconds)
        for level in self._levels:
            level.target = chunk_target(level.config.router, done)
            level.guide = guide_weight(level.config.router, done)
        # a seed of its own for each (seed, step, rank): with 2 ranks, steps 0, 1, … of seed 1 draw from 2,000,006 + 0
        # and 1, + 2 and 3, …; no generator's state has to be kept for a resumed run
        draw = (self.config.train.seed * 1_000_003 + step) * self.world.size + self.world.rank
        torch.manual_seed(draw % (1 << 63))
        self._quantized.close()
        if quantises(self._budget, step, seconds):
            if self._qat is None:
                self._qat = QuantizedTraining(self.model, self.config.export)
                self.reporter.say(f"training with quantised weights from step {step}")
            self._quantized.enter_context(self._qat.applied())

    def gradients(self, batch: Batch, objective: Objective | None = None) -> StepFigures:
        """Add the gradients of the mean ``objective`` over ``batch`` to the parameters', averaged over the ranks.

        The share of the global batch is taken in as many forward passes as memory asks for. Each one's gradient counts
        by its share of the sequences: of 5 sequences, 2 at a time, the passes count 2/5, 2/5 and 1/5.
        """
        device, size = self.world.device, self.at_a_time
        sequences = batch.inputs.shape[0]
        chunker = self.model.soft
        objective = objective or self.model.objective
        loss = torch.zeros((), device=device)
        levels = torch.zeros(3, len(self._levels), device=device)
        soft = torch.zeros(3, len(chunker.layers) if chunker else 0, device=device)
        for first in range(0, sequences, size):
            ids, wanted = (self._to_device(t[first : first + size]) for t in (batch.inputs, batch.targets))
            share = ids.shape[0] / sequences
            last = first + size >= sequences
            # gradients stay local but in the last forward pass, which averages them over the ranks
            parallel, many = self._parallel, nn.parallel.DistributedDataParallel
            local = parallel.no_sync() if isinstance(parallel, many) and not last else contextlib.nullcontext()
            with local, self._leaving_out(batch.starts, first, size):
                out = parallel(ids)
                losses = self.model.losses(out, wanted)
                torch.autograd.backward(objective(out, losses) * share)
            loss += losses.detach().mean() * share
            if out.traces:
                levels += torch.stack([trace.figures() for trace in out.traces], 1) * share
            if out.soft:
                soft[:2] += torch.stack([trace.figures() for trace in out.soft], 1) * share
        if chunker:
            soft[2] = chunker.gradient_norms()
        return StepFigures(loss, levels, soft)

    def _leaving_out(self, starts: Tensor | None, first: int, size: int) -> contextlib.AbstractContextManager[None]:
        """Tables that start from counts do without the folds of the sequences ``first`` … (see ``counted_start``)."""
        ngrams = self.model.ngrams
        if ngrams is None or ngrams.left_out is None or starts is None:
            return contextlib.nullcontext()
        folds = fold_of(starts[first : first + size], len(self._train), ngrams.config.folds)
        return ngrams.leaving_out(folds.to(self.world.device))

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.world.device.type == "cuda":
            return tensor.pin_memory().to(self.world.device, non_blocking=True)
        return tensor.to(self.world.device)

    def update(self, factor: float, step: int) -> None:
        """Move the weights by the gradients that there are, which are dropped; learning rates are times ``factor``."""
        self._quantized.close()  # gradients were taken at quantised weights; those behind them move
        if self.config.train.grad_clip:
            self.optimizer.clip(self.config.train.grad_clip)
        self.optimizer.step(factor, step)
        self.optimizer.zero_grad()
        if self.average:
            self.average.update()

    def warm_up(self) -> None:
        """Run a few steps and undo them: first steps are slow, and the clock has not started.

        One runs in any case where stacks are to be compiled, so that their time is told and not charged to training.
        """
        count = self.config.train.warmup_steps or (1 if self.compiled else 0)
        if not count:
            return
        started = time.perf_counter()
        weights = _copies(self.weights())
        state = _copies(self.optimizer.state())
        for step in range(count):
            self.gradients(self.batch(step))
            self.optimizer.step(0.0, 0)
            self.optimizer.zero_grad()
            if step == 0 and self.compiled and self.compiled.shapes:
                seconds, graphs = time.perf_counter() - started, len(self.compiled.shapes)
                self.reporter.say(f"compiled {graphs} {'graph' if graphs == 1 else 'graphs'} in {seconds:.0f} s")
        self.load_weights(weights)
        self.optimizer.load_state(state)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()

    def weights(self) -> dict[str, Tensor]:
        """The model's weights by name, not copied (shards, where they are spread over the ranks), and the adapters
        beside them if they are what is trained.
        """
        return {**self.model.state_dict(), **(self.adapted.state() if self.adapted else {})}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take over what ``weights`` gave. Raises RuntimeError if it does not fit."""
        own = {name: tensor for name, tensor in weights.items() if not name.startswith(PREFIX)}
        if self.sharded:
            like = self.model.state_dict()
            own = {name: placed(tensor, like[name]) if name in like else tensor for name, tensor in own.items()}
        self.model.load_state_dict(own)
        if self.adapted or len(own) < len(weights):
            if not self.adapted:
                raise RuntimeError("it has adapters, and the configuration none")
            self.adapted.load_state(weights)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The model holds the weights to ship within the context: averaged ones where averaging is on."""
        return self.average.applied() if self.average else contextlib.nullcontext()


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
