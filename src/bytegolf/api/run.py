"""The whole job of a run: train, export, score the file as reloaded from disk, segment two standard sentences."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bytegolf.analyze.render import STANDARD_TEXT
from bytegolf.analyze.segment import Segmentation, segment
from bytegolf.api.evaluation import evaluate
from bytegolf.api.model import Model, load
from bytegolf.api.results import Summary
from bytegolf.artifact.export import export_weights
from bytegolf.artifact.loading import LoadedModel, load_model, with_weights
from bytegolf.artifact.run_folder import RunFolder
from bytegolf.artifact.run_progress import Progress
from bytegolf.config import Config, levels
from bytegolf.data.shards import TokenStream, open_split
from bytegolf.data.tokenizer import load_tokenizer
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext, join
from bytegolf.evaluate.modes import ScoringMode
from bytegolf.files import write_json
from bytegolf.progress import Reporter
from bytegolf.results import to_json
from bytegolf.training.metrics import read_metrics
from bytegolf.training.setup import check_length, check_tokenizer, fit, initial_model


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run: its folder, what it came to, and what its router made of two standard sentences."""

    path: Path
    """the run's folder"""
    summary: Summary | None
    """what is in its summary.json; None on ranks of a distributed run that do not lead"""
    before: Segmentation | None = None
    """the standard text as the untrained model cuts it; None for a flat model"""
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
    overrides: Sequence[str] = (),
    resume: bool = False,
    quiet: bool = False,
) -> Run:
    """Train a model, export it, score the file as reloaded from disk, and segment two standard sentences.

    Args:
        config: a preset's name (``cpu-demo``), a TOML file, or a ``Config``.
        data: a folder made by ``bytegolf.prepare`` or `bytegolf prepare`; by default the configuration's.
        out: the run's folder; by default ``runs/<name>``.
        overrides: changes of the configuration, as ``"train.max_seconds=60"``.
        resume: go on with the run in ``out`` if there is one.
        quiet: print nothing while it goes on.

    Ctrl-C stops cleanly: what was trained so far is still exported and scored.

    Raises:
        BytegolfError: a configuration, data or folder that cannot be used, or a loss that is not finite.
    """
    changes = [*overrides, *([f"data.path={json.dumps(os.fspath(data), ensure_ascii=False)}"] if data else [])]
    settings = config.with_(*changes) if isinstance(config, Config) else Config.load(os.fspath(config), changes)
    return train_run(settings, Path(out) if out else Path("runs") / settings.name, resume=resume, quiet=quiet)


def train_run(config: Config, out: Path, *, resume: bool = False, quiet: bool = False) -> Run:
    """``train`` for a resolved configuration."""
    data = Path(config.data.path)
    tokenizer = load_tokenizer(config.data.tokenizer, data)
    check_tokenizer(config, tokenizer)
    streams = [open_split(data, config.data.tokenizer, split, tokenizer.vocab_size) for split in ("train", "val")]
    for stream, split in zip(streams, ("training", "validation"), strict=True):
        check_length(stream, config.train.seq_len, split)
    run = RunFolder(out)
    with join(config.train.device) as world, run.held() if world.leads else contextlib.nullcontext():
        if world.leads:
            run.prepare(config, tokenizer, sys.argv, resume)
        world.wait()
        reporter = Reporter(quiet=quiet or not world.leads)
        trainer = fit(config, tokenizer, streams[0], streams[1], run.path, world, reporter, resume)
        state, progress, gptq_seconds = trainer.export_state(), trainer.progress, 0.0
        if world.leads:
            exported = export_weights(run.artifact, config, tokenizer, state, progress, world.device)
            gptq_seconds = exported.gptq_seconds
            _check_reserve(config, progress.seconds, gptq_seconds, reporter)
        world.wait()
        return conclude(run, data, streams, state, progress, gptq_seconds, trainer.stopped_early, reporter, world)


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
    data: Path,
    streams: list[TokenStream],
    state: dict[str, torch.Tensor],
    progress: Progress,
    gptq_seconds: float,
    stopped_early: bool,
    reporter: Reporter,
    world: DistributedContext = SINGLE_PROCESS,
) -> Run:
    """Score the artifact as it lies on the disk, segment the standard text, write summary.json.

    ``streams`` are the training and validation splits; ``state`` is what the artifact was made of. The processes of
    ``world`` share the scores, except those of test-time training; the rest is the leader's, and the others get a
    ``Run`` without a summary.
    """
    settings = run.read_config()
    if settings.eval.ttt.mode != "off":
        if not world.leads:
            return Run(run.path, None)
        world = SINGLE_PROCESS
    opened = load_model(run.path, data, settings.train.device)
    config = opened.config
    with reporter:
        result = evaluate(opened, data, limit=config.eval.limit, reporter=reporter, world=world)
        unquantised = None
        if config.eval.unquantised:
            float_model = with_weights(opened, state)
            unquantised = evaluate(float_model, data, limit=config.eval.limit, reporter=reporter, world=world).bpb
    sample = None
    if progress.validation_bpb is not None:  # what training scored last, with the weights before quantisation
        plain = ScoringMode(config.train.seq_len, batch=config.eval.batch, tail="score")
        limit = config.train.validate_tokens
        sample = plain.score(opened.model, streams[1], opened.tokenizer, limit=limit, world=world).bpb
    if not world.leads:
        return Run(run.path, None)
    before = after = None
    if levels(opened.config.model.network):
        after = _standard(opened)
        untrained = initial_model(opened.config, opened.tokenizer, streams[0])
        untrained.set_capacity(opened.config.eval.capacity, opened.config.eval.capacity_divisor)
        before = _standard(dataclasses.replace(opened, model=untrained.eval()))
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
        chunks_before=before.offsets() if before else None,
        chunks_after=after.offsets() if after else None,
        artifact=str(run.artifact),
    )
    write_json(run.summary, to_json(summary))
    return Run(run.path, summary, before, after)


def _standard(opened: LoadedModel) -> Segmentation:
    return segment(opened.model, opened.tokenizer, STANDARD_TEXT, opened.config.train.seq_len)
