"""results.jsonl: a row for every run that ended, appended and never changed; the latest row of a run counts.

Each row carries a checksum; rows of earlier versions have none. A run's own folder tells that it has ended: `train`
writes summary.json last. So whoever dies between that and the row loses nothing, as the next look at the folder writes
the row. A results.jsonl may come from anywhere, so nothing is taken from a row that was not looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytegolf.errors import BytegolfError, presentable
from bytegolf.files import disk_errors, json_line, lines_of, make_folder, parse_json, read_json_object
from bytegolf.tools.study.definition import Identity, Job, Study

CHECKSUM = "sha256"
"""A row's last key: the hash of the rest."""

EXIT, LOG = "exit", "log.txt"
"""In a run's folder: the exit code of its command, and what that said."""

_FIGURES = ("total_bytes", "params", "train_seconds", "steps", "train_bytes", "train_bytes_per_second")
_CHUNKS = ("rate", "whitespace_agreement", "cv", "mean_chunk_bytes")
_LARGEST = 1e18
"""No figure of a run is beyond it."""


@dataclass(frozen=True)
class Summary:
    """What tables take from the summary.json of a finished run; None where it is not known."""

    bpb: float
    bpb_original: float | None
    bpb_float: float | None
    """before quantisation, over the bytes of ``bpb_original`` where that is known"""
    total_bytes: float
    params: float
    train_seconds: float
    steps: float
    train_bytes: float
    train_bytes_per_second: float
    rate: float | None
    whitespace_agreement: float | None
    cv: float | None
    mean_chunk_bytes: float | None
    subset: bool
    fits: bool
    scored_share: float
    """of the split's tokens; rows of earlier versions do not say, and count as 1"""

    @staticmethod
    def of(summary: Any, where: str) -> Summary:
        """What ``summary`` holds. Raises BytegolfError, naming ``where``, for what no finished run leaves."""
        if not isinstance(summary, dict):
            raise _wrong(where, "summary", summary)
        boundaries = summary.get("boundaries", "none")
        if not isinstance(boundaries, dict | None):
            raise _wrong(where, "boundaries", boundaries)
        chunks: Mapping[str, Any] = boundaries or {}
        if "bpb_original" not in summary:
            raise _wrong(where, "bpb_original", None)
        bpb, original = _figure(summary, where, "bpb"), _figure_or_none(summary, where, "bpb_original")
        before = _figure_or_none(summary, where, "bpb_unquantised")
        figures: dict[str, Any] = {key: _figure(summary, where, key) for key in _FIGURES}
        figures |= {key: _figure_or_none(chunks, where, key) for key in _CHUNKS}
        return Summary(
            bpb=bpb,
            bpb_original=original,
            bpb_float=before * ((original or bpb) / bpb) if before is not None and bpb else None,
            **figures,
            subset=_take(summary, where, "subset", bool),
            fits=_take(summary, where, "fits", bool),
            scored_share=1.0 if (share := _figure_or_none(summary, where, "scored_share")) is None else share,
        )


@dataclass(frozen=True)
class Row:
    """A run that has ended: done with a summary, or failed with an error."""

    identity: Identity
    summary: Summary | None
    error: str
    """a sentence; empty for a run that is done"""
    commit: str
    """of the code that made it, as people read it"""
    torch: str
    """the version"""
    line: Mapping[str, Any]
    """all that results.jsonl holds of it: also study, variant, preset, overrides, budget, threads and versions"""

    @property
    def done(self) -> bool:
        """Whether the run has succeeded."""
        return self.summary is not None

    @staticmethod
    def of(line: Mapping[str, Any], where: str) -> Row:
        """The row that ``line`` holds. Raises BytegolfError, naming ``where``, if it is no row."""
        identity = Identity(*(_take(line, where, *key) for key in (("definition", str), ("seed", int), ("data", str))))
        if line.get("status") == "done":
            versions = _take(line, where, "versions", dict)
            torch, commit = _take(versions, where, "torch", str), _commit(line.get("git"), where)
            return Row(identity, Summary.of(line.get("summary"), where), "", commit, torch, line)
        if line.get("status") != "failed" or not isinstance(line.get("error"), str):
            raise _wrong(where, "status", line.get("status"))
        return Row(identity, None, presentable(line["error"]), "", "", line)


def _commit(git: Any, where: str) -> str:
    if git is None:
        return "no git checkout"
    if not isinstance(git, dict):
        raise _wrong(where, "git", git)
    changed = " with uncommitted changes" if _take(git, where, "modified", bool) else ""
    return f"{_take(git, where, 'commit', str)[:12]}{changed}"


def _take(table: Mapping[str, Any], where: str, key: str, kind: type) -> Any:
    value = table.get(key)
    if type(value) is not kind or (isinstance(value, str) and not value.isprintable()):
        raise _wrong(where, key, value)
    return value


def _figure(table: Mapping[str, Any], where: str, key: str) -> float:
    value: Any = table.get(key)
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) >= _LARGEST:
        raise _wrong(where, key, value)
    return float(value)


def _figure_or_none(table: Mapping[str, Any], where: str, key: str) -> float | None:
    return None if table.get(key) is None else _figure(table, where, key)


def _wrong(where: str, key: str, value: Any) -> BytegolfError:
    return BytegolfError(
        f"{where} has no valid {key} ({str(value)[:60]!r}): restore it, or delete it to run that again"
    )


# ---------------------------------------------------------------------------------------------- results.jsonl


def read_rows(study: Study) -> list[Row]:
    """All rows, oldest first; a line that a crash cut short is left out. BytegolfError for one that is no row."""
    path = study.folder / "results.jsonl"
    if not path.exists():
        return []
    with disk_errors(path, "read the results"):
        lines = lines_of(path.read_text(encoding="utf-8", errors="replace"))
    rows = (row_of(line, f"{path}, line {number},") for number, line in enumerate(lines, start=1))
    return [row for row in rows if row is not None]


def row_of(text: str, where: str) -> Row | None:
    """The row of a line; None if it is none, as after a crash. BytegolfError, naming ``where``, if it was altered."""
    try:
        line = parse_json(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not {"definition", "seed", "data", "status"} <= line.keys():
        return None
    if line.pop(CHECKSUM, None) not in (None, checksum(line)):
        raise BytegolfError(f"{where} does not match its checksum: restore it, or delete it to run that again")
    return Row.of(line, where)


def checksum(line: Mapping[str, Any]) -> str:
    """Of a line without its checksum, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()


def append_row(study: Study, row: Row) -> None:
    """Write one row, whole or not at all: a line cut short by a crash is closed, and left behind."""
    path = make_folder(study.folder) / "results.jsonl"
    with disk_errors(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json_line({**row.line, CHECKSUM: checksum(row.line)}) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def latest(rows: Iterable[Row], jobs: Sequence[Job]) -> dict[Job, Row]:
    """The row that counts for each of ``jobs`` that has one: the last, but no failure behind a success.

    Each row is filed twice: under its data, and under whatever data (""), which is what a job asks for whose data are
    not on this machine.
    """
    best: dict[Identity, Row] = {}
    for row in rows:
        for key in (row.identity, row.identity._replace(data="")):
            if row.done or key not in best or not best[key].done:
                best[key] = row
    return {job: best[job.identity] for job in jobs if job.identity in best}


def collect(study: Study, jobs: Sequence[Job]) -> dict[Job, Row]:
    """The rows of ``jobs``; those of runs that have ended since are written first."""
    known = latest(read_rows(study), jobs)
    for job in jobs:
        if job.identity.data and not (job in known and known[job].done) and (row := ended(study, job)):
            append_row(study, row)
            (job.folder / EXIT).unlink(missing_ok=True)  # a failure is told once
            known[job] = row
    return known


# ---------------------------------------------------------------------------------------------- a run's folder


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
    rest = {"status": "done", "summary": summary, "git": made.get("git"), "versions": versions}
    row = Row.of({**_about(study, job), **rest}, str(job.folder))
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    return row


def failed(study: Study, job: Job) -> Row:
    """The row of a run whose command failed, with the sentence that it ended with."""
    return Row.of({**_about(study, job), "status": "failed", "error": sentence(job.folder)}, str(job.folder))


def _about(study: Study, job: Job) -> dict[str, Any]:
    budget = {key: value for key, value in vars(study.config.budget).items() if value and key != "clock"}
    if "seconds" in budget:
        budget["clock"] = study.config.budget.clock
    return {
        "study": study.config.name,
        "variant": job.variant.name,
        "seed": job.seed,
        "definition": job.identity.definition,
        "data": job.identity.data,
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
