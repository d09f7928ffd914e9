"""Does anything get lost when bytegolf is killed? kill -9 at random points, again and again, then resume and compare.

    python tests/stress/kills.py --kills 60
    python tests/stress/kills.py --kills 20 --what checkpoint export --seed 7

Each activity runs once without a disturbance. Then, a number of times, it is started in a fresh folder and killed with
SIGKILL, its children too, and the same command is run again until it ends. What comes of it must be the same: the rows
of metrics.jsonl but for their clocks, all weights and optimiser states, artifacts and shards byte for byte, a study's
scores; and `bytegolf check` must find nothing damaged after the kill, before anything is repaired.

A third of the kills come after a random time. The others come at the k-th time that the process opens a file for
writing, flushes one to the disk, renames or deletes one, for a random k: half of them before that happens, half of them
up to three milliseconds later, while a file is half there. One process with one thread trains, on the CPU, for a number
of steps, so that nothing else can differ.

Commands start as forks of this process, which has imported everything, so that they take a second instead of ten; what
they start themselves (a study's runs, prepare's workers) are processes like any other. A study is the slowest and gets
the smallest share of the kills. Kills of `fetch` are in benchmarks/fetching.py.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import safetensors.torch
import torch
from measuring import table

from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.pack import read_artifact
from bytegolf.cli import main as main_of_bytegolf
from bytegolf.errors import BytegolfError
from bytegolf.tools.check import check

_MODEL = ("dim=16", "layers=1", "heads=2", "kv_heads=1")
_TINY = [
    *(f"model.network.{part}.{change}" for part in ("encoder", "main", "decoder") for change in _MODEL),
    "model.ngrams.bits=6",
    *(
        f"train.{change}"
        for change in (
            "seq_len=64",
            "batch_tokens=128",
            "micro_batch=0",
            "precision=fp32",
            "device=cpu",
            "max_seconds=0",
            "warmup_steps=0",
            "validate_tokens=256",
            "validate_every=0.00001",
            "log_every=3",
            "ema_decay=0.9",
        )
    ),
    "eval.limit=512",
]
SHARES = {"train": 4, "checkpoint": 4, "export": 3, "prepare": 3, "study": 1}
"""Of so many kills in a row, how many each activity gets."""
_VOLATILE = ("seconds", "bytes_per_second")


@dataclass(frozen=True)
class Activity:
    """A command that is killed, what it needs beforehand, and what must come of it."""

    name: str
    home: Path
    command: list[str]
    before: Path | None = None
    """a folder that each try starts with a copy of"""


def main() -> None:
    """Kill, resume, compare; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60, help="how many, over all activities")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--what", choices=SHARES, nargs="+", default=list(SHARES))
    given = parser.parse_args()
    preload()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        activities = [one for one in prepare_all(home) if one.name in given.what]
        rows = []
        most = max(SHARES.values())
        turns = [name for turn in range(most) for name in given.what if SHARES[name] > turn]
        shares = Counter(itertools.islice(itertools.cycle(turns), given.kills))
        for activity in activities:
            rows.append(try_out(activity, shares[activity.name], draw))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    sys.exit(1 if any(row["lost"] for row in rows) else 0)


def prepare_all(home: Path) -> list[Activity]:
    """The text, the data and the run that activities start from."""
    draw = random.Random(0)
    words = ["the", "of", "state", "people", "café", "a", "constitution", "in", "to", "and"]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(120)]
    (home / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = ["prepare", str(home / "corpus.jsonl"), "--val", "first:20", "--workers", "1", "--out"]
    Command(*data, str(home / "data")).finish()
    Command(*_train(home, 6), str(home / "trained"), cwd=home).finish()
    changes = [change.partition("=") for change in _TINY if not change.startswith(("train.max_seconds", "eval."))]
    (home / "study.toml").write_text(
        f'name = "kills"\nquestion = "Is anything lost?"\npreset = "cpu-demo"\ncontrol = "a"\nseeds = [1, 2]\n'
        f'data = "{home}/data"\neval_limit = 512\nbudget.steps = 3\nvariants.a = {{}}\n'
        + "".join(
            f"overrides.{key} = {json.dumps(value) if value.isalnum() and not value.isdigit() else value}\n"
            for key, _, value in changes
        )
    )
    often = [*_train(home, 12)[:-1], "train.checkpoint_every=0.00001", "--out"]
    return [
        Activity("train", home, [*_train(home, 16)[:-1], "train.checkpoint_every=0.05", "--out"]),
        Activity("checkpoint", home, often),
        Activity("export", home, ["export"], home / "trained"),
        Activity("prepare", home, data),
        Activity("study", home, ["study", "run", "study.toml"]),
    ]


def _train(home: Path, steps: int) -> list[str]:
    changes = [*_TINY, f"train.max_steps={steps}"]
    return ["train", "cpu-demo", *changes, "--data", str(home / "data"), "--resume", "--out"]


def command_of(activity: Activity, folder: Path) -> list[str]:
    """The command with its folder; a study's lies in the current one."""
    if activity.name == "study":
        return activity.command
    return [*activity.command, str(folder)]


class Command:
    """bytegolf as a fork of this process, to be killed at the ``at``-th change of the disk below ``place``, or so many
    seconds ``later``."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path | None = None,
        at: int = -1,
        later: float = 0.0,
        place: str = "",
        first: Callable[[], None] | None = None,
    ) -> None:
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the object
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            try:
                if first:
                    first()
                _become(arguments, cwd, at, later, place, self._said.fileno())
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)

    def wait(self, seconds: float = math.inf) -> int | None:
        """The exit code, negative for a signal; None if it goes on for more than so many seconds."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= until:
                return None
            time.sleep(0.002)

    def end(self) -> tuple[int, str]:
        """Wait for it: its exit code, and all that it said."""
        code = self.wait()
        assert code is not None
        self._said.seek(0)
        return code, self._said.read().strip()

    def finish(self) -> int:
        """Wait for it; how many changes it made. Raises RuntimeError if it failed."""
        code, said = self.end()
        if code:
            raise RuntimeError(f"exit code {code}: {said[-600:]}")
        return int(said.rsplit("points ", 1)[1])


def _become(arguments: tuple[str, ...], cwd: Path | None, at: int, later: float, place: str, said: int) -> None:
    """Be the command ``arguments`` from here on; never returns."""
    os.setsid()
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(cwd or ".")
    count = _kill_at(at, later, place)
    sys.argv = ["bytegolf", *arguments]
    code: object = 0
    try:
        main_of_bytegolf()
    except SystemExit as error:
        code = error.code
    sys.stdout.flush()
    if not code:
        print("\npoints", count(), flush=True)
    os._exit(code if isinstance(code, int) else 1)


def _kill_at(at: int, later: float, place: str) -> Callable[[], int]:
    """Kill this process at the ``at``-th change of the disk below ``place``, or ``later`` seconds after that; how many
    there were.

    Python's audit events tell of them, and fsync.
    """
    count = 0

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def reached() -> None:
        nonlocal count
        if count == at:
            if later:
                threading.Timer(later, kill).start()
            else:
                kill()
        count += 1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            changes = isinstance(arguments[0], str | bytes) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
        if changes and Path(os.fsdecode(arguments[0])).absolute().is_relative_to(place):
            reached()

    sync = os.fsync

    def fsync(fd: Any) -> None:
        reached()
        sync(fd)
        reached()

    os.fsync = fsync
    sys.addaudithook(hook)
    return lambda: count


def preload() -> None:
    """Import all that the commands import when they need it; they have one thread."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    for name in ("api.run", "artifact.export", "data.prepare", "tools.study.report"):
        importlib.import_module(f"bytegolf.{name}")


def set_up(activity: Activity, folder: Path) -> Path:
    """A fresh place for a try; where the command starts."""
    shutil.rmtree(folder, ignore_errors=True)
    if activity.before:
        shutil.copytree(activity.before, folder)
        (folder / "artifact.bgolf").unlink()
    elif activity.name == "study":
        folder.mkdir()
        shutil.copyfile(activity.home / "study.toml", folder / "study.toml")
        return folder
    return activity.home


def try_out(activity: Activity, kills: int, draw: random.Random) -> dict[str, object]:
    """Kill an activity so many times; what came of it."""
    # every try has the same path, which some files hold
    folder = activity.home / "here"
    place = set_up(activity, folder)
    started = time.monotonic()
    points = Command(*command_of(activity, folder), cwd=place, place=str(folder)).finish()
    seconds = time.monotonic() - started  # of one without a disturbance
    wanted = outcome(folder)
    killed = lost = damaged = 0
    for attempt in range(20 * kills + 20):
        if killed == kills:
            break
        place = set_up(activity, folder)
        if not kill_one(activity, folder, place, points, attempt % 3 < 2, seconds, draw):
            continue  # it was faster
        killed += 1
        damaged += count_damaged(folder)
        try:
            Command(*command_of(activity, folder), cwd=place).finish()
            found = outcome(folder)
            different = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        except RuntimeError as error:
            different = [str(error)]
        if different:
            lost += 1
            print(f"{activity.name}, kill {killed}: {different[:3]}", file=sys.stderr, flush=True)
    row: dict[str, object] = {"activity": activity.name, "points": points, "kills": killed, "damaged": damaged}
    return row | {"lost": lost, "seconds": round(time.monotonic() - started)}


def kill_one(
    activity: Activity, folder: Path, place: Path, points: int, by_point: bool, seconds: float, draw: random.Random
) -> bool:
    """Start the activity and kill it, at a random change of the disk or time; whether it did not end before."""
    at = draw.randrange(points) if by_point else -1
    later = draw.choice((0.0, draw.uniform(0, 0.003)))
    process = Command(*command_of(activity, folder), cwd=place, at=at, later=later, place=str(folder))
    code = process.wait(math.inf if by_point else draw.uniform(0.02, 1.0) * seconds)
    if code is None:
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    if activity.name == "study" and draw.random() < 0.5:  # its runs have sessions of their own; otherwise they go on
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if (entry / "cwd").readlink() == folder:
                    os.kill(int(entry.name), signal.SIGKILL)
    return code == -signal.SIGKILL


def count_damaged(folder: Path) -> int:
    """What `bytegolf check` calls damaged; nothing at all may be there yet."""
    try:
        return sum(verdict.finding == "damaged" for verdict in check(folder))
    except BytegolfError:
        return 0


# ---------------------------------------------------------------------------------------------- what comes of it


def outcome(folder: Path) -> dict[str, object]:
    """All that must be the same, by its name: without clocks, and without what is kept only for a while."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.name == "metrics.jsonl":
            found[name] = [_plain(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "results.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            done = [row for row in rows if row["status"] == "done"]  # failures stay there too
            found[name] = sorted((row["variant"], row["seed"], row["summary"]["bpb"]) for row in done)
        elif path.name == "summary.json":
            found[name] = {key: json.loads(path.read_text())[key] for key in ("bpb", "steps", "train_bytes", "params")}
        elif path.name == "artifact.bgolf":  # its header has the seconds of training
            state = read_artifact(path).state
            found[name] = hashlib.sha256(safetensors.torch.save(state)).hexdigest()
        elif path.suffix in (".bin", ".npy", ".model") or path.name == "manifest.json":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("checkpoints")):
        last = store.checkpoints(path)[-1:]
        for file in (file for one in last for file in one.glob("*.safetensors")):
            found[file.relative_to(folder).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _plain(row: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in row.items() if key not in _VOLATILE}


if __name__ == "__main__":
    main()
