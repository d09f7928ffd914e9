"""Handing the runs of a study to Slurm, as one array job; whoever looks at the study next collects what has ended.

Options such as partition and time limit are sbatch's own environment variables (SBATCH_PARTITION, SBATCH_TIMELIMIT).
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bytegolf.errors import BytegolfError
from bytegolf.files import write_bytes
from bytegolf.tools.study.definition import Study
from bytegolf.tools.study.launch import write_script
from bytegolf.tools.study.plan import Job

_SUBMITTED = "slurm-job"
"""In a run's folder: the number of the array job that has it."""


def submit(study: Study, jobs: Sequence[Job], at_once: int) -> str:
    """Write the array script of ``jobs`` and submit it, ``at_once`` tasks at a time; the job's number.

    Raises BytegolfError where there is no sbatch, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise BytegolfError("--launcher slurm needs sbatch, which is not on the PATH: log in to a node of the cluster")
    scripts = [write_script(study, job) for job in jobs]
    tasks = study.runs / "slurm-tasks.txt"
    write_bytes(tasks, "".join(f"{script}\n" for script in scripts).encode())
    lines = [
        "#!/bin/sh",
        f"#SBATCH --job-name={shlex.quote(study.config.name)}",
        f"#SBATCH --array=1-{len(jobs)}%{at_once}",
        f"#SBATCH --cpus-per-task={study.config.threads}",
        *([f"#SBATCH --gpus-per-task={study.config.gpus}"] if study.config.gpus else []),
        "#SBATCH --output=/dev/null",  # each run's own log says it
        f'exec sh "$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {shlex.quote(str(tasks))})"',
    ]
    script = study.runs / "slurm.sh"
    write_bytes(script, ("\n".join(lines) + "\n").encode())
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    number = done.stdout.strip().partition(";")[0]
    if done.returncode or not number:
        said = " ".join((done.stderr or done.stdout).split())[:200] or "it said nothing"
        raise BytegolfError(f"sbatch refused {script} ({said}): mend what it says, or run with --launcher local")
    for job in jobs:
        write_bytes(job.folder / _SUBMITTED, number.encode())
    return number


def pending(folder: Path) -> bool:
    """Whether Slurm still has the run of a folder, as far as squeue says."""
    path = folder / _SUBMITTED
    if not path.exists() or shutil.which("squeue") is None:
        return False
    command = ["squeue", "--noheader", "--jobs", path.read_text(encoding="ascii").strip()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())
