"""Two processes on one folder: the second is told so and changes nothing; a killed one leaves nothing in the way.

A sample of tests/stress/kills.py and the simulation of tests/stress/disks.py are here too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import pytest
from commands import TinyRun, good, refused, small

from bytegolf import files
from bytegolf.artifact.run_folder import RunFolder
from bytegolf.data.dataset import LOCK
from bytegolf.errors import BytegolfError
from bytegolf.files import clear_leftovers, only_one, write_bytes

HOLDER = """
import sys
from pathlib import Path
from bytegolf.files import only_one
with only_one(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    sys.stdin.read()  # until it is killed
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_second_process_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "run" / "run.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BytegolfError, match=rf"^taken \(process {holder.pid} on "), only_one(path, "taken"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with only_one(path, "taken"):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert list(path.parent.iterdir()) == [], "equal work leaves equal folders"


def test_who_opened_a_lock_that_was_deleted_then_locks_the_one_that_others_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between opening the file and locking it, in which its holder ends and a third one begins."""
    path, between = tmp_path / "lock", contextlib.ExitStack()
    holder = contextlib.ExitStack()
    holder.enter_context(only_one(path, "taken"))
    original = filelock.lock_descriptor

    def lock(handle: int, *, blocking: bool) -> bool:
        monkeypatch.setattr(filelock, "lock_descriptor", original)
        holder.close()
        between.enter_context(only_one(path, "taken"))
        return original(handle, blocking=blocking)

    monkeypatch.setattr(filelock, "lock_descriptor", lock)
    with between, pytest.raises(BytegolfError, match=f"^taken .process {os.getpid()} on "), only_one(path, "taken"):
        pass


def test_train_and_export_leave_a_run_alone_that_is_taken(tiny_run: TinyRun, tmp_path: Path) -> None:
    with RunFolder(tiny_run.folder).held():
        before = contents(tiny_run.folder)
        again = ("train", "cpu-demo", *small(), "--data", tiny_run.data, "--out", tiny_run.folder, "--resume")
        for command in (again, ("export", tiny_run.folder), ("export", tiny_run.folder, "--fit", 1_000_000)):
            said = refused(*command)
            assert f"another process is at work in {tiny_run.folder}" in said
            assert f"process {os.getpid()} on" in said
        assert contents(tiny_run.folder) == before


def test_an_export_elsewhere_holds_what_it_writes_and_not_the_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_run.folder, tmp_path / "other")
    out = tmp_path / "a.bgolf"
    with RunFolder(tiny_run.folder).held(), RunFolder(other).held():
        good("export", tiny_run.folder, "--out", out)  # of a run that is being trained
        assert f"at work in {other}" in refused("export", tiny_run.folder, "--out", RunFolder(other).artifact)
    with only_one(tmp_path / ".a.bgolf.lock", "taken"):
        said = refused("export", tiny_run.folder, "--out", out)
    assert f"another `bytegolf export` is writing {out}: " in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bgolf", "other"]


def test_prepare_leaves_a_data_folder_alone_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    with only_one(tmp_path / "data" / LOCK, "taken"):
        said = refused("prepare", tmp_path / "a.txt", "--out", tmp_path / "data")
        assert [file.name for file in (tmp_path / "data").iterdir()] == [LOCK]
    assert f"is at work in {tmp_path / 'data'}: wait for it" in said


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, *, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock, "lock_descriptor", no_locks)
    with only_one(tmp_path / "lock", "taken"), only_one(tmp_path / "lock", "taken"):
        inside = True
    assert inside


def test_what_a_killed_process_left_of_a_file_goes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a[1].json", b"{}")
    for name in (".a[1].json.x7.tmp", ".a1.json.x7.tmp"):
        (tmp_path / name).write_bytes(b"half")
    clear_leftovers(tmp_path / "a[1].json")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".a1.json.x7.tmp", "a[1].json"]


# ---------------------------------------------------------------------------------------------- kills, disks, clocks


@pytest.mark.slow
@pytest.mark.skipif("BYTEGOLF_SLOW_TESTS" not in os.environ, reason="a quarter of a minute: set BYTEGOLF_SLOW_TESTS=1")
def test_killed_at_random_points_it_goes_on_to_the_same() -> None:
    """Kills of a training run and of an export; of a study in test_study_run, of a prepare in test_prepare_restart."""
    script = Path(__file__).parents[1] / "stress" / "kills.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "2", "--what", "checkpoint", "export"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(row["kills"], row["damaged"], row["lost"]) for row in rows] == [(1, 0, 0)] * 2


def test_a_read_only_disk_is_said(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "out").mkdir()
    before = contents(tiny_run.folder)
    original = os.open

    def read_only(path: Any, flags: int, *more: Any, **named: Any) -> int:
        ours = any(Path(path).is_relative_to(folder) for folder in (tiny_run.folder, tmp_path))
        if ours and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return original(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", read_only)
    run = ("train", "cpu-demo", *small(), "--data", tiny_run.data, "--resume", "--out", tiny_run.folder)
    for command in (
        run,
        ("export", tiny_run.folder),
        ("export", tiny_run.folder, "--out", tmp_path / "out" / "a.bgolf"),
        ("prepare", tmp_path / "a.txt", "--out", tmp_path / "out"),
    ):
        said = refused(*command)
        assert str(command[-1] if command[-1] != tmp_path / "out" / "a.bgolf" else tmp_path / "out") in said
        assert "the file system is read-only: choose another folder" in said
    assert contents(tiny_run.folder) == before
    assert list((tmp_path / "out").iterdir()) == []


def test_a_clock_that_jumps_changes_nothing(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock is a day ahead, then behind, each time that it is looked at: budgets are of another clock."""
    now, leaps = time.time, itertools.cycle([86_400.0, -86_400.0])
    monkeypatch.setattr(time, "time", lambda: now() + next(leaps))
    budget = ("train.max_seconds=80000", "train.checkpoint_every=70000")
    ran = good("train", "cpu-demo", *small(), *budget, "--data", tiny_run.data, "--out", tmp_path / "run", "--json")
    assert (ran.json["steps"], ran.json["stopped_early"]) == (10, False)
    assert 0 < ran.json["train_seconds"] < 3600
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_nothing_but_dates_is_told_by_the_wall_clock() -> None:
    root = Path(files.__file__).parent
    wall = re.compile(r"\btime\.time(_ns)?\(|from time import|datetime\.(now|utcnow|today)\(")
    users = {file.relative_to(root).as_posix() for file in root.rglob("*.py") if wall.search(file.read_text())}
    dated = {"tools/submission/folder.py": "its submission.json", "tools/serve/completions.py": "an answer's `created`"}
    assert users == dated.keys(), f"only these have a date: {dated}"


def test_no_module_imports_what_only_unix_has() -> None:
    """So that the package can be imported, and can train, on Windows: such a module is imported where it is used."""
    unix = re.compile(r"^(import|from) (fcntl|resource|pwd|grp|termios|pty)\b", re.MULTILINE)
    root = Path(files.__file__).parent
    assert [file for file in root.rglob("*.py") if unix.search(file.read_text())] == []
