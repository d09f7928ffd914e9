"""The verb that checks a submission, ours or a stranger's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from bytegolf.cli.common import EXCHANGE, Json, answers, app, finish, readers, screen


@app.command(group=EXCHANGE, sort_key=53)
@answers("bytegolf.tools.submission.verdict:Audit")
def audit(
    folder: Annotated[Path, Parameter(help="A submission's folder.")],
    /,
    *,
    data: Annotated[
        Path | None, Parameter(help="Folder made by `bytegolf prepare`: the script runs on its validation split.")
    ] = None,
    tokenizer: Annotated[
        str | None, Parameter(help="Of that split; by default that of a bytegolf artifact in the folder, else byte260.")
    ] = None,
    seconds: Annotated[
        float, Parameter(help="How long the script may run in all.", validator=validators.Number(gt=0))
    ] = 1800.0,
    memory: Annotated[
        float, Parameter(help="How much memory it may map, in GiB.", validator=validators.Number(gt=0))
    ] = 24.0,
    markdown: Annotated[
        bool, Parameter(help="Print a summary to paste under a pull request instead of the table.")
    ] = False,
    json: Json = False,
) -> None:
    """Check a submission against the rules: shown, not proved or broken, each with its evidence.

    Its papers are compared with its files, and its code is read: network,
    files, caches, where validation tokens go; packed code is unpacked. With
    --data the script also runs, in a process of its own without bytegolf or
    network: on texts whose future is changed, on every token at one place, and
    on the whole split. For that it must have `eval --data FOLDER --losses
    FILE.npy`, as those of `bytegolf submit`. Never run a stranger's script
    where it could do harm: the limits are Python's, not a sandbox.

    Exit code 0: passed, every rule is shown. 1: a rule is broken. 3: nothing is
    broken, and not everything is proved.

    Example: bytegolf audit submission --data data/default
    """
    from bytegolf.tools.submission import audit as job
    from bytegolf.tools.submission import verdict
    from bytegolf.tools.submission.trial import Limits

    found = job.audit(folder, data, tokenizer, Limits(seconds, memory))
    if markdown:
        readers(json).write(verdict.markdown(found) + "\n")
    else:
        console = screen(json)
        console.print(verdict.table(found))
        console.print(found.summary, soft_wrap=True)
    finish(json, found)
    if code := verdict.EXITS[found.verdict]:
        sys.exit(code)
