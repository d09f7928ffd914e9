"""Running a study: start what is missing, write a row for every run that ends, go on whatever fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bytegolf.tools.study.definition import Study
from bytegolf.tools.study.launch import POLL_SECONDS, Handle, Launcher, Orphan, busy, write_script
from bytegolf.tools.study.plan import Job
from bytegolf.tools.study.results import EXIT, Row, append_row, collect, ended, failed


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

    def count(self, status: str) -> int:
        """How many runs are done or failed; one that is tried again is neither."""
        return sum(row["status"] == status for job, row in self.rows.items() if job not in self.open())

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
    rows = collect(study, list(jobs))
    return rows, [job for job in jobs if rows.get(job, {}).get("status") != "done"]


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
                state.running[job] = (launcher.start(job.folder), time.monotonic())
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
