"""Verbs that compare systems: whole studies, from one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators

from bytegolf.cli.common import TRAINING, Json, answers, app, finish, screen

study = App(
    name="study",
    help="Compare systems over seeds at one budget: a file, a command, a table.",
    group=TRAINING,
    sort_key=15,
)
app.command(study)

File = Annotated[Path, Parameter(help="The study's TOML file.")]


@study.command(sort_key=0)
@answers("bytegolf.tools.study.report:StudyResult")
def run(
    file: File,
    /,
    *,
    jobs: Annotated[int, Parameter(help="Runs at once.", validator=validators.Number(gte=1))] = 1,
    launcher: Annotated[Literal["local", "slurm", "ray"], Parameter(help="Where runs go.")] = "local",
    only: Annotated[
        list[str] | None, Parameter(help="Variants to run; by default all.", consume_multiple=True, negative=())
    ] = None,
    json: Json = False,
) -> None:
    """Train and score what is missing of a study, then write its tables.

    It can be stopped at any time, by Ctrl-C or worse: the same command goes on.
    A run that fails is written down and tried again next time; the others go on,
    and the exit code is 1.

    Slurm gets the runs as one array job; run or show the study again to collect
    what has ended.

    Example: bytegolf study run studies/headline.toml --jobs 2
    """
    from bytegolf.tools.study import report
    from bytegolf.tools.study.definition import read_study

    read = read_study(file)
    submitted = report.run(read, only or [], launcher, jobs)
    if submitted:
        screen(json).print(submitted, soft_wrap=True)
    found = report.show(read, screen(json))
    finish(json, found)
    failed = sum(one.failed for one in found.variants if not only or one.variant in only)
    if failed and launcher != "slurm":  # whose runs end later
        sys.stdout.flush()
        runs = "a run" if failed == 1 else f"{failed} runs"
        sys.stderr.write(f"bytegolf: {runs} failed, for what is said above: the same command tries again\n")
        sys.exit(1)


@study.command(sort_key=10)
@answers("bytegolf.tools.study.report:StudyResult")
def show(
    file: File,
    /,
    *,
    plot: Annotated[Path | None, Parameter(help="Draw it as a PNG file; needs matplotlib.")] = None,
    json: Json = False,
) -> None:
    """Show the table of a study as far as it has run, and write table.md and table.csv anew.

    The picture has the paired differences with their intervals, a ring per seed,
    and scores against artifact sizes.

    Example: bytegolf study show studies/headline.toml --plot headline.png
    """
    from bytegolf.tools.study import report
    from bytegolf.tools.study.definition import read_study

    finish(json, report.show(read_study(file), screen(json), plot))


@study.command(name="list", sort_key=20)
@answers("bytegolf.tools.study.report:StudyList")
def list_(
    folder: Annotated[Path, Parameter(help="A folder of study files.")] = Path("studies"), /, *, json: Json = False
) -> None:
    """List the studies of a folder, and how far each is.

    Other TOML files, such as presets, are passed over.

    Example: bytegolf study list studies
    """
    from bytegolf.tools.study import report

    found = report.overview(folder)
    console = screen(json)
    if found.studies:
        console.print(report.overview_table(found))
    for file, why in found.unreadable.items():
        console.print(f"not read: {why if file in why else f'{file}: {why}'}", soft_wrap=True)
    finish(json, found)
