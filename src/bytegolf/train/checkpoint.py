"""Checkpoints: a folder each, `step_00000123/`, with safetensors and JSON; complete or not there at all."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, read_json, write_bytes, write_json

_NAME = re.compile(r"step_(\d{8})")
_PARTS = ("model", "optimizer", "averaged")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped."""

    progress: dict[str, Any]
    """step, seconds and tokens so far, the last validation, ..."""
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    averaged: dict[str, Tensor]
    """the averaged weights; empty without averaging"""


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` below ``folder``: into a temporary folder that is renamed once it is whole."""
    path = folder / f"step_{checkpoint.progress['step']:08d}"
    temporary = folder / f".{path.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    try:
        for part in _PARTS:
            tensors = {name: tensor.contiguous() for name, tensor in getattr(checkpoint, part).items()}
            if tensors:
                write_bytes(temporary / f"{part}.safetensors", safetensors.torch.save(tensors))
        write_json(temporary / "progress.json", checkpoint.progress)
        with disk_errors(path):
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
            _sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _sync(folder: Path) -> None:
    """Have the rename itself on disk before anything older is deleted."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; a file that is missing or damaged is named in the error."""
    parts = {part: _tensors(path / f"{part}.safetensors", part == "model") for part in _PARTS}
    progress = read_json(path / "progress.json", "checkpoint's progress")
    if not isinstance(progress, dict) or not isinstance(progress.get("step"), int):
        raise BytegolfError(
            f"the checkpoint {path} has no step in progress.json: delete it to go on from the one before"
        )
    return Checkpoint(progress, **parts)


def _tensors(path: Path, required: bool) -> dict[str, Tensor]:
    if not required and not path.exists():
        return {}
    with disk_errors(path, "read the checkpoint"):
        data = path.read_bytes()
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise BytegolfError(
            f"the checkpoint file {path} is damaged ({error}): delete its folder to go on from the one before"
        ) from error


def prune(folder: Path, keep: int) -> None:
    """Delete all but the latest ``keep`` checkpoints and the best validated one."""
    found = checkpoints(folder)
    scores = {}
    for path in found:
        bpb = read_json(path / "progress.json", "checkpoint's progress").get("validation_bpb")
        if bpb is not None:
            scores[path] = bpb
    best = min(scores, key=lambda path: scores[path], default=None)
    for path in found[:-keep]:
        if path != best:
            shutil.rmtree(path, ignore_errors=True)
