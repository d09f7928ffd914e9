"""Running a study: start what is missing, write a row for every run that ends, go on whatever fails.

Runs are processes of this machine, Ray tasks, or tasks of one Slurm array job. Each run has a script in its folder,
which trains it with a fixed number of threads and leaves its exit code there, so that whatever can run a shell script
can take it. Who runs the script holds a lock on the folder, which the system lets go when the process ends, however it
ends: a run that outlives the command that started it is not started twice.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bytegolf.errors import BytegolfError, install
from bytegolf.files import disk_errors, lock_file, make_folder, write_bytes
from bytegolf.tools.study.definition import Job, Study
from bytegolf.tools.study.results import EXIT, LOG, Row, append_row, collect, ended, failed

SCRIPT, LOCK = "run.sh", "lock"
POLL_SECONDS = 0.2
STOP_SECONDS = 10.0
"""for a task of another machine to end its script"""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@runtime_checkable
class Handle(Protocol):
    """A run that was started, here or elsewhere."""

    def ended(self) -> bool:
        """Whether it has."""

    def stop(self) -> None:
        """End it now; what it has saved stays."""


Launcher = Callable[[Path], Handle]
"""Runs the script in a run's folder."""


@dataclass
class State:
    """Where the runs of a study stand."""

    jobs: Sequence[Job]
    rows: dict[Job, Row]
    """of runs that have ended, also before"""
    running: dict[Job, tuple[Handle, float]] = field(default_factory=dict)
    """with the moment (time.monotonic) at which each was started"""
    waiting: list[Job] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    """wall seconds that each run took which ended under this command"""
    at_once: int = 1

    def count(self, done: bool) -> int:
        """How many runs are ``done``, or else failed; one that is tried again is neither."""
        return sum(row.done == done for job, row in self.rows.items() if job not in self.open())

    def open(self) -> set[Job]:
        """The runs that wait or go on."""
        return {*self.waiting, *self.running}

    def seconds_left(self) -> float | None:
        """Wall seconds until all have ended, at the mean so far; None before the first one has."""
        if not self.spent:
            return None
        mean, now = sum(self.spent) / len(self.spent), time.monotonic()
        begun = sum(max(0.0, mean - (now - started)) for _, started in self.running.values())
        return (begun + mean * len(self.waiting)) / self.at_once


Watch = Callable[[State, Job | None], None]
"""Told the state now and then, and whenever a run has ended, with that run."""


def missing(study: Study, jobs: Sequence[Job]) -> tuple[dict[Job, Row], list[Job]]:
    """The rows that there are, and the jobs without a result: never started, broken off, or failed."""
    rows = collect(study, jobs)
    return rows, [job for job in jobs if not (job in rows and rows[job].done)]


def run(study: Study, jobs: Sequence[Job], launcher: Launcher, at_once: int, watch: Watch) -> State:
    """Run what is missing, ``at_once`` runs at a time, until all have ended. KeyboardInterrupt stops those that run.

    A failure is written down and does not stop the others.
    """
    rows, todo = missing(study, jobs)
    state = State(jobs, rows, waiting=todo, at_once=at_once)
    for job in todo:  # of a command that was killed: they come first, as they are running anyway
        if busy(job.folder):
            state.running[job] = (Orphan(job.folder), time.monotonic())
    state.waiting = [job for job in todo if job not in state.running]
    try:
        watch(state, None)
        while state.running or state.waiting:
            while state.waiting and len(state.running) < at_once:
                job = state.waiting.pop(0)
                write_script(study, job)
                state.running[job] = (launcher(job.folder), time.monotonic())
            time.sleep(POLL_SECONDS)
            for job, (handle, started) in list(state.running.items()):
                if not handle.ended():
                    continue
                del state.running[job]
                row = ended(study, job)
                if row is None and isinstance(handle, Orphan):
                    state.waiting.append(job)  # it was killed as well
                    continue
                state.spent.append(time.monotonic() - started)
                state.rows[job] = row or failed(study, job)
                append_row(study, state.rows[job])
                (job.folder / EXIT).unlink(missing_ok=True)
                watch(state, job)
            watch(state, None)
    finally:
        for handle, _ in state.running.values():
            handle.stop()
    return state


# ---------------------------------------------------------------------------------------------- on this machine


def write_script(study: Study, job: Job) -> Path:
    """Make the folder of a run: its configuration, and the script that trains it. Returns the script."""
    make_folder(job.folder)
    (job.folder / EXIT).unlink(missing_ok=True)
    write_bytes(job.folder / "config.toml", job.config.to_toml().encode())
    trainer = study.config.trainer or f"{shlex.quote(sys.executable)} -m bytegolf train"
    place = {name: shlex.quote(str(job.folder / name)) for name in ("config.toml", LOG, EXIT)}
    lines = [
        "#!/bin/sh",
        *(f"export {name}={study.config.threads}" for name in THREADS),
        f"{trainer} {place['config.toml']} --out {shlex.quote(str(job.folder))} --resume > {place[LOG]} 2>&1",
        f"echo $? > {place[EXIT]}.part && mv {place[EXIT]}.part {place[EXIT]}",
    ]
    script = job.folder / SCRIPT
    write_bytes(script, ("\n".join(lines) + "\n").encode())
    return script


def busy(folder: Path) -> bool:
    """Whether some process is training in a run's folder."""
    if not (folder / LOCK).exists():
        return False
    handle = lock_file(folder / LOCK)
    if handle is not None:
        os.close(handle)
    return handle is None


def start_script(folder: Path) -> subprocess.Popen[bytes]:
    """Start a run's script in a session of its own, so that Ctrl-C is not for it; the lock is the script's to hold."""
    if os.name == "nt":
        raise BytegolfError(
            "a study runs shell scripts that inherit a lock, which Windows does not have: run it under WSL"
        )
    lock = lock_file(folder / LOCK)
    if lock is None:
        raise BytegolfError(f"another process trains in {folder}: wait for it, or end it")
    try:
        return subprocess.Popen(
            ["sh", str(folder / SCRIPT)], stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=(lock,)
        )
    finally:
        os.close(lock)


class Process:
    """A script that runs on this machine."""

    def __init__(self, folder: Path) -> None:
        self._process = start_script(folder)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the script and what it runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()


class Orphan:
    """A run that an earlier command, which was killed, has started: it holds its lock while it goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ended(self) -> bool:
        return not busy(self._folder)

    def stop(self) -> None:
        """Leave it: it is not ours, and its result will be found."""


# ---------------------------------------------------------------------------------------------- on a Ray cluster


class Ray:
    """Tasks of a Ray cluster that shares this folder, or of one on this machine where there is none."""

    def __init__(self, threads: int, gpus: int) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise BytegolfError(
                f"--launcher ray needs the package ray: `{install('ray')}`, or choose another launcher"
            ) from error
        if not self._ray.is_initialized():
            self._ray.init(log_to_driver=False, logging_level="error")
        self._check("CPU", "threads", threads)
        self._check("GPU", "gpus", gpus)
        self._task = self._ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(run_there)

    def _check(self, resource: str, key: str, wanted: int) -> None:
        """A task that no machine has room for would wait in silence, for ever."""
        most = max((int(node["Resources"].get(resource, 0)) for node in self._ray.nodes() if node["Alive"]), default=0)
        if wanted > most:
            raise BytegolfError(
                f"the study's {key} = {wanted}, but no machine of the Ray cluster has more than {most}: lower it, or "
                "start a larger machine first"
            )

    def __call__(self, folder: Path) -> Handle:
        """Run the script in a run's folder."""
        return _RayTask(self._ray, self._task.remote(str(Path.cwd()), str(folder)), folder)


def run_there(home: str, folder: str) -> None:
    """Run the script in a run's ``folder`` of ``home``, wherever Ray has put this call; cancelled, end the script."""
    os.chdir(home)
    process = Process(Path(folder))
    try:
        while not process.ended():
            time.sleep(POLL_SECONDS)
    except BaseException:  # Ray cancels by KeyboardInterrupt
        process.stop()
        raise


class _RayTask:
    def __init__(self, ray: Any, reference: Any, folder: Path) -> None:
        self._ray, self._reference, self._folder = ray, reference, folder

    def ended(self) -> bool:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        try:
            self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            # what kept the script from running, in the run's log, where its own last words would be
            said = str(getattr(error, "cause", None) or f"Ray gave it up: {type(error).__name__}")
            with disk_errors(self._folder / LOG), (self._folder / LOG).open("a", encoding="utf-8") as log:
                log.write(f"\n{said.splitlines()[0]}\n")
        return bool(ready)

    def stop(self) -> None:
        self._ray.cancel(self._reference)
        self._ray.wait([self._reference], timeout=STOP_SECONDS)
