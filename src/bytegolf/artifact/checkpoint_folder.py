"""A checkpoint's folder, `step_00000123/`, without its tensors: names, checksums, progress. torch is not needed.

`checksums.json` has the SHA-256 of each of its other files; a checkpoint of an earlier version has none.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from bytegolf.config import from_dict
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, parse_json, read_json_object

_NAME = re.compile(r"step_(\d{8,})")
PARTS = ("model", "optimizer", "averaged")
OPTIONAL = ("averaged",)
PROGRESS, CHECKSUMS = "progress.json", "checksums.json"
SAMPLE = "sample_size"
"""In a checkpoint's progress: the size of the sample that its validation_bpb is of."""

T = TypeVar("T")


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies below ``folder``."""
    return folder / f"step_{step:08d}"


def is_name(name: str) -> bool:
    """Whether a checkpoint's folder may be called so."""
    return _NAME.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if is_name(path.name)), key=step_of)


def progress_of(path: Path) -> Progress:
    """Where the run stood at the checkpoint ``path``, without reading its tensors."""
    return Progress.of(progress(path, checksums(path)), path)


def progress(path: Path, hashes: dict[str, str] | None) -> dict[str, Any]:
    """All that the progress.json of the checkpoint ``path`` says; ``hashes`` are ``checksums(path)``."""
    try:
        told = parse_json(read(path / PROGRESS, hashes))
    except ValueError as error:
        raise damaged(path / PROGRESS, f"it is no JSON: {error}") from error
    if not isinstance(told, dict) or type(told.get("step")) is not int or told["step"] != step_of(path):
        raise BytegolfError(
            f"the checkpoint {path} has no step in progress.json, or another than its own: delete it to go on from the "
            "one before"
        )
    return told


def checksums(path: Path) -> dict[str, str] | None:
    """The SHA-256 of each file of the checkpoint ``path``, as it was saved; None where an earlier version saved it."""
    file = path / CHECKSUMS
    if not file.exists():
        return None
    hashes = read_json_object(file, "checkpoint's checksums").get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise damaged(file, "it lists no checksums")
    return hashes


def read(file: Path, hashes: dict[str, str] | None) -> bytes:
    """The contents of a file of a checkpoint, which ``hashes``, where there are some, must know."""
    with disk_errors(file, "read the checkpoint"):
        data = file.read_bytes()
    if hashes is not None and hashes.get(file.name) != hashlib.sha256(data).hexdigest():
        raise damaged(file, f"its checksum is not that of {CHECKSUMS}")
    return data


def damaged(file: Path, why: str) -> BytegolfError:
    """The error for a file of a checkpoint that is not what was written."""
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
    def of(told: dict[str, Any], path: Path) -> Progress:
        """What the progress of the checkpoint ``path`` says of these fields; it holds more besides.

        Raises BytegolfError if it says something else than their types.
        """
        return described(Progress, {f.name: told[f.name] for f in fields(Progress) if f.name in told}, path)


def contents(file: Path, hashes: dict[str, str] | None) -> bytes | None:
    """The bytes of one of a checkpoint's files of tensors; None for one that it does without."""
    if not file.exists() and file.name not in (hashes or ()) and file.stem in OPTIONAL:
        return None
    return read(file, hashes)


def verify(path: Path) -> tuple[dict[str, str] | None, int]:
    """Check the checkpoint ``path`` as ``checkpoint.load`` would: its checksums, and how many tensors it holds.

    Raises BytegolfError: the same as ``checkpoint.load``.
    """
    import safetensors  # a megabyte, and most who ask for a folder's checkpoints read none

    hashes, count = checksums(path), 0
    progress(path, hashes)
    for part in PARTS:
        file = path / f"{part}.safetensors"
        try:
            data = contents(file, hashes)
            count += 0 if data is None else len(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError as error:
            raise damaged(file, str(error)) from error
    return hashes, count
