"""Running studies: what is missing and nothing else, after failures, after a kill, by Slurm; one real study at the end.

Most runs are a stub's, which the study names as its trainer: it leaves in a run's folder what `train` leaves there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
from commands import Ran, TinyRun, cli, good, refused, small
from processes import until
from rich.cells import cell_len

from bytegolf.artifact import checkpoint as store
from bytegolf.config import Config, to_dict
from bytegolf.tools.study import results
from bytegolf.tools.study.definition import _OWN, Study, jobs, read_study
from bytegolf.tools.study.run import Ray, busy, start_script, write_script
from bytegolf.training.metrics_file import read_metrics

STUB = """
import json, os, sys, time, tomllib
from pathlib import Path
config, out = Path(sys.argv[1]), Path(sys.argv[3])
assert sys.argv[2:] == ["--out", str(out), "--resume"]
read = tomllib.loads(config.read_text())
seed, lr = read["train"]["seed"], read["optim"]["muon_lr"]
Path("group").write_text(str(os.getpgrp()))
with Path("started.txt").open("a") as file:
    file.write(f"{lr} {seed}\\n")
if Path(f"fail-{lr}-{seed}").exists():
    print("some words")
    sys.exit("bytegolf: the loss is not finite at step 3: lower it")
for _ in range(90_000):
    if not Path(f"pause-{lr}-{seed}").exists():
        break
    time.sleep(0.01)
(out / "checkpoints").mkdir(exist_ok=True)
made = {"bytegolf": "0", "python": "3", "packages": {"torch": "2"}, "git": None}
(out / "environment.json").write_text(json.dumps(made))
summary = {"bpb": 1 + lr + seed / 1000, "bpb_original": 1 + lr + seed / 1000, "subset": False, "total_bytes": 9,
    "fits": True, "params": 1, "train_seconds": 1.0, "steps": 3, "train_bytes": 9, "train_bytes_per_second": 9,
    "boundaries": None, "stopped_early": Path("stopped").exists(), "artifact": str(out / "a.bgolf")}
(out / "part").write_text(json.dumps(summary))
(out / "part").rename(out / "summary.json")
"""

FILE = """
name = "s"
question = "Which rate?"
preset = "cpu-demo"
control = "muon_lr=0.1"
seeds = [1, 2]
data = "{data}"
trainer = "'{python}' -I -S stub.py"
budget.steps = 3
[grid]
optim.muon_lr = [0.1, 0.2]
"""


@pytest.fixture
def here(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a study of two variants with two seeds, and the stub that trains them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bytegolf.tools.study.run.POLL_SECONDS", 0.01)
    Path("stub.py").write_text(STUB)
    Path("s.toml").write_text(FILE.format(data=tiny_data, python=sys.executable))
    return tmp_path


def study() -> Study:
    return read_study(Path("s.toml"))


def started() -> list[str]:
    """The runs that the stub was started for, in order."""
    return Path("started.txt").read_text().splitlines() if Path("started.txt").exists() else []


def rows() -> list[dict[str, Any]]:
    return [dict(row.line) for row in results.read_rows(study())]


def scores(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(row["variant"], row["bpb"]) for row in answer["variants"]]


SCORES = [("muon_lr=0.1", pytest.approx(1.1015)), ("muon_lr=0.2", pytest.approx(1.2015))]


# ---------------------------------------------------------------------------------------------- what is missing


def test_what_is_there_is_not_repeated_and_outlives_runs_and_data(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are committed and looked at elsewhere: nothing of this machine is in them."""
    monkeypatch.setenv("COLUMNS", "200")  # the folder may have a long name
    first = good("study", "run", "s.toml", "--json")
    assert scores(first.json) == SCORES  # type: ignore[comparison-overlap]
    assert (first.json["done"], first.json["wanted"]) == (4, 4)
    assert started() == ["0.1 1", "0.2 1", "0.1 2", "0.2 2"]
    table = Path("s/table.md").read_text()
    assert "+0.1000 ± 0.0000 | worse" in table
    row, before = rows()[0], Path("s/results.jsonl").read_bytes()
    assert row["overrides"] == {"optim.muon_lr": 0.1}
    assert (row["seed"], row["preset"], row["budget"], row["threads"]) == (1, "cpu-demo", {"steps": 3}, 1)
    assert "artifact" not in row["summary"]
    assert str(here) not in before.decode() + table
    assert not list(Path("runs").rglob("checkpoints"))
    assert "4 of 4" in good("study", "list", here).out
    shutil.rmtree("runs")
    assert good("study", "run", "s.toml", "--json").json == first.json
    assert len(started()) == 4
    assert (Path("s/results.jsonl").read_bytes(), Path("s/table.md").read_text()) == (before, table)
    Path("s.toml").write_text(FILE.format(data="nowhere", python=sys.executable))
    assert good("study", "show", "s.toml", "--json").json == first.json
    assert "bytegolf prepare" in refused("study", "run", "s.toml")


def test_the_table_of_a_running_study_loses_nothing_on_a_phone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is rewritten does not go through the console's own way to make room."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, that is a terminal
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", good("study", "run", "s.toml").err).replace("\r", "\n")
    assert all(cell_len(line) <= 40 for line in said.split("\n"))
    assert "…" not in said
    assert "4 of 4 done" in said
    for part in ("done: 2/2", "BPB: 1.2015", "+0.1000 ± 0.0000", "best so far muon_lr=0.1 1.1015"):
        assert part in " ".join(said.split()), part


def test_only_what_is_named_or_has_changed_is_run_and_the_rest_is_kept_apart(here: Path) -> None:
    found = good("study", "run", "s.toml", "--only", "muon_lr=0.2", "--json").json
    assert started() == ["0.2 1", "0.2 2"]
    assert (found["done"], found["wanted"]) == (2, 4)
    assert "no variant 'x'" in refused("study", "run", "s.toml", "--only", "x")
    good("study", "run", "s.toml")
    text = Path("s.toml").read_text()
    Path("s.toml").write_text(text.replace("0.2]", "0.3]"))
    found = good("study", "run", "s.toml", "--json").json
    assert started()[4:] == ["0.3 1", "0.3 2"]
    assert [name for name, _ in scores(found)] == ["muon_lr=0.1", "muon_lr=0.3"]
    Path("s.toml").write_text(text.replace("steps = 3", "steps = 4"))
    assert good("study", "show", "s.toml", "--json").json["done"] == 0
    Path("s.toml").write_text(text)
    assert scores(good("study", "show", "s.toml", "--json").json) == SCORES  # type: ignore[comparison-overlap]


def partly(*arguments: object) -> Ran:
    """A study some of whose runs fail."""
    ran = cli(*arguments)
    assert ran.code == 1
    assert "failed" in ran.err.splitlines()[-1]
    return ran


def test_a_failure_stops_nothing_and_is_tried_again(here: Path) -> None:
    Path("fail-0.1-1").touch()
    ran = partly("study", "run", "s.toml", "--jobs", 2, "--json")
    assert (ran.json["done"], ran.json["failed"]) == (3, 1)
    good("study", "run", "s.toml", "--only", "muon_lr=0.2")  # which lacks nothing
    assert ran.json["errors"] == {"muon_lr=0.1, seed 1": "the loss is not finite at step 3: lower it"}
    assert "failed: the loss is not finite" in ran.err
    assert "1 (1 failed)" in Path("s/table.md").read_text()
    Path("fail-0.1-1").unlink()
    ran = good("study", "run", "s.toml", "--json")
    assert started()[4:] == ["0.1 1"]
    assert scores(ran.json) == SCORES  # type: ignore[comparison-overlap]
    assert not ran.json["errors"]


def test_a_run_that_was_interrupted_goes_on(here: Path) -> None:
    """Ctrl-C has `train` export what there is: that is no result of the study's budget."""
    Path("stopped").touch()
    assert partly("study", "run", "s.toml", "--only", "muon_lr=0.1", "--json").json["failed"] == 2
    assert "interrupted" in rows()[0]["error"]
    Path("stopped").unlink()
    text = Path("s.toml").read_text()
    Path("s.toml").write_text(text.replace("trainer = ", 'trainer = "no-such-command" # '))
    assert "no-such-command" in next(iter(partly("study", "run", "s.toml", "--json").json["errors"].values()))
    Path("s.toml").write_text(text)
    assert good("study", "run", "s.toml", "--json").json["done"] == 4


def test_half_a_row_is_left_behind(here: Path) -> None:
    good("study", "run", "s.toml", "--only", "muon_lr=0.1")
    path = Path("s/results.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # as if the machine had died while it was written
    assert len(rows()) == 1
    assert scores(good("study", "run", "s.toml", "--json").json) == SCORES  # type: ignore[comparison-overlap]
    assert len(started()) == 4, "the run itself was not lost"
    assert len(rows()) == 4


# ---------------------------------------------------------------------------------------------- killed


def heed_ctrl_c() -> None:
    """A shell starts what runs in the background deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def process(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bytegolf", *map(str, arguments)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, **quiet, start_new_session=True, preexec_fn=heed_ctrl_c)  # type: ignore[call-overload, no-any-return]


@contextlib.contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is killed at the end, if it still runs."""
    child = process(*arguments)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def test_killed_in_the_middle_it_goes_on_to_the_same_table(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Path("pause-0.2-1")
    pause.touch()
    with running("study", "run", "s.toml") as child:
        until(lambda: len(rows()) == 1 and len(started()) == 2)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert busy(jobs(study())[1].folder), "the run itself goes on, and holds its lock"
    # the run ends when the new command has begun to wait for it
    waits = SimpleNamespace(sleep=lambda seconds: pause.unlink(missing_ok=True), monotonic=time.monotonic)
    monkeypatch.setattr("bytegolf.tools.study.run.time", waits)
    killed = good("study", "run", "s.toml", "--json").json
    assert started() == ["0.1 1", "0.2 1", "0.1 2", "0.2 2"], "and was waited for, not started twice"
    assert scores(killed) == SCORES  # type: ignore[comparison-overlap]
    Path("s").rename("killed")
    Path("runs").rename("killed-runs")
    assert good("study", "run", "s.toml", "--json").json == killed
    for name in ("table.md", "table.csv"):
        assert Path("s", name).read_text() == Path("killed", name).read_text()


def test_killed_with_its_run_it_starts_that_again(here: Path) -> None:
    Path("pause-0.1-1").touch()
    with running("study", "run", "s.toml") as child:
        until(lambda: len(started()) == 1)
        child.kill()
    folder = jobs(study())[0].folder
    os.killpg(int(Path("group").read_text()), signal.SIGKILL)
    Path("pause-0.1-1").unlink()
    until(lambda: not busy(folder))
    assert scores(good("study", "run", "s.toml", "--json").json) == SCORES  # type: ignore[comparison-overlap]
    assert started() == ["0.1 1", "0.1 1", "0.2 1", "0.1 2", "0.2 2"]


def test_ctrl_c_ends_command_and_runs(here: Path) -> None:
    Path("pause-0.1-1").touch()
    with running("study", "run", "s.toml") as child:
        until(lambda: len(started()) == 1)
        assert "another `bytegolf study run` is at work" in refused("study", "run", "s.toml")
        child.send_signal(signal.SIGINT)
        assert child.wait() == 130
    assert not busy(jobs(study())[0].folder)
    assert rows() == []


def test_a_run_that_ended_unseen_is_collected(here: Path) -> None:
    job = jobs(study())[0]
    write_script(study(), job)
    assert start_script(job.folder).wait() == 0
    assert good("study", "show", "s.toml", "--json").json["done"] == 1
    assert [row["seed"] for row in rows()] == [1]


# ---------------------------------------------------------------------------------------------- other launchers

SBATCH = """#!/bin/sh
script=$2
[ "$1" = --parsable ] || exit 9
[ -e refuse ] && { echo "no such partition" >&2; cat refuse >&2; exit 1; }
last=$(sed -n 's/^#SBATCH --array=1-\\([0-9]*\\)%.*/\\1/p' "$script")
for task in $(seq "$last"); do SLURM_ARRAY_TASK_ID=$task sh "$script"; done
echo "77;cluster"
"""


SQUEUE = """#!/bin/sh
[ -e mute ] && sleep 9
[ -e broken ] && { cat broken >&2; exit 1; }
case "$*" in
*--name=*) [ -e lost ] && echo 77 ;;
*"--jobs 77") cat queue 2>/dev/null ;;
esac
exit 0
"""


@pytest.fixture
def slurm(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of one machine, whose sbatch runs an array at once and whose squeue knows what `queue` says."""
    monkeypatch.setattr("bytegolf.tools.study.slurm.AGAIN", (0.01, 0.01))
    tools = here / "tools"
    tools.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tools


def test_slurm_runs_an_array(slurm: Path) -> None:
    Path("s.toml").write_text("gpus = 2\n" + Path("s.toml").read_text())
    Path("fail-0.2-2").touch()
    ran = good("study", "run", "s.toml", "--launcher", "slurm", "--jobs", 3, "--json")
    assert "submitted 4 runs as job 77" in ran.err
    asked = Path("runs/s/slurm.sh").read_text()
    assert "--array=1-4%3\n" in asked
    assert "--cpus-per-task=1\n" in asked
    assert "--gpus-per-task=2\n" in asked
    assert (ran.json["done"], ran.json["failed"]) == (3, 1)
    Path("fail-0.2-2").unlink()
    Path("queue").write_text("77_1\n77_4\n")
    assert "nothing to submit" in good("study", "run", "s.toml", "--launcher", "slurm").out
    assert "Slurm still has 1 run of s.toml" in refused("study", "run", "s.toml")
    Path("queue").unlink()
    assert "submitted 1 run as job 77" in good("study", "run", "s.toml", "--launcher", "slurm").out
    assert scores(good("study", "show", "s.toml", "--json").json) == SCORES  # type: ignore[comparison-overlap]


def test_slurm_that_refuses_or_is_not_there(slurm: Path) -> None:
    Path("refuse").touch()
    assert "no such partition" in refused("study", "run", "s.toml", "--launcher", "slurm")
    (slurm / "sbatch").unlink()
    assert "sbatch" in refused("study", "run", "s.toml", "--launcher", "slurm")


@pytest.mark.parametrize("answer", ["slurm_load_jobs error: Socket timed out on send/recv operation", "", None])
def test_slurm_that_does_not_answer_is_not_taken_for_having_lost_a_run(
    answer: str | None, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("fail-0.2-2").touch()
    good("study", "run", "s.toml", "--launcher", "slurm")
    before = started()
    monkeypatch.setattr("bytegolf.tools.study.slurm.PATIENCE", 0.3)
    Path("mute" if answer is None else "broken").write_text(answer or "")
    for options in (["--launcher", "slurm"], []):
        assert "trained twice" in refused("study", "run", "s.toml", *options)
    assert started() == before
    for file in ("mute", "broken"):
        Path(file).unlink(missing_ok=True)
    Path("broken").write_text("slurm_load_jobs error: Invalid job id specified")
    monkeypatch.setattr("bytegolf.tools.study.slurm.PATIENCE", 60.0)
    assert "submitted 1 run" in good("study", "run", "s.toml", "--launcher", "slurm").out


def test_slurm_that_answers_at_the_second_time(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fail-0.2-2").touch()
    good("study", "run", "s.toml", "--launcher", "slurm")
    Path("queue").write_text("77_4\n")
    Path("broken").write_text("slurm_load_jobs error: Unable to contact slurm controller")
    monkeypatch.setattr(
        "bytegolf.tools.study.slurm.time", SimpleNamespace(sleep=lambda seconds: Path("broken").unlink(missing_ok=True))
    )
    assert "nothing to submit" in good("study", "run", "s.toml", "--launcher", "slurm").out


def test_a_run_whose_submission_was_lost_on_the_way_is_not_submitted_again(slurm: Path) -> None:
    """sbatch's answer timed out: whether the job is there, its name tells."""
    Path("refuse").write_text("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    assert "sbatch refused" in refused("study", "run", "s.toml", "--launcher", "slurm")
    Path("lost").touch()
    Path("queue").write_text("77_1\n77_2\n77_3\n77_4\n")
    assert "submitted 4 runs as job 77" in good("study", "run", "s.toml", "--launcher", "slurm").out
    assert "nothing to submit" in good("study", "run", "s.toml", "--launcher", "slurm").out


def test_more_runs_than_an_array_may_have(slurm: Path) -> None:
    (slurm / "scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 4'\n")
    (slurm / "scontrol").chmod(stat.S_IRWXU)
    ran = good("study", "run", "s.toml", "--launcher", "slurm", "--jobs", 2, "--json")
    assert "submitted 4 runs as jobs 77 and 77" in ran.err
    assert "--array=1-3%2\n" in Path("runs/s/slurm.sh").read_text()
    second = Path("runs/s/slurm-2.sh").read_text()
    assert "--array=1-1%2\n" in second
    assert "--dependency=afterany:77\n" in second
    assert sorted(started()) == ["0.1 1", "0.1 2", "0.2 1", "0.2 2"]
    assert ran.json["done"] == 4


def test_a_second_array_that_is_refused(slurm: Path) -> None:
    (slurm / "scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 4'\n")
    (slurm / "scontrol").chmod(stat.S_IRWXU)
    (slurm / "sbatch").write_text(SBATCH.replace("refuse ]", "runs/s/slurm-2.sh ]"))
    said = refused("study", "run", "s.toml", "--launcher", "slurm")
    assert "no such partition" in said
    assert "3 runs were submitted before as job 77" in said
    (slurm / "sbatch").write_text(SBATCH)
    assert "submitted 1 run as job 77" in good("study", "run", "s.toml", "--launcher", "slurm").out


def test_a_run_that_only_slurm_knows_is_not_started_without_it(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fail-0.2-2").touch()
    good("study", "run", "s.toml", "--launcher", "slurm")
    (slurm / "squeue").unlink()
    assert "squeue" in refused("study", "run", "s.toml")
    assert good("study", "show", "s.toml", "--json").json["done"] == 3


def test_ray_that_is_not_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "[ray]" in refused("study", "run", "s.toml", "--launcher", "ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on two workers of this machine."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_ray_runs_a_study(here: Path) -> None:
    Path("fail-0.2-2").touch()
    ran = partly("study", "run", "s.toml", "--launcher", "ray", "--jobs", 2, "--json")
    assert (ran.json["done"], ran.json["failed"]) == (3, 1)
    assert "the loss is not finite" in ran.json["errors"]["muon_lr=0.2, seed 2"]
    Path("fail-0.2-2").unlink()
    assert scores(good("study", "run", "s.toml", "--launcher", "ray", "--json").json) == SCORES  # type: ignore[comparison-overlap]
    assert len(started()) == 5


@pytest.mark.usefixtures("cluster")
def test_a_task_of_ray_ends_what_it_started_and_tells_why_it_could_not(here: Path) -> None:
    Path("pause-0.1-1").touch()
    job = jobs(study())[0]
    write_script(study(), job)
    launcher = Ray(1, 0)
    handle = launcher(job.folder)
    until(lambda: len(started()) == 1)
    assert busy(job.folder)
    second = launcher(job.folder)
    until(second.ended)
    assert results.sentence(job.folder).startswith("another process trains in ")
    handle.stop()
    until(lambda: not busy(job.folder))
    assert results.ended(study(), job) is None, "it can go on"


@pytest.mark.usefixtures("cluster")
def test_ray_without_a_machine_that_is_large_enough(here: Path) -> None:
    Path("s.toml").write_text("threads = 3\n" + Path("s.toml").read_text())
    assert "threads = 3" in refused("study", "run", "s.toml", "--launcher", "ray")


# ---------------------------------------------------------------------------------------------- wrong inputs


def test_wrong_commands(here: Path) -> None:
    assert "no such file" in refused("study", "run", "nowhere.toml")
    assert "there is no folder nowhere" in refused("study", "list", "nowhere")
    Path("empty").mkdir()
    assert "holds no study file" in refused("study", "list", "empty")
    assert "jobs" in refused("study", "run", "s.toml", "--jobs", 0).lower()
    assert "study --help" in refused("study", "walk")
    Path("s").write_text("in the way")
    assert "cannot create the folder s" in refused("study", "run", "s.toml", "--only", "muon_lr=0.1")


# ---------------------------------------------------------------------------------------------- for real


def test_a_real_study(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bytegolf train` itself, in a process of its own, on the processor's clock, over a subset of the text."""
    monkeypatch.chdir(tmp_path)
    changes = [change for change in small() if not change.startswith("train.max_")]
    lines = ["overrides." + change.replace("=fp32", '="fp32"') for change in changes]
    head = ['name = "real"', 'question = "?"', 'preset = "cpu-demo"', 'control = "subwords"', "seeds = [1]"]
    head += [f'data = "{tiny_data}"', 'budget = {seconds = 0.1, clock = "processor"}', "eval_limit = 2000", *lines]
    variant = ["[variants.subwords.overrides]", 'data.tokenizer = "sp400"', "model.vocab_size = 400"]
    Path("s.toml").write_text("\n".join([*head, *variant]))
    found = good("study", "run", "s.toml", "--json").json
    assert (found["done"], found["subset"], found["score"]) == (1, True, "bpb")
    (shown,), (row,) = found["variants"], rows()
    assert shown["train_seconds"] >= 0.1
    assert 1 < shown["bpb"] < 9
    assert shown["fits"]
    assert row["summary"]["bytes"] == pytest.approx(2000, rel=0.15)
    json.dumps(row, allow_nan=False)


DYING = """
import os, signal, sys
from pathlib import Path
from bytegolf.artifact import checkpoint
save = checkpoint.save

def once(*arguments, **others):
    save(*arguments, **others)
    if not Path("killed").exists():
        Path("killed").touch()
        os.killpg(0, signal.SIGKILL)

checkpoint.save = once
from bytegolf.cli import main
sys.argv = ["bytegolf", "train", *sys.argv[1:]]
main()
"""
"""`bytegolf train`, killed with the script around it behind the first checkpoint that any run saves."""


def test_a_real_run_that_is_killed_ends_as_one_that_is_not(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is that of ten steps in one piece, which are the shared run's."""
    monkeypatch.chdir(tmp_path)
    Path("dying.py").write_text(DYING)
    config = to_dict(Config.load(tiny_run.folder / "config.toml"))
    train = {key: value for key, value in config["train"].items() if f"train.{key}" not in _OWN}
    settings = {
        **{"name": "s", "question": "?", "preset": "cpu-demo", "control": "it", "data": str(tiny_run.data)},
        "seeds": [config["train"]["seed"]],
        "budget": {"steps": config["train"]["max_steps"]},
        "trainer": f"'{sys.executable}' dying.py",
        "overrides": {"model": config["model"], "train": {**train, "checkpoint_every": 1e-6}},
        "variants": {"it": {}},
    }
    Path("s.toml").write_text(tomli_w.dumps(settings))
    assert partly("study", "run", "s.toml", "--json").json["errors"] == {
        f"it, seed {settings['seeds'][0]}": "it was killed"  # type: ignore[index]
    }
    (job,) = jobs(study())
    reached = [store.step_of(path) for path in store.checkpoints(job.folder / "checkpoints")]
    assert reached == [1], "it was in the middle"
    (row,) = good("study", "run", "s.toml", "--json").json["variants"]
    assert (row["n"], row["bpb"], row["steps"]) == (1, tiny_run.ran.json["bpb"], 10)
    whole, killed = (read_metrics(folder / "metrics.jsonl") for folder in (tiny_run.folder, job.folder))
    assert [one["loss"] for one in killed if one["kind"] == "train"] == [
        one["loss"] for one in whole if one["kind"] == "train"
    ]
