"""A study from its file to its tables and its picture: what the verbs call, and what a study says while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable

from bytegolf.analyze import plots
from bytegolf.analyze.plots import PNG
from bytegolf.console import PlainConsole, fitted
from bytegolf.errors import BytegolfError, counted
from bytegolf.files import check_replaceable, matching, only_one, write_bytes
from bytegolf.progress import clock
from bytegolf.tools.study import run as running
from bytegolf.tools.study import slurm
from bytegolf.tools.study.definition import Job, Study, is_study, jobs, read_study
from bytegolf.tools.study.results import collect
from bytegolf.tools.study.table import (
    BETTER,
    SAME,
    UNKNOWN,
    WORSE,
    ComparisonResult,
    Difference,
    Table,
    VariantResult,
    as_csv,
    cells,
    markdown,
    notes,
    tabulate,
)

# ---------------------------------------------------------------------------------------------------------- the picture


STYLES = {
    BETTER: (plots.COLORS[0], "o"),
    WORSE: (plots.COLORS[1], "s"),
    SAME: ("#6e6e6e", "D"),
    UNKNOWN: ("#6e6e6e", "D"),
}
"""Colour and marker of a verdict: shapes tell without colour."""

CONTROL = ("#1c1c1a", "*")


def draw(table: Table, path: Path) -> None:
    """Write ``table`` as the PNG file ``path``.

    On the left a row per variant, the best on top: its difference to the control in bits per byte, the 95 % interval
    and a ring per seed. On the right the mean score of each against its size.

    Raises BytegolfError where matplotlib is missing, or no variant can be compared with the control yet.
    """
    config = table.study.config
    scored = [one for one in table.variants if one.bpb is not None and one.total_bytes is not None]
    figure = plots.canvas(11, 1.9 + 0.34 * max(len(table.gaps), len(scored)))
    if not table.gaps:
        raise BytegolfError(f"no run of {config.name} can be compared with its control yet: run it before it is drawn")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(plots.plain(f"{config.name}: {config.budget} per run"), fontsize=11)
    _differences(left, table.gaps, config.control)
    _sizes(right, scored, config.control)
    plots.save_png(figure, path, dpi=130)


def _differences(axes: Any, gaps: dict[str, Difference], control: str) -> None:
    ordered = sorted(gaps.items(), key=lambda item: item[1].mean, reverse=True)
    for height, (_, gap) in enumerate(ordered):
        color, marker = STYLES[gap.verdict]
        axes.plot(gap.each, [height] * len(gap.each), "o", mfc="none", mec=color, ms=5, alpha=0.8)
        axes.errorbar(gap.mean, height, xerr=gap.half, fmt=marker, color=color, ms=7, capsize=4, lw=1.6)
    axes.axvline(0, color=CONTROL[0], lw=1)
    axes.set_yticks(range(len(ordered)), [plots.plain(name) for name, _ in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel(f"BPB − that of {plots.plain(control)}, paired by seed (95 % interval; rings are seeds)\n← better")
    axes.grid(axis="x", alpha=0.3)


def _sizes(axes: Any, results: list[VariantResult], control: str) -> None:
    """Names stand beside the axes, in the order of the scores, each with a line to what it names."""
    ordered = sorted(results, key=lambda one: one.bpb or 0.0)
    styles = [CONTROL if one.variant == control else STYLES.get(one.verdict or "", STYLES[UNKNOWN]) for one in ordered]
    places = [((one.total_bytes or 0) / 1e6, one.bpb or 0.0) for one in ordered]
    for (size, mean), one, (color, marker) in zip(places, ordered, styles, strict=True):
        large = {"ms": 11 if marker == "*" else 7}
        axes.errorbar(size, mean, yerr=one.bpb_std, fmt=marker, color=color, capsize=3, lw=1.2, **large)
    axes.margins(x=0.1, y=0.08)
    axes.set_xlabel("artifact and code, MB")
    axes.set_ylabel("bits per byte (mean ± std)")
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    # from the lowest score up, each name at the height of its score, but not nearer to the last name than a line's
    # height, and not so high that those above it have no room
    least, at = 0.9 / max(len(results), 10), 0.0
    for rank, (place, one, (color, _)) in enumerate(zip(places, ordered, styles, strict=True)):
        highest = 1 - (len(ordered) - 1 - rank) * least
        at = min(max((place[1] - low) / (high - low), at + least if rank else 0.0), highest)
        axes.annotate(
            plots.plain(one.variant),
            place,
            xytext=(1.04, at),
            textcoords="axes fraction",
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "alpha": 0.5, "shrinkB": 4, "relpos": (0, 0.5)},
        )


# ----------------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Counts:
    """How far a study is."""

    done: int
    failed: int
    wanted: int
    """runs in all"""


@dataclass(frozen=True)
class StudyResult(Counts):
    """A study's table as far as it has run."""

    name: str
    question: str
    score: str
    """what is compared: bpb_original, or bpb of the tokens' text"""
    subset: bool
    budget: str
    variants: list[VariantResult]
    comparisons: list[ComparisonResult]
    errors: dict[str, str]
    """by run"""
    commits: list[str]


@dataclass(frozen=True)
class StudyEntry(Counts):
    """A study in a list of them."""

    file: str
    name: str
    question: str
    variants: int
    seeds: int
    budget: str


@dataclass(frozen=True)
class StudyList:
    """The studies of a folder."""

    studies: list[StudyEntry]
    unreadable: dict[str, str]
    """why a file that was meant as a study is none, by file"""


def run(study: Study, only: Sequence[str], launcher: Literal["local", "slurm", "ray"], at_once: int) -> str:
    """Run what is missing of ``study``; what was submitted instead, in a sentence, where Slurm is to run it.

    Raises BytegolfError if the study cannot be planned, or another process is running it.
    """
    wanted = jobs(study, only)
    taken = f"another `bytegolf study run` is at work on {study.path}: wait for it, or end it"
    with only_one(study.runs / "lock", taken):
        _, todo = running.missing(study, wanted)
        has = slurm.pending(job.folder for job in todo)
        queued = [job for job in todo if job.folder in has]
        if launcher == "slurm":
            todo = [job for job in todo if job not in queued and not running.busy(job.folder)]
            if not todo:
                return "nothing to submit: every run has ended, or Slurm has it"
            said = slurm.submit(study, [(job, running.write_script(study, job)) for job in todo], at_once)
            return f"{said}; `bytegolf study show {study.path}` collects what ends"
        if queued:
            runs = counted(len(queued), "run")
            raise BytegolfError(
                f"Slurm still has {runs} of {study.path}, which would be trained twice: wait, or use scancel"
            )
        ray = launcher == "ray"
        start: running.Launcher = running.Ray(study.config.threads, study.config.gpus) if ray else running.Process
        watch = Overview(study)
        with watch.live or contextlib.nullcontext():
            running.run(study, wanted, start, at_once, watch)
    return ""


def known(study: Study) -> Table:
    """The table of what has ended."""
    return tabulate(study, collect(study, jobs(study, without_data=True)))


def show(study: Study, console: Console, plot: Path | None = None) -> StudyResult:
    """Print the table of ``study`` as far as it has run, write its files, draw it as the PNG file ``plot``."""
    if plot:
        check_replaceable(plot, PNG)
    table, config = known(study), study.config
    counts = _counts(table)
    console.print(config.question, style="bold", soft_wrap=True)
    console.print(_screen_table(table))
    for note in notes(table):
        console.print(note, soft_wrap=True)
    if counts.done:
        write_bytes(study.folder / "table.md", markdown(table).encode())
        write_bytes(study.folder / "table.csv", as_csv(table).encode())
        console.print(f"written: {study.folder / 'table.md'}, table.csv", soft_wrap=True)
    if plot:
        draw(table, plot)
        console.print(f"written: {plot}", soft_wrap=True)
    return StudyResult(
        **vars(counts),
        name=config.name,
        question=config.question,
        score=table.score,
        subset=table.subset,
        budget=str(config.budget),
        variants=table.variants,
        comparisons=table.comparisons,
        errors=table.errors,
        commits=table.commits,
    )


def _counts(table: Table) -> Counts:
    wanted = len(table.variants) * len(table.study.config.seeds)
    return Counts(sum(one.n for one in table.variants), sum(one.failed for one in table.variants), wanted)


def _screen_table(table: Table) -> RichTable:
    """The result for a terminal: what fits a screen; table.md has the rest."""
    shown = RichTable(box=None, pad_edge=False)
    keep = [
        "variant",
        "n",
        "BPB",
        "− control",
        "",
        "artifact bytes",
        "train s",
        "steps",
        "at whitespace",
        "chunk bytes",
    ]
    for name in keep:
        shown.add_column(name, no_wrap=name != "variant", justify="left" if name in ("variant", "") else "right")
    for row, one in zip(cells(table), table.variants, strict=True):
        shown.add_row(*(row[name] for name in keep), style="bold" if one.best else None)
    return shown


def overview(folder: Path) -> StudyList:
    """The studies whose files lie in ``folder``, each with how far it is.

    Other TOML files, such as presets, are passed over; those that were meant as studies and cannot be read are named.
    """
    if not folder.is_dir():
        raise BytegolfError(f"there is no folder {folder}: name one with study files")
    found, unreadable = [], {}
    for file in matching(folder, "*.toml"):
        try:
            if not is_study(file):
                continue
            study = read_study(file)
            config, counts = study.config, vars(_counts(known(study)))
        except BytegolfError as error:
            unreadable[str(file)] = str(error)
            continue
        entry = StudyEntry(
            **counts,
            file=str(file),
            name=config.name,
            question=config.question,
            variants=len(study.variants),
            seeds=len(config.seeds),
            budget=str(config.budget),
        )
        found.append(entry)
    if not found and not unreadable:
        raise BytegolfError(f"{folder} holds no study file (*.toml with a question and a control): name another folder")
    return StudyList(found, unreadable)


def overview_table(found: StudyList) -> RichTable:
    """The studies, a line each."""
    table = RichTable(box=None, pad_edge=False)
    for name in ("file", "runs", "budget", "question"):
        table.add_column(name, no_wrap=name != "question")
    for one in found.studies:
        failed = f", {one.failed} failed" if one.failed else ""
        table.add_row(one.file, f"{one.done} of {one.wanted}{failed}", one.budget, one.question)
    return table


# ---------------------------------------------------------------------------------------------- while it runs


class Overview:
    """What a study says while it runs: a table that is rewritten on a terminal, lines elsewhere.

    ``running.run`` calls it with the state, and with each run that has just ended.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._console = PlainConsole(stderr=True)
        self._console.soft_wrap = not self._console.is_terminal  # in a log each run keeps to its line
        self.live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __call__(self, state: running.State, just: Job | None) -> None:
        """Show the state; ``just`` is the run that has ended, if one has."""
        if just is not None:
            row = state.rows[just]
            said = f"bpb {row.summary.bpb:.4f}" if row.summary else f"failed: {row.error}"
            self._console.print(f"{just.label}: {said}{'' if self.live else f' ({self._line(state)})'}")
        if self.live:
            self.live.update(fitted(self._console, self._table(state)), refresh=True)

    def _line(self, state: running.State) -> str:
        """How far it is, in a line."""
        left = state.seconds_left()
        parts = [f"{state.count(True)} of {len(state.jobs)} done", f"{len(state.running)} running"]
        parts += [f"{state.count(False)} failed", *([f"{clock(left)} left"] if left else [])]
        so_far = tabulate(self._study, state.rows).variants
        ranked = sorted((one.bpb, one.variant) for one in so_far if one.bpb is not None)
        return ", ".join([*parts, *(f"best so far {variant} {bpb:.4f}" for bpb, variant in ranked[:1])])

    def _table(self, state: running.State) -> RichTable:
        """A row per variant: how its seeds stand, and its score so far."""
        table = RichTable(box=None, pad_edge=False, caption=self._line(state), caption_justify="left")
        for column in ("variant", "done", "running", "failed", "BPB", "− control", ""):
            table.add_column(column, no_wrap=True)
        so_far = tabulate(self._study, state.rows)
        for one, text in zip(so_far.variants, cells(so_far), strict=True):
            at_work = sum(job.variant.name == one.variant for job in state.running)
            counts = f"{one.n}/{one.n + one.missing}", str(at_work or ""), str(one.failed or "")
            table.add_row(one.variant, *counts, text["BPB"], text["− control"], text[""])
        return table
