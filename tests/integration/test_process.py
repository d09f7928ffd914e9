"""The command as a process: signals that stop it, closed streams, names that a screen would obey."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import TinyRun, good, refused, small, text
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import LONGEST_WAIT, until

from bytegolf.console import PlainConsole
from bytegolf.training.loop import Trainer
from bytegolf.training.step import StepResult

COMMAND = [sys.executable, "-m", "bytegolf"]


ENDLESS = ["train", "cpu-demo", *small(), "train.max_steps=1000000", "train.log_every=1"]


def test_a_signal_stops_training_with_a_checkpoint_and_an_artifact(tiny_data: Path, tmp_path: Path) -> None:
    """Slurm's time limit: what was trained so far is kept."""
    out = tmp_path / "run"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*COMMAND, *ENDLESS, "--data", str(tiny_data), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    metrics = out / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=LONGEST_WAIT)
    assert process.returncode == 0, errors
    assert "stopped early" in said
    assert list((out / "checkpoints").iterdir())
    assert (out / "artifact.bgolf").exists()


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_closed_terminal_and_ctrl_c_do_the_same(
    name: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, update = getattr(signal, name), Trainer.update

    def interrupted(trainer: Trainer) -> StepResult:
        signal.raise_signal(number)
        return update(trainer)

    monkeypatch.setattr(Trainer, "update", interrupted)
    # a test run in the background of a shell has SIGINT ignored
    before = signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    try:
        ran = good(*ENDLESS, "--data", tiny_data, "--out", tmp_path / "run", "--json")
    finally:
        signal.signal(number, before)
    assert (ran.json["steps"], ran.json["stopped_early"]) == (1, True)
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert (tmp_path / "run" / "artifact.bgolf").exists()


def test_a_signal_outside_of_training_leaves_nothing_half_written(tiny_run: TinyRun, tmp_path: Path) -> None:
    """The signal comes when the temporary file is filled, but not yet on the disk and so not yet renamed."""
    (tmp_path / "a.txt").write_text(text(1000), encoding="utf-8")
    stopped = """
import os, signal, sys
from pathlib import Path
def fsync(file):
    assert len(list(Path().iterdir())) == 2
    signal.raise_signal(signal.SIGTERM)
os.fsync = fsync
from bytegolf.cli import main
main()
"""
    command = [sys.executable, "-c", stopped, "compress", "-m", str(tiny_run.folder), "a.txt", "-o", "a.bgz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stderr.splitlines()[-1] == "stopped by SIGTERM"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    """As cron and some launchers start programs."""
    shell = f'"{sys.executable}" -m bytegolf presets cpu-gpt {closed}'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["data[v1]", "data[/v1]", ":on:", "a b", "x\x1b[2Jy", "café", "line\nbreak", "-data"])
def test_a_folder_is_called_by_its_name(name: str, tmp_path: Path) -> None:
    for file in ("a.txt", "b.txt"):
        (tmp_path / file).write_text(text(2000, len(file)), encoding="utf-8")
    ran = good("prepare", tmp_path / "a.txt", tmp_path / "b.txt", "--val", "first:1", "--out", tmp_path / name)
    assert (tmp_path / name / "manifest.json").exists()
    shown = name.replace("\x1b", "\\x1b").replace("\n", "\\n")
    assert shown in ran.out
    assert "\x1b" not in ran.out


@given(st.text(st.characters(codec=None), max_size=40))
@settings(max_examples=500)
def test_a_console_shows_any_text_as_it_is(name: str) -> None:
    """Markup, emoji codes, escapes, lone surrogates: nothing changes what is read or what comes after."""
    console = PlainConsole(width=10_000)
    with console.capture() as found:
        console.print(f"<{name}>", soft_wrap=True)
    line = found.get()
    assert line.endswith(">\n")
    assert line[:-1].isprintable()
    if name.isprintable():
        assert line == f"<{name}>\n"


def test_names_that_are_no_utf8(tiny_data: Path, tmp_path: Path) -> None:
    """Such a name comes as a lone surrogate: it is written as JSON's escape, or refused before any work."""
    odd = os.fsdecode(b"caf\xe9")
    (tmp_path / f"{odd}.txt").write_text(text(2000), encoding="utf-8")
    (tmp_path / "b.txt").write_text(text(2000, 2), encoding="utf-8")
    ran = good("prepare", tmp_path / f"{odd}.txt", tmp_path / "b.txt", "--val", "first:1", "--out", tmp_path / odd)
    assert "caf\\xe9" in ran.out
    assert json.loads((tmp_path / odd / "manifest.json").read_bytes())
    good("train", "cpu-demo", *small(), "--data", tiny_data, "--out", tmp_path / f"run{odd}")
    assert (tmp_path / f"run{odd}" / "summary.json").exists()
    said = refused("train", "cpu-demo", *small(), "--data", tmp_path / odd, "--out", tmp_path / "r")
    assert "caf\\xe9 is not UTF-8" in said
    assert not (tmp_path / "r").exists()


def test_a_delete_character_in_a_folders_name(tmp_path: Path) -> None:
    assert "o\\x7f1" in refused("train", "cpu-demo", *small(), "--data", tmp_path / "o\x7f1")
    assert '"' not in refused("train", "cpu-demo", *small(), "--data", tmp_path / "o\x7f1")


def test_plugins_reach_the_processes_that_a_verb_starts(tmp_path: Path) -> None:
    """By the environment and by their whole paths: `verify` scores the artifact again in a process of its own."""
    plugin = tmp_path / "noisy.py"
    plugin.write_text("import sys\nsys.stderr.write('imported\\n')\n")
    code = (
        "import os, subprocess, sys; from bytegolf.cli.run import _without_plugins\n"
        "print(_without_plugins(['presets', '--plugin', 'noisy.py', 'cpu-gpt']))\n"
        "subprocess.run([sys.executable, '-m', 'bytegolf', 'presets', 'cpu-gpt'], cwd='/', check=True)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "BYTEGOLF_PLUGINS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.splitlines()[0] == "['presets', 'cpu-gpt']"
    assert done.stderr == "imported\nimported\n"
