"""The verb that verifies what lies on the disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bytegolf.cli.common import FILES, Json, answers, app, finish, screen


@app.command(group=FILES, sort_key=42)
@answers("bytegolf.tools.check.results:CheckResult")
def check(
    *paths: Annotated[
        Path,
        Parameter(
            help="Runs, data folders, checkpoints, shards, artifacts, compressed files, results, submissions, or "
            "folders of these."
        ),
    ],
    json: Json = False,
) -> None:
    """Verify checksums and structure of what lies there; exit code 1 if something is damaged.

    Artifacts and compressed files carry their checksums; those of a checkpoint
    lie in it, those of shards and tokenizers in the data folder's manifest,
    those of a study's results in each row. What has none, or was written before
    there were any, is read as far as that tells something ("no checksum").

    Example: bytegolf check runs/cpu-demo data/default
    """
    from rich.table import Table

    from bytegolf.errors import BytegolfError
    from bytegolf.folders import Tally, in_words
    from bytegolf.tools.check.folders import check as verdicts_on
    from bytegolf.tools.check.results import CheckResult

    if not paths:
        raise BytegolfError("name what is to be checked: a run, a data folder, an artifact, …")
    tally = Tally()
    verdicts = [verdict for path in paths for verdict in verdicts_on(path, tally)]
    result = CheckResult.of(verdicts, tally.all())
    table = Table(box=None, pad_edge=False)
    for name in ("finding", "kind", "path", "evidence"):
        table.add_column(name, no_wrap=name in ("finding", "kind"), overflow="fold")
    for verdict in result.verdicts:
        table.add_row(*(str(cell) for cell in (verdict.finding, verdict.kind, verdict.path, verdict.evidence)))
    console = screen(json)
    console.print(table)
    if result.left_out:
        console.print(in_words(result.left_out), soft_wrap=True)
    console.print(f"{result.checked} checked, {result.damaged} damaged")
    finish(json, result)
    if result.damaged:
        sys.exit(1)
