"""The whole job of a run: train, export, score the file as reloaded from disk, show the chunks of a sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from bytegolf.analyze.segment import STANDARD_TEXT, Segmentation, excerpt_of, segment
from bytegolf.api.evaluation import evaluate
from bytegolf.api.model import Model, load
from bytegolf.api.results import Summary
from bytegolf.artifact.checkpoint_folder import Progress
from bytegolf.artifact.loading import LoadedModel, load_own, with_weights
from bytegolf.artifact.run_folder import RunFolder, data_folder
from bytegolf.config import Config, levels
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext, join
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.modes import ScoringMode
from bytegolf.files import folder_name, write_json
from bytegolf.progress import Reporter
from bytegolf.registry import load_plugins
from bytegolf.results import to_json
from bytegolf.training.loop import Trainer
from bytegolf.training.metrics_file import read_metrics
from bytegolf.training.setup import TrainingData, initial_model, resolve


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run: its folder, what it came to, and what its router made of a sentence of the validation split."""

    path: Path
    """the run's folder"""
    summary: Summary | None
    """what is in its summary.json; None on ranks of a distributed run that do not lead"""
    before: Segmentation | None = None
    """the beginning of the validation split as the untrained model cuts it; None for a flat model"""
    after: Segmentation | None = None
    """the same text as the trained model cuts it"""

    @property
    def config(self) -> Config:
        """The configuration that it was trained with."""
        return RunFolder(self.path).read_config()

    def load(self, device: str = "auto") -> Model:
        """Its model, from the artifact as it lies on the disk."""
        return load(self.path, device=device)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of its metrics.jsonl: training losses, validation scores, alarms (``kind`` tells which)."""
        return read_metrics(self.path / "metrics.jsonl")


def train(
    config: Config | str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    init: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    plugins: Iterable[str | os.PathLike[str]] = (),
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Train a model, export it, score the file as reloaded from disk, cut the beginning of the validation split.

    Args:
        config: a preset's name (``cpu-demo``), a TOML file, or a ``Config``.
        data: a folder made by ``bytegolf.prepare`` or `bytegolf prepare`; by default the configuration's.
        out: the run's folder; by default ``runs/<name>``.
        init: start from the weights of this run, artifact or imported model, whose model and tokenizer are taken over.
        overrides: changes of the configuration, as ``"train.max_seconds=60"``.
        plugins: Python files or modules that register routers, mixers or quantisers of your own; they are imported.
        resume: go on with the run in ``out`` if there is one.
        quiet: print nothing while it goes on.

    Ctrl-C stops cleanly: what was trained so far is still exported and scored.

    Raises:
        BytegolfError: a configuration, data or folder that cannot be used, or a loss that is not finite.
    """
    load_plugins(os.fspath(each) for each in plugins)
    changes: list[str | dict[str, Any]] = [*overrides]
    if init is not None:
        changes.append({"train.init": os.fspath(init)})
    if data is not None:
        path = os.fspath(data)
        if not path.isprintable() and any("\ud800" <= char <= "\udfff" for char in path):
            raise BytegolfError(f"the name of the data folder {path} is not UTF-8, as config.toml must be: rename it")
        changes.append({"data.path": path})
    settings = resolve(config, changes)
    place = Path(out) if out else Path("runs") / folder_name(settings.name, "name")
    return train_run(settings, place, resume=resume, quiet=quiet)


def train_run(config: Config, out: Path, *, resume: bool = False, quiet: bool = False) -> Run:
    """``train`` for a resolved configuration."""
    run = RunFolder(out)
    if resume:
        config = _found_from_here(run, config)
    data = TrainingData.open(config)
    ScoringMode.configured(config).check(data.validation, data.tokenizer, config.eval.limit)
    with join(config.train.device) as world, run.held() if world.leads else contextlib.nullcontext():
        reporter = Reporter(quiet=quiet or not world.leads)
        said = run.check(config, resume) if world.leads else []
        world.wait()
        trainer = Trainer(config, data, run.path, world, reporter)
        if resume:
            trainer.resume()
        if world.leads:  # not before: a configuration is written beside a checkpoint that it goes on from
            run.prepare(config, data.tokenizer, sys.argv)
            for sentence in said:
                reporter.say(sentence)
        world.wait()
        progress, gptq_seconds = trainer.fit(), 0.0
        if exported := trainer.export(run.artifact):
            gptq_seconds = exported.gptq_seconds
            _check_reserve(config, progress.seconds, gptq_seconds, reporter)
        world.wait()
        # the weights before quantisation are copied once more only where they are to be scored
        state, early = trainer.export_state() if config.eval.unquantised else {}, trainer.stopped_early
        return conclude(run, data, state, progress, gptq_seconds, early, reporter, world)


def _found_from_here(run: RunFolder, config: Config) -> Config:
    """``config`` with the run's data where they are, if it names them as the run does and they are not there."""
    path = config.data.path
    if Path(path).is_dir() or not run.config.exists() or run.read_config().data.path != path:
        return config
    folder = data_folder(run.path, config)
    return config.with_({"data.path": str(folder)}) if folder else config


def _check_reserve(config: Config, trained: float, spent: float, reporter: Reporter) -> None:
    """Warn if GPTQ, whose time is training time, went over the budget."""
    limit, reserved = config.train.max_seconds, config.export.gptq_seconds
    if limit and trained + spent > limit and spent > reserved:
        reporter.warn(
            f"GPTQ took {spent:.1f} s, and training with it {trained + spent:.1f} of train.max_seconds = {limit:g}: "
            f"raise export.gptq_seconds, which reserves {reserved:g} s, or lower export.gptq_tokens"
        )


def conclude(
    run: RunFolder,
    data: TrainingData,
    state: dict[str, torch.Tensor],
    progress: Progress,
    gptq_seconds: float,
    stopped_early: bool,
    reporter: Reporter,
    world: DistributedContext = SINGLE_PROCESS,
) -> Run:
    """Score the artifact as it lies on the disk, segment the beginning of the validation split, write summary.json.

    ``data`` is what it was trained on; ``state`` is what the artifact was made of (needed with ``eval.unquantised``).
    The processes of ``world`` share the scores, except those of test-time training and mixing; the rest is the
    leader's, and the others get a ``Run`` without a summary.
    """
    settings = run.read_config()
    if ScoringMode.configured(settings).in_order:
        if not world.leads:
            return Run(run.path, None)
        world = SINGLE_PROCESS
    folder = Path(settings.data.path)
    opened = load_own(run.path, folder, settings.train.device)
    config = opened.config
    with reporter:
        result = evaluate(opened, folder, limit=config.eval.limit, reporter=reporter, world=world)
        unquantised = None
        if config.eval.unquantised:
            float_model = with_weights(opened, state)
            unquantised = evaluate(float_model, folder, limit=config.eval.limit, reporter=reporter, world=world).bpb
    sample = None
    if progress.validation_bpb is not None:  # what training scored last, with the weights before quantisation
        plain = ScoringMode(config.train.seq_len, batch=config.eval.batch, tail="score")
        limit = config.train.validate_tokens
        sample = plain.score(opened.model, data.validation, opened.tokenizer, limit=limit, world=world).bpb
    if not world.leads:
        return Run(run.path, None)
    before = after = None
    if levels(opened.config.model.network):
        text = excerpt_of(opened.tokenizer, data.validation) or STANDARD_TEXT
        after = _cut(opened, text)
        untrained = initial_model(opened.config, opened.tokenizer, data.train)
        untrained.set_capacity(opened.config.eval.capacity, opened.config.eval.capacity_divisor)
        before = _cut(dataclasses.replace(opened, model=untrained.eval()), text)
    summary = Summary(
        **{field.name: getattr(result, field.name) for field in dataclasses.fields(result)},
        name=config.name,
        seed=config.train.seed,
        steps=progress.step,
        train_seconds=round(progress.seconds + gptq_seconds, 2),
        gptq_seconds=round(gptq_seconds, 2),
        train_tokens=progress.tokens,
        train_bytes=progress.bytes,
        train_bytes_per_second=round(progress.bytes / progress.seconds) if progress.seconds else None,
        bpb_unquantised=unquantised,
        validation_bpb_unquantised_sample=progress.validation_bpb,
        validation_bpb_sample=sample,
        stopped_early=stopped_early,
        chunks_of=after.data.decode("utf-8", "backslashreplace") if after else None,
        chunks_before=before.offsets() if before else None,
        chunks_after=after.offsets() if after else None,
        artifact=str(run.artifact),
    )
    write_json(run.summary, to_json(summary))
    return Run(run.path, summary, before, after)


def _cut(opened: LoadedModel, text: bytes) -> Segmentation:
    return segment(opened.model, opened.tokenizer, text, opened.config.train.seq_len)
