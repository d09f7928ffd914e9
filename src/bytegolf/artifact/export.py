"""From weights to an artifact: calibrate if GPTQ is asked for, quantise, pack, write."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.checkpoint_folder import Progress
from bytegolf.artifact.container import MAGIC
from bytegolf.artifact.gptq import quantize_state, sample_windows, second_moments, with_gptq
from bytegolf.artifact.loading import build
from bytegolf.artifact.opening import is_weights, locate, open_model
from bytegolf.artifact.pack import Summary, write_artifact
from bytegolf.artifact.plan import plan_of
from bytegolf.artifact.primer import primer_of
from bytegolf.artifact.quantize import QuantizedTensor
from bytegolf.artifact.results import ExportResult
from bytegolf.artifact.run_folder import RunFolder, data_folder
from bytegolf.config import Config
from bytegolf.data.shards import open_split
from bytegolf.data.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from bytegolf.device import choose_device, pick_precision
from bytegolf.errors import BytegolfError
from bytegolf.files import check_replaceable, clear_leftovers
from bytegolf.locks import only_one
from bytegolf.model.storage import storage_kinds


@dataclass(frozen=True)
class Exported:
    """An artifact that was written."""

    summary: Summary
    gptq_seconds: float
    """training time that GPTQ took, as it looks at training data; 0 without it"""


@dataclass(frozen=True)
class Latest:
    """A run's latest checkpoint, as its artifact is made of it."""

    run: RunFolder
    config: Config
    """with what the export changes"""
    tokenizer: Tokenizer
    state: dict[str, torch.Tensor]
    """the averaged weights, where it has some"""
    progress: Progress
    checkpoint: Path
    data: Path
    """the folder of its data, wherever one stands"""


def latest(source: Path, overrides: Sequence[str] = ()) -> Latest:
    """Open the latest checkpoint of the run ``source``, or imported weights, which stand for one.

    ``overrides`` change the run's configuration for the artifact: how it is quantised, and how it is scored. Raises
    BytegolfError for overrides of anything else, and where there is no checkpoint.
    """
    run = RunFolder(source)
    for override in overrides:
        if not override.startswith(("export.", "eval.")):
            raise BytegolfError(
                f"{override.partition('=')[0]} cannot be changed after training: give overrides of export.… or eval.…"
            )
    if not run.checkpoints.exists() and (imported := _imported(source, overrides)):
        return imported
    config = run.read_config(overrides)
    found = store.checkpoints(run.checkpoints)
    if not found:
        raise BytegolfError(f"the run {source} has no checkpoint yet: train it first")
    saved = store.load(found[-1])
    state = saved.exported
    build(config, state, str(found[-1]))
    data = data_folder(run.path, config) or Path(config.data.path)
    if run.tokenizer.exists():
        tokenizer: Tokenizer = SentencePieceTokenizer(run.tokenizer, config.data.tokenizer)
    else:
        tokenizer = load_tokenizer(config.data.tokenizer, data)
    return Latest(run, config, tokenizer, state, Progress.of(saved.progress, found[-1]), found[-1], data)


def _imported(source: Path, overrides: Sequence[str]) -> Latest | None:
    """Imported or public weights in place of a checkpoint; None if ``source`` holds none."""
    place = locate(source)
    if not is_weights(place.path):
        return None
    opened = open_model(source)
    config = opened.artifact.config.with_(*overrides)
    tokenizer = load_tokenizer(config.data.tokenizer)
    run, data = RunFolder(opened.path.parent), Path(config.data.path)
    return Latest(run, config, tokenizer, opened.artifact.state, Progress(), opened.path, data)


def export(
    source: Path, out: Path | None = None, overrides: Sequence[str] = (), data: Path | None = None
) -> ExportResult:
    """Export the latest checkpoint of a run (see ``latest``). ``data``: the folder to read, by default the run's."""
    with destination(source, out) as path:
        saved = latest(source, overrides)
        device = choose_device(saved.config.train.device)
        told = saved.config, saved.tokenizer, saved.state, saved.progress
        done = export_weights(path, *told, device, data or saved.data)
    summary, seconds = done.summary, round(done.gptq_seconds, 2)
    return ExportResult(
        path, saved.checkpoint, summary.sha256, summary.parameters, summary.file_bytes, gptq_seconds=seconds
    )


@contextlib.contextmanager
def destination(source: Path, out: Path | None) -> Iterator[Path]:
    """The artifact to write: ``out``, or that of the run ``source``; no other process writes it meanwhile.

    A run whose own artifact it is is held. Any other file has a lock beside it, and the run may be trained meanwhile.
    """
    run = RunFolder(source)
    if run.checkpoints.exists() or not is_weights(locate(source).path):
        run.read_config()
    elif out is None:
        raise BytegolfError(f"{source} is weights and no run: name the artifact to write with --out")
    path = out or run.artifact
    check_replaceable(path, MAGIC if out else b"")
    owner = RunFolder(path.parent)
    if path == owner.artifact and owner.config.exists():
        held = owner.held()
    else:
        taken = f"another `bytegolf export` is writing {path}: wait for it, or choose another --out"
        held = only_one(path.with_name(f".{path.name}.lock"), taken)
    with held:
        clear_leftovers(path)
        yield path


def export_weights(
    path: Path,
    config: Config,
    tokenizer: Tokenizer,
    state: dict[str, torch.Tensor],
    progress: Progress,
    device: torch.device,
    data: Path | None = None,
) -> Exported:
    """Write the artifact of ``state`` to ``path``.

    The forward passes that GPTQ needs run on ``device``, over training text in ``data`` (by default as configured).
    """
    now = time.process_time if config.train.clock == "processor" else time.perf_counter
    started = now()
    stored = solved(config, tokenizer, state, device, data) if config.export.gptq else state
    spent = now() - started if config.export.gptq else 0.0
    told = info(progress, spent) | ({"gptq_seconds": round(spent, 1)} if config.export.gptq else {})
    primer = primer_of(config, tokenizer, data or Path(config.data.path))
    identity, coder = tokenizer.identity(), config.export.coder
    return Exported(write_artifact(path, stored, config, identity, told, coder=coder, primer=primer), spent)


def info(progress: Progress, more_seconds: float = 0.0) -> dict[str, Any]:
    """What an artifact tells of its training."""
    seconds = round(progress.seconds + more_seconds, 1)
    return {"steps": progress.step, "train_seconds": seconds, "train_bytes": progress.bytes}


def solved(
    config: Config,
    tokenizer: Tokenizer,
    state: dict[str, torch.Tensor],
    device: torch.device,
    data: Path | None = None,
) -> dict[str, torch.Tensor | QuantizedTensor]:
    """``state`` with its linear maps quantised by GPTQ, which looks at the run's training split and at nothing else."""
    train = open_split(data or Path(config.data.path), tokenizer.name, "train", tokenizer.vocab_size)
    model = build(config, state, "the run").to(device).eval()
    model.precision = pick_precision(config.train.precision, device)
    plan = plan_of(state, storage_kinds(model), config.export)
    windows = sample_windows(train, config.train.seq_len, config.export.gptq_tokens)
    return quantize_state(state, plan, second_moments(model, windows, with_gptq(plan)), config.export.gptq_damping)
