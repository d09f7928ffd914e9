"""Runs of a study as tasks of Slurm's array jobs.

A run is submitted once: its folder notes its task, and the task counts as going on until Slurm says that it is not.
A controller that is busy or being restarted answers nothing, or an error; that is no news of the run, so it is asked
again, and then the command is given up rather than the run taken for gone.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from bytegolf.errors import BytegolfError, counted, listed
from bytegolf.files import disk_errors, write_bytes
from bytegolf.tools.study.definition import Job, Study

SUBMITTED = "slurm-job"
"""In a run's folder: the task that has it, as 77_3."""

PATIENCE = 60.0
"""Seconds after which a command of Slurm's counts as not answering."""

AGAIN = (1.0, 4.0, 15.0)
"""Seconds to wait before a command that did not answer is tried again, one after the other."""

ARRAY_SIZE = 1001
"""Slurm's own default of MaxArraySize, which every task's number has to be below."""

GONE = "invalid job id"
"""What squeue says of a job that it has forgotten, in lower case; every other error is no news of the job."""

UNCERTAIN = re.compile(r"timed? ?out|unable to contact|zero bytes|communication|connection", re.IGNORECASE)
"""What sbatch says where the job may have been submitted nonetheless: the answer was lost."""


def submit(study: Study, scripts: Sequence[tuple[Job, Path]], at_once: int) -> str:
    """Submit the ``scripts`` of runs as array jobs, ``at_once`` tasks at a time; a sentence that says so.

    Slurm limits the size of an array: of more runs than that a second array begins when the first one has ended.
    Partition, time limit and the like are sbatch's own environment variables (SBATCH_PARTITION, SBATCH_TIMELIMIT).
    Raises BytegolfError where there is no sbatch, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise BytegolfError("--launcher slurm needs sbatch, which is not on the PATH: log in to a node of the cluster")
    tasks = study.runs / "slurm-tasks.txt"
    write_bytes(tasks, "".join(f"{script}\n" for _, script in scripts).encode())
    room = _array_size() - 1
    numbers: list[str] = []
    for first in range(0, len(scripts), room):
        part = scripts[first : first + room]
        script = study.runs / (f"slurm-{len(numbers) + 1}.sh" if numbers else "slurm.sh")
        try:
            number = _submit(study, script, tasks, first, len(part), at_once, numbers[-1:])
        except BytegolfError as error:
            if not numbers:
                raise
            so_far = f"{counted(first, 'run')} were submitted before as {_jobs(numbers)}"
            raise BytegolfError(f"{error}; {so_far}, and the same command does the rest") from error
        for task, (job, _) in enumerate(part, start=1):
            write_bytes(job.folder / SUBMITTED, f"{number}_{task}".encode())
        numbers.append(number)
    return f"submitted {counted(len(scripts), 'run')} as {_jobs(numbers)}"


def _jobs(numbers: Sequence[str]) -> str:
    return f"{'job' if len(numbers) == 1 else 'jobs'} {listed(numbers)}"


def _submit(study: Study, script: Path, tasks: Path, first: int, count: int, at_once: int, after: Sequence[str]) -> str:
    """Submit ``count`` lines of the file ``tasks`` from line ``first`` + 1 on as one array; its number."""
    name = f"{study.config.name}-{uuid.uuid4().hex[:8]}"  # by which it is found if sbatch's answer is lost
    lines = [
        "#!/bin/sh",
        f"#SBATCH --job-name={shlex.quote(name)}",
        f"#SBATCH --array=1-{count}%{at_once}",
        *(f"#SBATCH --dependency=afterany:{number}" for number in after),  # no more at once than asked for
        f"#SBATCH --cpus-per-task={study.config.threads}",
        *([f"#SBATCH --gpus-per-task={study.config.gpus}"] if study.config.gpus else []),
        "#SBATCH --output=/dev/null",  # each run's own log says it
        f'exec sh "$(sed -n "$((SLURM_ARRAY_TASK_ID + {first}))p" {shlex.quote(str(tasks))})"',
    ]
    write_bytes(script, ("\n".join(lines) + "\n").encode())
    done = _run(["sbatch", "--parsable", str(script)])
    number = done.stdout.strip().partition(";")[0]
    if done.returncode == 0 and number:
        return number
    said = _words(done)
    if UNCERTAIN.search(said) and (found := _ask(["squeue", "--noheader", "--format=%A", f"--name={name}"])):
        return found.split()[0]
    raise BytegolfError(f"sbatch refused {script} ({said}): mend what it says, or run with --launcher local")


def _array_size() -> int:
    """The cluster's MaxArraySize."""
    if shutil.which("scontrol") is None:
        return ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run(["scontrol", "show", "config"]).stdout, re.MULTILINE)
    return max(2, int(found[1])) if found else ARRAY_SIZE


def pending(folders: Iterable[Path]) -> set[Path]:
    """Those of some runs' folders whose run Slurm still has, waiting or at work.

    Raises BytegolfError where a run was submitted and Slurm does not say what has become of it.
    """
    tasks: dict[str, Path] = {}
    for folder in folders:
        path = folder / SUBMITTED
        if path.exists():
            with disk_errors(path, "read"):
                tasks[path.read_text(encoding="ascii", errors="replace").strip()] = folder
    found: set[Path] = set()
    for number in sorted({task.partition("_")[0] for task in tasks}):
        if not number.isdigit():
            raise BytegolfError(f"a {SUBMITTED} below {next(iter(tasks.values())).parent} names no job: delete it")
        if shutil.which("squeue") is None:
            raise BytegolfError(
                f"runs were submitted to Slurm as job {number}, and squeue, which knows whether they have ended, is "
                f"not on the PATH: log in to a node of the cluster, or delete {SUBMITTED} in their folders"
            )
        listed_tasks = _ask(["squeue", "--noheader", "--array", "--format=%i", "--jobs", number]).split()
        found |= {tasks[task] for task in listed_tasks if task in tasks}
    return found


def _ask(command: list[str]) -> str:
    """What squeue answers; nothing where it knows no such job. Raises BytegolfError if it does not answer."""
    for wait in (*AGAIN, None):
        done = _run(command)
        if done.returncode == 0:
            return done.stdout
        if GONE in _words(done).lower():
            return ""
        if wait is not None:
            time.sleep(wait)
    raise BytegolfError(
        f"squeue does not say which runs Slurm still has ({_words(done)}), and none is to be trained twice: try again "
        "when it answers"
    )


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; one that does not answer in time has failed."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"it timed out after {PATIENCE:g} s")


def _words(done: subprocess.CompletedProcess[str]) -> str:
    """What a command complained of, in a line."""
    return " ".join((done.stderr or done.stdout).split())[:200] or "it said nothing"
