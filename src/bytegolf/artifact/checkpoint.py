"""Checkpoints: a folder each, `step_00000123/`, with safetensors and JSON; complete or not there at all.

`checksums.json` has the SHA-256 of each of its other files; a checkpoint of an earlier version has none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from bytegolf.config import from_dict
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, parse_json, read_json_object, write_bytes, write_json
from bytegolf.model.merging import merged

_NAME = re.compile(r"step_(\d{8,})")
_PARTS = ("model", "optimizer", "averaged")
_OPTIONAL = ("averaged",)
PROGRESS, CHECKSUMS = "progress.json", "checksums.json"
SAMPLE = "sample_size"
"""In a checkpoint's progress: the size of the sample that its validation_bpb is of."""

T = TypeVar("T")


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


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies below ``folder``."""
    return folder / f"step_{step:08d}"


def is_name(name: str) -> bool:
    """Whether a checkpoint's folder may be called so."""
    return _NAME.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` below ``folder``: into a temporary folder that is renamed once it is whole."""
    path = path_of(folder, checkpoint.progress["step"])
    temporary = _hidden(path)
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    try:
        hashes = {}
        for part in _PARTS:
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


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if is_name(path.name)), key=step_of)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; a file that is missing, damaged or altered is named in the error."""
    hashes = checksums(path)
    progress = _told(path, hashes)
    return Checkpoint(progress, **{part: _tensors(path / f"{part}.safetensors", hashes) for part in _PARTS})


def progress_of(path: Path) -> Progress:
    """Where the run stood at the checkpoint ``path``, without reading its tensors."""
    return Progress.told(_told(path, checksums(path)), path)


def _told(path: Path, hashes: dict[str, str] | None) -> dict[str, Any]:
    try:
        progress = parse_json(_read(path / PROGRESS, hashes))
    except ValueError as error:
        raise _damaged(path / PROGRESS, f"it is no JSON: {error}") from error
    if not isinstance(progress, dict) or type(progress.get("step")) is not int or progress["step"] != step_of(path):
        raise BytegolfError(
            f"the checkpoint {path} has no step in progress.json, or another than its own: delete it to go on from the "
            "one before"
        )
    return progress


def checksums(path: Path) -> dict[str, str] | None:
    """The SHA-256 of each file of the checkpoint ``path``, as it was saved; None where an earlier version saved it."""
    file = path / CHECKSUMS
    if not file.exists():
        return None
    hashes = read_json_object(file, "checkpoint's checksums").get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise _damaged(file, "it lists no checksums")
    return hashes


def _read(file: Path, hashes: dict[str, str] | None) -> bytes:
    with disk_errors(file, "read the checkpoint"):
        data = file.read_bytes()
    if hashes is not None and hashes.get(file.name) != hashlib.sha256(data).hexdigest():
        raise _damaged(file, f"its checksum is not that of {CHECKSUMS}")
    return data


def _damaged(file: Path, why: str) -> BytegolfError:
    return BytegolfError(
        f"the checkpoint file {file} is damaged ({why}): delete its folder to go on from the one before"
    )


def described(kind: type[T], raw: Any, path: Path) -> T:
    """Part of the progress of the checkpoint ``path`` as the dataclass ``kind``; an error names it if it is none."""
    try:
        return from_dict(kind, raw)
    except BytegolfError as error:
        raise BytegolfError(f"the progress of the checkpoint {path} is damaged ({error}): delete its folder") from error


@dataclass(frozen=True)
class Progress:
    """Where a training run stands; it is saved with every checkpoint."""

    step: int = 0
    """steps taken"""
    seconds: float = 0.0
    """training time on the configured clock: validation, checkpoints and the warm-up do not count"""
    tokens: int = 0
    bytes: int = 0
    validation_bpb: float | None = None
    """of the last validation, on its sample"""

    @staticmethod
    def of(saved: Checkpoint, path: Path) -> Progress:
        """What the checkpoint ``path`` says of these fields; its progress holds more besides.

        Raises BytegolfError if it says something else than their types.
        """
        return Progress.told(saved.progress, path)

    @staticmethod
    def told(told: dict[str, Any], path: Path) -> Progress:
        """The same of what its progress.json says."""
        return described(Progress, {f.name: told[f.name] for f in fields(Progress) if f.name in told}, path)


def _tensors(file: Path, hashes: dict[str, str] | None) -> dict[str, Tensor]:
    if not file.exists() and file.name not in (hashes or ()) and file.stem in _OPTIONAL:
        return {}
    data = _read(file, hashes)
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise _damaged(file, str(error)) from error


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
