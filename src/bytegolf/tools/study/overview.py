"""What a study says while it runs: a table that is rewritten on a terminal, lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.live import Live
from rich.table import Table as RichTable

from bytegolf.progress import PlainConsole, clock
from bytegolf.tools.study.definition import Study
from bytegolf.tools.study.plan import Job
from bytegolf.tools.study.run import State
from bytegolf.tools.study.table import Table, cells, tabulate


class Overview:
    """Watches a study: ``run`` calls it with the state, and with each run that has just ended."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._console = PlainConsole(stderr=True, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> Overview:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.__exit__(kind, error, at)

    def __call__(self, state: State, just: Job | None) -> None:
        """Show the state; ``just`` is the run that has ended, if one has."""
        if just is not None:
            row = state.rows[just]
            said = f"bpb {row['summary']['bpb']:.4f}" if row["status"] == "done" else f"failed: {row['error']}"
            self._console.print(f"{just.label}: {said}{'' if self._live else f' ({self._line(state)})'}")
        if self._live:
            self._live.update(self._table(state), refresh=True)

    def _line(self, state: State) -> str:
        """How far it is, in a line."""
        left = state.seconds_left()
        parts = [
            f"{state.count('done')} of {len(state.jobs)} done",
            f"{len(state.running)} running",
            f"{state.count('failed')} failed",
        ]
        if left:
            parts.append(f"{clock(left)} left")
        table = tabulate(self._study, state.rows)
        ranked = [line for line in table.lines if line.bpb]
        if ranked:
            best = min(ranked, key=lambda line: line.bpb[0] if line.bpb else 0.0)
            parts.append(f"best so far {best.variant} {best.bpb[0] if best.bpb else 0:.4f}")
        return ", ".join(parts)

    def _table(self, state: State) -> RichTable:
        """A row a variant: how its seeds stand, and its score so far."""
        table = RichTable(box=None, pad_edge=False, caption=self._line(state), caption_justify="left")
        for column in ("variant", "done", "running", "failed", "BPB", "− control", ""):
            table.add_column(column, no_wrap=True)
        for line, text in zip((known := tabulate(self._study, state.rows)).lines, cells(known), strict=True):
            running = sum(job.variant.name == line.variant for job in state.running)
            failed = f"{line.failed}" if line.failed else ""
            score = text["BPB"].replace("*", "")
            seeds = f"{line.n}/{line.n + line.missing}"
            table.add_row(line.variant, seeds, str(running or ""), failed, score, text["− control"], line.verdict)
        return table


def screen_table(table: Table) -> RichTable:
    """The result for a terminal: what fits a screen; table.md has the rest."""
    shown = RichTable(box=None, pad_edge=False)
    keep = (
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
    )
    for name in keep:
        shown.add_column(name, no_wrap=name != "variant", justify="left" if name in ("variant", "") else "right")
    for row, line in zip(cells(table), table.lines, strict=True):
        shown.add_row(*(row[name].replace("**", "") for name in keep), style="bold" if line.best else None)
    return shown
