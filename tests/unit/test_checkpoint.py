"""Checkpoints: whole or not there, however they end."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from bytegolf import files
from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.checkpoint import Checkpoint, checkpoints, load, prune, save
from bytegolf.artifact.checkpoint_folder import verify
from bytegolf.errors import BytegolfError


def made(step: int, bpb: float | None = None, averaged: bool = False) -> Checkpoint:
    torch.manual_seed(step)
    weights = {"a.weight": torch.randn(4, 3), "empty": torch.ones(0, 3)}
    optimizer = {"momentum.a.weight": torch.randn(4, 3), "step.b": torch.tensor(float(step))}
    extra = {**weights, "updates": torch.tensor(step)} if averaged else {}
    return Checkpoint({"step": step, "seconds": 1.5, "validation_bpb": bpb}, weights, optimizer, extra)


def steps(folder: Path) -> list[int]:
    return [store.step_of(path) for path in checkpoints(folder)]


@pytest.mark.parametrize("averaged", [False, True])
def test_what_is_saved_is_loaded(averaged: bool, tmp_path: Path) -> None:
    saved = made(7, 1.25, averaged)
    path = save(tmp_path / "checkpoints", saved)
    assert path == store.path_of(tmp_path / "checkpoints", 7)
    loaded = load(path)
    assert loaded.progress == saved.progress
    for part in ("model", "optimizer", "averaged"):
        before, after = getattr(saved, part), getattr(loaded, part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert {file.name for file in (tmp_path / "checkpoints").iterdir()} == {path.name}


def test_they_are_listed_by_step_and_others_are_not(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "none") == []
    for step in (100_000_000, 20, 3):
        save(tmp_path, made(step))
    (tmp_path / "notes").mkdir()
    (tmp_path / ".step_00000099.tmp").mkdir()
    assert steps(tmp_path) == [3, 20, 100_000_000]


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, bpb in [(1, 3.0), (2, 1.5), (3, 2.0), (4, 1.9), (5, None)]:
        save(tmp_path, made(step, bpb))
        prune(tmp_path, 2)
    assert steps(tmp_path) == [2, 4, 5]
    assert {file.name for file in tmp_path.iterdir()} == {f"step_{step:08d}" for step in (2, 4, 5)}


def test_pruning_survives_a_damaged_one_and_clears_what_crashes_left(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, made(step, 2.0 - step / 10))
    (store.path_of(tmp_path, 1) / "progress.json").write_text("{")
    (store.path_of(tmp_path, 2) / "progress.json").unlink()
    (tmp_path / ".step_00000009.tmp").mkdir()
    (tmp_path / ".step_00000009.tmp" / "model.safetensors").write_bytes(b"half")
    prune(tmp_path, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["step_00000003"]


def fail_at(monkeypatch: pytest.MonkeyPatch, call: int, number: int) -> None:
    """Have the ``call``-th write of a file (from 0) write a half and raise ``number``."""
    calls = iter(range(100))
    original = files.write_atomically

    def write(path: Path, fill: Any) -> None:
        def half(file: Any) -> None:
            fill(file)
            file.truncate(file.tell() // 2)
            raise OSError(number, "simulated")

        original(path, half if next(calls) == call else fill)

    monkeypatch.setattr(files, "write_atomically", write)


@pytest.mark.parametrize("call", [0, 1, 2, 3, 4])
def test_a_full_disk_is_one_sentence_and_the_earlier_checkpoint_stays(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each of the five files in turn, and in one that is there already."""
    for step in (1, 2):
        save(tmp_path, made(step, averaged=True))
    fail_at(monkeypatch, call, errno.ENOSPC)
    with pytest.raises(BytegolfError, match=r"^cannot write .*: the disk is full: [^.]*$") as error:
        save(tmp_path, made(2 + call % 2, averaged=True))
    assert "\n" not in str(error.value)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["step_00000001", "step_00000002"]
    assert load(checkpoints(tmp_path)[-1]).progress["step"] == 2


class _Killed(BaseException):
    """The process ends here: nothing below may run any clean-up."""


def die(path: Path, **options: Any) -> None:
    """Delete a part of ``path`` and end."""
    if Path(path).exists():
        for file in Path(path).glob("*.safetensors"):
            file.unlink()
        raise _Killed


def test_death_before_the_rename_leaves_nothing_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, made(1))
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_json", lambda path, value: die(path.parent))
        patch.setattr(shutil, "rmtree", lambda path, **options: None)
        with pytest.raises(_Killed):
            save(tmp_path, made(2))
    assert steps(tmp_path) == [1]
    assert (tmp_path / ".step_00000002.tmp").exists()
    save(tmp_path, made(2))
    prune(tmp_path, 2)
    assert [load(path).progress["step"] for path in checkpoints(tmp_path)] == [1, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_death_while_deleting_leaves_no_half_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        save(tmp_path, made(step))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(_Killed):
            prune(tmp_path, 1)
    assert [load(path).progress["step"] for path in checkpoints(tmp_path)] == [2, 3]
    prune(tmp_path, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["step_00000003"]


@pytest.mark.parametrize("part", ["model", "optimizer", "averaged"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_file_is_named(part: str, damage: str, tmp_path: Path) -> None:
    path = save(tmp_path, made(1, averaged=True))
    file = path / f"{part}.safetensors"
    data = file.read_bytes()
    file.write_bytes({"cut": data[:-9], "empty": b"", "text": b"this is no tensor file at all"}[damage])
    with pytest.raises(BytegolfError, match=f"{part}.safetensors is damaged .*delete its folder"):
        load(path)
    with pytest.raises(
        BytegolfError, match=f"{part}.safetensors is damaged .*delete its folder"
    ):  # `check`, without torch
        verify(path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    path = save(tmp_path, made(1))
    (path / name).unlink()
    with pytest.raises(BytegolfError, match=rf"{name}: no such file"):
        load(path)
    with pytest.raises(BytegolfError, match=rf"{name}: no such file"):  # `check`, without torch
        verify(path)


@pytest.mark.parametrize("text", ["[]", '{"step": "3"}', "{}"])
def test_progress_without_a_step_is_said(text: str, tmp_path: Path) -> None:
    path = save(tmp_path, made(1))
    (path / "checksums.json").unlink()  # as earlier versions saved it
    (path / "progress.json").write_text(text)
    with pytest.raises(BytegolfError, match=r"no step in progress\.json"):
        load(path)
    with pytest.raises(BytegolfError, match=r"no step in progress\.json"):  # `check`, without torch
        verify(path)


def test_the_files_are_plain_safetensors_and_json(tmp_path: Path) -> None:
    path = save(tmp_path, made(1))
    assert set(safetensors.torch.load_file(path / "model.safetensors")) == {"a.weight", "empty"}
    assert json.loads((path / "progress.json").read_text())["step"] == 1
