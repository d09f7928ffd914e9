"""results.jsonl: a row for every run that ended, appended and never changed; the latest row of a run counts.

Each row carries a checksum; rows of earlier versions have none. A run's own folder tells that it has ended: `train`
writes summary.json last. So whoever dies between that and the row loses nothing, as the next look at the folder writes
the row.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, parse_json, read_json_object
from bytegolf.tools.study.definition import Study
from bytegolf.tools.study.plan import Job
from bytegolf.tools.study.rows import check_row

Row = dict[str, Any]
"""study, variant, seed, definition and data (what identifies the run), status (done or failed), error (a sentence, of
a failed one), preset, overrides, budget, threads, summary (summary.json, of a done one), git and versions."""

CHECKSUM = "sha256"
"""A row's last key: the hash of the rest."""

EXIT, LOG = "exit", "log.txt"
"""In a run's folder: the exit code of its command, and what that said."""


def read_rows(study: Study) -> list[Row]:
    """All rows, oldest first; a line that a crash cut short is left out. BytegolfError for one that is no row."""
    path = study.folder / "results.jsonl"
    if not path.exists():
        return []
    with disk_errors(path, "read the results"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = (row_of(line, f"{path}, line {number},") for number, line in enumerate(lines, start=1))
    return [row for row in rows if row is not None]


def row_of(line: str, where: str) -> Row | None:
    """The row of a line; None if it is none, as after a crash. BytegolfError, naming ``where``, if it was altered."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not {"definition", "seed", "data", "status"} <= row.keys():
        return None
    if row.pop(CHECKSUM, None) not in (None, checksum(row)):
        raise BytegolfError(f"{where} does not match its checksum: restore it, or delete it to run that again")
    return check_row(row, where)


def checksum(row: Row) -> str:
    """Of a row without its checksum, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def append_row(study: Study, row: Row) -> None:
    """Write one row, whole or not at all: a line cut short by a crash is closed, and left behind."""
    path = make_folder(study.folder) / "results.jsonl"
    with disk_errors(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps({**row, CHECKSUM: checksum(row)}, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def latest(rows: list[Row], jobs: list[Job]) -> dict[Job, Row]:
    """The row that counts for each of ``jobs`` that has one: the last, but no failure behind a success.

    A job whose data are not here takes the results on whatever data they were.
    """
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        where = (row["definition"], row["seed"])
        for key in ((*where, row["data"]), where):
            if row["status"] == "done" or key not in best or best[key]["status"] != "done":
                best[key] = row
    keys = {job: (job.definition, job.seed, job.data)[: 3 if job.data else 2] for job in jobs}
    return {job: best[key] for job, key in keys.items() if key in best}


def collect(study: Study, jobs: list[Job]) -> dict[Job, Row]:
    """The rows of ``jobs``; those of runs that have ended since are written first."""
    known = latest(read_rows(study), jobs)
    for job in jobs:
        if job.data and known.get(job, {}).get("status") != "done" and (row := ended(study, job)):
            append_row(study, row)
            (job.folder / EXIT).unlink(missing_ok=True)  # a failure is told once
            known[job] = row
    return known


def ended(study: Study, job: Job) -> Row | None:
    """The row of a run that has ended, well or not; None for one that goes on, or was killed."""
    row = finished(study, job)
    return failed(study, job) if row is None and exit_code(job.folder) is not None else row


def finished(study: Study, job: Job) -> Row | None:
    """The row of a run that has succeeded, from its folder; its checkpoints go."""
    path = job.folder / "summary.json"
    if not path.exists():
        return None
    summary = read_json_object(path, "summary")
    if summary.get("stopped_early"):  # somebody interrupted it: it goes on
        return None
    summary.pop("artifact", None)
    made = read_json_object(job.folder / "environment.json", "environment of a run")
    packages = made.get("packages")
    versions = {key: made.get(key) for key in ("bytegolf", "python")}
    versions |= packages if isinstance(packages, dict) else {}
    row = {**_about(study, job), "status": "done", "summary": summary, "git": made.get("git"), "versions": versions}
    check_row(row, str(job.folder))
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    return row


def failed(study: Study, job: Job) -> Row:
    """The row of a run whose command failed, with the sentence that it ended with."""
    return {**_about(study, job), "status": "failed", "error": sentence(job.folder)}


def _about(study: Study, job: Job) -> Row:
    budget = {key: value for key, value in vars(study.config.budget).items() if value and key != "clock"}
    if "seconds" in budget:
        budget["clock"] = study.config.budget.clock
    return {
        "study": study.config.name,
        "variant": job.variant.name,
        "seed": job.seed,
        "definition": job.definition,
        "data": job.data,
        "preset": Path(job.variant.preset).stem,
        "overrides": job.variant.overrides,
        "budget": budget,
        "threads": study.config.threads,
    }


def exit_code(folder: Path) -> int | None:
    """The exit code that the command of a run left behind; None while there is none."""
    path = folder / EXIT
    if not path.exists():
        return None
    text = path.read_text(encoding="ascii", errors="replace").strip()
    return int(text) if text.isdigit() else None


def sentence(folder: Path) -> str:
    """What the log of a failed run ends with: its sentence, without this machine's paths."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    code = exit_code(folder)
    if code == 0:
        return "it was interrupted before its budget was used up"
    said = said.removeprefix("bytegolf: ").replace(f"{Path.cwd()}{os.sep}", "")[:300]
    if not said:
        return f"it said nothing and ended with exit code {code}" if code is not None else "it was killed"
    return said
