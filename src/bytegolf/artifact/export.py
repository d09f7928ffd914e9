"""From weights to an artifact: calibrate if GPTQ is asked for, quantise, choose the primer, pack, write.

It is taken from the training split and from nothing else: pieces that begin where documents do, spread evenly over the
split, so that all kinds of text are in it. Which ones depends on the split's tokens and the number of bytes alone, so
that anybody who has the data can make it again (`bytegolf verify` does).
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.checkpoint_folder import Progress
from bytegolf.artifact.container import MAGIC
from bytegolf.artifact.gptq import quantize_state, sample_windows, second_moments, with_gptq
from bytegolf.artifact.loading import LoadedModel, build, is_weights, locate, open_model
from bytegolf.artifact.pack import Summary, write_artifact
from bytegolf.artifact.quantize import QuantizedTensor, plan_of
from bytegolf.artifact.results import ExportResult
from bytegolf.artifact.run_folder import RunFolder, data_folder
from bytegolf.artifact.weights_file import ENDING, write_weights
from bytegolf.config import Config
from bytegolf.data.dataset import TokenStream, open_split
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from bytegolf.device import choose_device, pick_precision
from bytegolf.errors import BytegolfError
from bytegolf.files import check_replaceable, clear_leftovers, disk_errors, only_one, write_bytes
from bytegolf.mixing.primer import Primer
from bytegolf.model.layers import float_state, storage_kinds

# ----------------------------------------------------------------------------------------------------------- the primer


PIECE = 1 << 16
"""Bytes of each piece: most of a long document, a few dozens of short ones."""

LOOK = 1 << 20
"""Tokens behind a place in which a document's start is looked for."""


def primer_of(config: Config, tokenizer: Tokenizer, data: Path) -> Primer | None:
    """The primer that ``config`` asks for, of the training split in ``data``; None if it asks for none.

    Raises BytegolfError for a model of subwords, whose scores cannot be mixed.
    """
    if not config.export.primer:
        return None
    if not isinstance(tokenizer, ByteTokenizer):
        raise BytegolfError(
            f"a primer is for mixing, which needs a model over bytes, and this one is over {tokenizer.name}: leave it "
            "out (export.primer=0)"
        )
    stream = open_split(data, tokenizer.name, "train", tokenizer.vocab_size)
    return Primer.of(training_text(stream, tokenizer, config.export.primer))


def training_text(stream: TokenStream, tokenizer: Tokenizer, size: int) -> bytes:
    """``size`` bytes of a split, or all of it if it has no more: pieces at equal distances, each from a document's
    start on. They are fewer where the last document begins too late for what is left.

    Example: 200,000 bytes of 1,000,000 tokens are four pieces of 50,000, looked for at 0, 250,000, 500,000 and 750,000.
    If documents begin at 0, 240,000, 260,000 and 700,000, the second piece begins at 260,000 and the third at 700,000;
    behind 750,000 none begins, so the fourth begins there, where the third has ended.
    """
    if size >= len(stream):
        return tokenizer.decode(stream.slice(0, len(stream)))[:size]
    count = -(-size // PIECE)
    parts: list[bytes] = []
    done = left = 0
    for number in range(count):
        place = max(done, len(stream) * number // count)
        ahead = stream.slice(place, min(len(stream), place + LOOK))
        starts = np.flatnonzero(ahead == tokenizer.BOS)
        start = place + (int(starts[0]) if len(starts) else 0)
        wanted = size * (number + 1) // count - size * number // count + left
        tokens = stream.slice(start, min(len(stream), start + 2 * wanted))  # of which some are the BOS of a document
        kept = np.flatnonzero(tokenizer.byte_counts(tokens, tokens))[:wanted]
        done, left = start + (int(kept[-1]) + 1 if len(kept) else 0), wanted - len(kept)
        parts.append(tokenizer.decode(tokens[kept]))
    return b"".join(parts)


# --------------------------------------------------------------------------------------------------------------- export


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


# ----------------------------------------------------------------------------------------------- saving what was loaded


def save(loaded: LoadedModel, target: Path) -> Path:
    """Write ``loaded`` to ``target`` and a SentencePiece tokenizer beside it; see ``bytegolf.Model.save``."""
    artifact, config, tokenizer = loaded.artifact, loaded.config, loaded.tokenizer
    state = {name: tensor.detach().cpu() for name, tensor in float_state(loaded.model).items()}
    # read again, since the state that was loaded shares its memory with the network
    shipped = open_model(loaded.path).artifact.state
    if target.suffix == ENDING:
        write_weights(target, state, config, tokenizer.identity(), artifact.info)
    elif not is_weights(loaded.path) and all(torch.equal(tensor, shipped[name]) for name, tensor in state.items()):
        with disk_errors(loaded.path, "read"):
            write_bytes(target, loaded.path.read_bytes())
    else:
        told, coder = (tokenizer.identity(), artifact.info), config.export.coder
        write_artifact(target, state, config, *told, coder=coder, primer=artifact.primer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        beside = target.parent / "tokenizer.model"
        if not beside.exists() or not beside.samefile(tokenizer.path):
            with disk_errors(beside, "write"):
                shutil.copyfile(tokenizer.path, beside)
    return target
