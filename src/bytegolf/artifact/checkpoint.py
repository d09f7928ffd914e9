"""Checkpoints: a folder each, `step_00000123/`, with safetensors and JSON; complete or not there at all.

`checksums.json` has the SHA-256 of each of its other files; a checkpoint of an earlier version has none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bytegolf.artifact.checkpoint_folder import (
    CHECKSUMS,
    PARTS,
    PROGRESS,
    SAMPLE,
    checkpoints,
    checksums,
    contents,
    damaged,
    is_name,
    path_of,
    progress,
    step_of,
)
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, read_json_object, write_bytes, write_json
from bytegolf.model.lora import merged

__all__ = [
    "SAMPLE",
    "Checkpoint",
    "checkpoints",
    "is_name",
    "load",
    "path_of",
    "prune",
    "save",
    "step_of",
]
"""The store as a whole: folders and tensors."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped."""

    progress: dict[str, Any]
    """step, seconds and tokens so far, the last validation, ..."""
    model: dict[str, Tensor]
    """its weights, and beside them trained adapters where there are some"""
    optimizer: dict[str, Tensor]
    averaged: dict[str, Tensor]
    """the averaged weights; empty without averaging"""

    @property
    def exported(self) -> dict[str, Tensor]:
        """The weights that an artifact is made of: the averaged ones, where there are some, with adapters merged."""
        return merged({name: self.averaged.get(name, tensor) for name, tensor in self.model.items()})


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` below ``folder``: into a temporary folder that is renamed once it is whole."""
    path = path_of(folder, checkpoint.progress["step"])
    temporary = _hidden(path)
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    try:
        hashes = {}
        for part in PARTS:
            tensors = {name: tensor.contiguous() for name, tensor in getattr(checkpoint, part).items()}
            if tensors:
                data = safetensors.torch.save(tensors)
                write_bytes(temporary / f"{part}.safetensors", data)
                hashes[f"{part}.safetensors"] = hashlib.sha256(data).hexdigest()
        told = json.dumps(checkpoint.progress, indent=2).encode()
        write_bytes(temporary / PROGRESS, told)
        hashes[PROGRESS] = hashlib.sha256(told).hexdigest()
        write_json(temporary / CHECKSUMS, {"sha256": hashes})
        with disk_errors(path):
            _sync(temporary)
            _discard(path, "old")
            temporary.replace(path)
            _sync(folder)  # before anything older is deleted
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _hidden(path: Path, kind: str = "tmp") -> Path:
    """A name beside ``path`` that is not taken for a checkpoint."""
    return path.with_name(f".{path.name}.{kind}")


def _discard(path: Path, kind: str = "tmp") -> None:
    """Delete a checkpoint, if there, so that no half of it is ever listed."""
    if path.exists():
        hidden = _hidden(path, kind)
        shutil.rmtree(hidden, ignore_errors=True)
        path.replace(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have the folder's entries on disk."""
    if os.name == "nt":  # which does not open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; a file that is missing, damaged or altered is named in the error."""
    hashes = checksums(path)
    told = progress(path, hashes)
    return Checkpoint(told, **{part: _tensors(path / f"{part}.safetensors", hashes) for part in PARTS})


def _tensors(file: Path, hashes: dict[str, str] | None) -> dict[str, Tensor]:
    data = contents(file, hashes)
    try:
        return {} if data is None else safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise damaged(file, str(error)) from error


def prune(folder: Path, keep: int) -> None:
    """Delete all but the latest ``keep`` checkpoints and the best validated one, and what crashes left behind.

    The best is among those validated on as many tokens as the latest: others are scored on another sample.
    """
    found = checkpoints(folder)
    scores = {path: score for path in found if (score := _score(path)) is not None}
    sample = scores[found[-1]][1] if found and found[-1] in scores else None
    comparable = [path for path, (_, tokens) in scores.items() if sample in (None, tokens)]
    best = min(comparable, key=lambda path: scores[path][0], default=None)
    for path in found[:-keep]:
        if path != best:
            _discard(path)
    for left in folder.glob(".step_*"):
        shutil.rmtree(left, ignore_errors=True)


def _score(path: Path) -> tuple[float, Any] | None:
    """The validation BPB of a checkpoint and on how many tokens; None where it has none or cannot be read, which is no
    reason to stop.
    """
    try:
        told = read_json_object(path / PROGRESS, "checkpoint's progress")
    except BytegolfError:
        return None
    bpb = told.get("validation_bpb")
    return (float(bpb), told.get(SAMPLE)) if isinstance(bpb, int | float) else None
