"""What does bytegolf do on a disk that is full or read-only, beside another bytegolf, or where the clock is set?

    sudo python tests/stress/disks.py --tries 5

The activities of tests/stress/kills.py, each in a small file system of its own (tmpfs, which root alone may mount):

- full: the file system has room for a random part of what the activity writes. The command must end with exit code 2
  and one sentence, `bytegolf check` must find nothing damaged, and once there is room the same command must go on to
  what comes of it without a disturbance.
- read-only: exit code 2 and one sentence.
- two: the same command is started twice at a random distance. One may be told that another is at work (exit code 2 and
  one sentence); what is there in the end must be the same.
- clock: the wall clock jumps by up to a year back and forth, every time it is looked at, and nothing must change.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from kills import Activity, Command, command_of, count_damaged, outcome, preload, prepare_all, set_up
from measuring import table

ROOM = 64 << 20
"""Bytes, of a file system that has enough."""
PAGE = 4096


def main() -> None:
    """Try each activity in each way; exit code 1 if any went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tries", type=int, default=5, help="of each way, for each activity")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--what", help="one activity only")
    given = parser.parse_args()
    if os.geteuid():
        sys.exit("only root may mount file systems: run it with sudo, or in a container")
    preload()
    draw = random.Random(given.seed)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        activities = [one for one in prepare_all(Path(name)) if given.what in (None, one.name)]
        for activity in activities:
            rows.append(try_all(activity, given.tries, draw))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    sys.exit(1 if any(row["wrong"] for row in rows) else 0)


@contextmanager
def mounted(disk: Path, size: int) -> Iterator[None]:
    """A file system of ``size`` bytes at ``disk``."""
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def remount(disk: Path, options: str) -> None:
    """Change a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def used(disk: Path) -> int:
    """Bytes that are taken."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def try_all(activity: Activity, tries: int, draw: random.Random) -> dict[str, object]:
    """All ways to disturb one activity; how many tries of each there were, and how many went wrong."""
    disk = activity.home / "disk"
    folder = disk / "here"
    with mounted(disk, ROOM):
        place = set_up(activity, folder)
        before = used(disk)
        Command(*command_of(activity, folder), cwd=place).finish()
        wanted, after = outcome(folder), used(disk)

    def full() -> str:
        with mounted(disk, ROOM):
            set_up(activity, folder)
            remount(disk, f"size={round(draw.uniform(before, after - PAGE))}")
            said = refused(begin(fresh=False).end())
            if damaged := count_damaged(folder):
                return f"{damaged} files are damaged"
            remount(disk, f"size={ROOM}")
            return said or same(begin(fresh=False))

    def read_only() -> str:
        with mounted(disk, ROOM):
            set_up(activity, folder)
            remount(disk, "ro")
            said = refused(begin(fresh=False).end())
            remount(disk, "rw")
            return said

    def two() -> str:
        with mounted(disk, ROOM):
            first = begin()
            time.sleep(draw.uniform(0, 0.3))
            second = begin(fresh=False)
            ends = first.end(), second.end()
            wrong = [found for code, said in ends if code and (found := refused((code, said)))]
            if wrong or all(code for code, _ in ends):
                return f"{wrong}, exit codes {[code for code, _ in ends]}"
            return different()

    def clock() -> str:
        seed = draw.random()

        def jump() -> None:
            now, leap = time.time, random.Random(seed)
            time.time = lambda: now() + leap.uniform(-3e7, 3e7)

        with mounted(disk, ROOM):
            return same(begin(first=jump))

    def begin(fresh: bool = True, first: Callable[[], None] | None = None) -> Command:
        if fresh:
            set_up(activity, folder)
        return Command(*command_of(activity, folder), cwd=place, first=first)

    def same(command: Command) -> str:
        code, said = command.end()
        return f"exit code {code}: {said[-300:]}" if code else different()

    def different() -> str:
        found = outcome(folder)
        names = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        return f"other outcome: {names[:3]}" if names else ""

    wrong = 0
    for way in (full, read_only, two, clock):
        for _ in range(1 if way is read_only else tries):
            if said := way():
                wrong += 1
                print(f"{activity.name}, {way.__name__}: {said}", file=sys.stderr, flush=True)
    return {"activity": activity.name, "full": tries, "read-only": 1, "two": tries, "clock": tries, "wrong": wrong}


def refused(end: tuple[int, str]) -> str:
    """What is wrong with a refusal; empty if it has exit code 2, or 1 if that is a study's runs', and ends with one
    sentence."""
    code, said = end
    line = said.rpartition("\n")[2]
    wanted = 1 if line.endswith("the same command tries again") else 2
    right = code == wanted and line.startswith("bytegolf: ") and "Traceback" not in said
    return "" if right else f"exit code {code}: {said[-500:]}"


if __name__ == "__main__":
    main()
