"""Training step by step: a loop of one's own that trains exactly what `bytegolf train` trains."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bytegolf.artifact.run_folder import RunFolder
from bytegolf.config import Config
from bytegolf.device import choose_device
from bytegolf.distributed import DistributedContext
from bytegolf.progress import Teller, Warnings
from bytegolf.training import loop
from bytegolf.training.setup import TrainingData, resolve


class Trainer(loop.Trainer):
    """A model in training, in the hands of a loop of one's own:

        trainer = bytegolf.Trainer("cpu-demo", "data/default", overrides=["train.max_steps=100"])
        for batch in trainer:                     # until the budget is used up
            result = trainer.step(batch)          # forward, backward, clip, update, average
            print(result.step, result.bits_per_byte, result.rates)
        trainer.save("runs/mine")                 # bytegolf.load("runs/mine") opens it

    The losses and weights are those of `bytegolf train`, bit for bit: each step has the routers' targets, the guide,
    the learning rates, QAT and the averaging that the configuration asks for at that point of the budget.

    With a loss of one's own, or something between the parts of a step:

        while not trainer.done:
            trainer.prepare_step()                # router targets, guide, random draws, weights under QAT
            batch = trainer.next_batch()
            trainer.gradients(batch, lambda out, losses: trainer.model.objective(out, losses) + penalty(out))
            result = trainer.update()             # clip, Muon and Adam, average; the clock and rows of metrics

    ``trainer.gradients`` may be left out for ``trainer.model(…)`` and a ``backward()`` of one's own. ``trainer.model``
    is a ``LanguageModel``. Under a budget in seconds the clock runs from the first step on; what a loop does besides
    training is left out by ``with trainer.untimed():``.
    """

    def __init__(
        self,
        config: Config | str | os.PathLike[str],
        data: str | os.PathLike[str] | None = None,
        *,
        overrides: Sequence[str] = (),
        folder: str | os.PathLike[str] | None = None,
        world: DistributedContext | None = None,
        reporter: Teller | None = None,
    ) -> None:
        """The model before its first step.

        Args:
            config: a preset's name, a TOML file, or a Config.
            data: a folder made by ``bytegolf.prepare``; by default the configuration's.
            overrides: changes of the configuration, as ``"train.max_steps=100"``.
            folder: where metrics.jsonl and checkpoints are written, from which ``resume`` goes on; by default nowhere.
            world: this process's place among several that train together (``bytegolf.distributed.join``); by default it
                trains alone, on ``train.device``.
            reporter: gets progress and warnings; by default progress is not told, and warnings are Python's.

        Raises BytegolfError for a configuration, data or a device that cannot be used.
        """
        config = resolve(config, [*overrides, *([{"data.path": os.fspath(data)}] if data is not None else [])])
        if world is None:
            world = DistributedContext(0, 1, choose_device(config.train.device))
        place = Path(folder) if folder is not None else None
        super().__init__(config, TrainingData.open(config), place, world, reporter or Warnings())

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Make ``folder`` a run that holds this model as it is now: its artifact, quantised as configured.

        ``bytegolf.load`` opens the folder, which is returned. Raises BytegolfError if it holds a run already.
        """
        run = RunFolder(Path(folder))
        with run.held():
            run.check(self.config, resume=False)
            run.prepare(self.config, self.data.tokenizer, sys.argv)
            self.export(run.artifact)
        return run.path
