"""Starting runs: as processes of this machine, or as Ray tasks. Slurm takes them all at once (``slurm``).

Each run has a script in its folder, which trains it with a fixed number of threads and leaves its exit code there, so
that whatever can run a shell script can take it. Who runs the script holds a lock on the folder, which the system
lets go when the process ends, however it ends: a run that outlives the command that started it is not started twice.
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
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, lock_file, make_folder, write_bytes
from bytegolf.tools.study.definition import Study
from bytegolf.tools.study.plan import Job
from bytegolf.tools.study.results import EXIT, LOG

SCRIPT, LOCK = "run.sh", "lock"
POLL_SECONDS = 0.2
STOP_SECONDS = 10.0
"""for a task of another machine to end its script"""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


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


@runtime_checkable
class Handle(Protocol):
    """A run that was started, here or elsewhere."""

    def ended(self) -> bool:
        """Whether it has."""

    def stop(self) -> None:
        """End it now; what it has saved stays."""


@runtime_checkable
class Launcher(Protocol):
    """What starts runs."""

    def start(self, folder: Path) -> Handle:
        """Run the script in a run's folder."""


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
        """Whether it has."""
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
        """Whether it has."""
        return not busy(self._folder)

    def stop(self) -> None:
        """Leave it: it is not ours, and its result will be found."""


class Local:
    """Processes of this machine."""

    def start(self, folder: Path) -> Handle:
        """Run the script in a run's folder."""
        return Process(folder)


class Ray:
    """Tasks of a Ray cluster that shares this folder, or of one on this machine where there is none."""

    def __init__(self, threads: int, gpus: int) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise BytegolfError(
                "--launcher ray needs the package ray: `pip install 'bytegolf[ray]'`, or choose another launcher"
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

    def start(self, folder: Path) -> Handle:
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
        if ready:
            self._tell()
        return bool(ready)

    def _tell(self) -> None:
        """What kept the script from running, in the run's log, where its own last words would be."""
        try:
            self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            said = str(getattr(error, "cause", None) or f"Ray gave it up: {type(error).__name__}")
            with disk_errors(self._folder / LOG), (self._folder / LOG).open("a", encoding="utf-8") as log:
                log.write(f"\n{said.splitlines()[0]}\n")

    def stop(self) -> None:
        self._ray.cancel(self._reference)
        self._ray.wait([self._reference], timeout=STOP_SECONDS)
