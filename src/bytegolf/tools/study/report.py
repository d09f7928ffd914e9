"""A study from its file to its tables: what the verbs call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table as RichTable

from bytegolf.errors import BytegolfError
from bytegolf.files import only_one, write_bytes
from bytegolf.tools.study import run as running
from bytegolf.tools.study import slurm
from bytegolf.tools.study.definition import Study, read_study
from bytegolf.tools.study.launch import Launcher, Local, Ray, busy
from bytegolf.tools.study.overview import Overview, screen_table
from bytegolf.tools.study.picture import draw
from bytegolf.tools.study.plan import jobs
from bytegolf.tools.study.results import collect
from bytegolf.tools.study.table import Table, as_csv, markdown, notes, plain, tabulate


def run(study: Study, only: Sequence[str], launcher: Literal["local", "slurm", "ray"], at_once: int) -> str:
    """Run what is missing of ``study``; what was submitted instead, in a sentence, where Slurm is to run it.

    Raises BytegolfError if the study cannot be planned, or another process is running it.
    """
    wanted = jobs(study, only)
    taken = f"another `bytegolf study run` is at work on {study.path}: wait for it, or end it"
    with only_one(study.runs / "lock", taken):
        _, todo = running.missing(study, wanted)
        queued = [job for job in todo if slurm.pending(job.folder)]
        if launcher == "slurm":
            todo = [job for job in todo if job not in queued and not busy(job.folder)]
            if not todo:
                return "nothing to submit: every run has ended, or Slurm has it"
            number = slurm.submit(study, todo, at_once)
            return f"submitted {len(todo)} runs as job {number}; `bytegolf study show {study.path}` collects what ends"
        if queued:
            raise BytegolfError(
                f"Slurm still has {len(queued)} runs of {study.path}, which would be trained twice: wait for them, or "
                "end them with scancel"
            )
        start: Launcher = Ray(study.config.threads, study.config.gpus) if launcher == "ray" else Local()
        with Overview(study) as watch:
            running.run(study, wanted, start, at_once, watch)
    return ""


def known(study: Study) -> Table:
    """The table of what has ended."""
    return tabulate(study, collect(study, jobs(study, without_data=True)))


def show(study: Study, console: Console, plot: Path | None = None) -> dict[str, Any]:
    """Print the table of ``study`` as far as it has run, write its files, and return it as plain data.

    ``plot`` is where to draw it, if at all: see ``study.picture``.
    """
    table = known(study)
    counts = _counts(study, table)
    console.print(study.config.question, style="bold", soft_wrap=True)
    console.print(screen_table(table))
    for note in notes(table):
        console.print(note, soft_wrap=True)
    if counts["done"]:
        write_bytes(study.folder / "table.md", markdown(table).encode())
        write_bytes(study.folder / "table.csv", as_csv(table).encode())
        console.print(f"written: {study.folder / 'table.md'}, table.csv", soft_wrap=True)
    if plot:
        draw(table, plot)
        console.print(f"written: {plot}", soft_wrap=True)
    return {
        "name": study.config.name,
        "question": study.config.question,
        "score": table.score,
        "subset": table.subset,
        "budget": str(study.config.budget),
        **counts,
        "variants": plain(table),
        "comparisons": [
            {
                "variant": one.variant,
                "with": one.other,
                "n": one.difference.n if one.difference else 0,
                "difference": one.difference.mean if one.difference else None,
                "half_interval": one.difference.half if one.difference else None,
                "verdict": one.verdict or None,
                "float_difference": one.float_difference.mean if one.float_difference else None,
                "float_half_interval": one.float_difference.half if one.float_difference else None,
            }
            for one in table.comparisons
        ],
        "errors": table.errors,
        "commits": table.commits,
    }


def _counts(study: Study, table: Table) -> dict[str, int]:
    wanted = len(study.variants) * len(study.config.seeds)
    done = sum(line.n for line in table.lines)
    return {"done": done, "failed": sum(line.failed for line in table.lines), "wanted": wanted}


def overview(folder: Path) -> list[dict[str, Any]]:
    """The studies whose files lie in ``folder``, each with how far it is; an error names a file that is none."""
    if not folder.is_dir():
        raise BytegolfError(f"there is no folder {folder}: name one with study files")
    rows = []
    for file in sorted(folder.glob("*.toml")):
        study = read_study(file)
        rows.append(
            {
                "file": str(file),
                "name": study.config.name,
                "question": study.config.question,
                "variants": len(study.variants),
                "seeds": len(study.config.seeds),
                "budget": str(study.config.budget),
                **_counts(study, known(study)),
            }
        )
    if not rows:
        raise BytegolfError(f"{folder} holds no study file (*.toml): name another folder")
    return rows


def overview_table(rows: Sequence[dict[str, Any]]) -> RichTable:
    """The studies, a line each."""
    table = RichTable(box=None, pad_edge=False)
    for name in ("file", "runs", "budget", "question"):
        table.add_column(name, no_wrap=name != "question")
    for row in rows:
        failed = f", {row['failed']} failed" if row["failed"] else ""
        table.add_row(row["file"], f"{row['done']} of {row['wanted']}{failed}", row["budget"], row["question"])
    return table
