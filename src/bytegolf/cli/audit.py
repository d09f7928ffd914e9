"""The verb that checks a submission, ours or a stranger's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from bytegolf.cli.common import Json, app, finish, screen


@app.command(sort_key=34)
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
    json: Json = False,
) -> None:
    """Check a submission against the rules; exit code 1 if one is broken.

    Its papers are compared with its files, and its script is read: network,
    files, caches, where validation tokens go. With --data the script also runs,
    in a process of its own without bytegolf or network: on texts whose future
    is changed, on every token at one place, and on the whole split. For that it
    must have `eval --data FOLDER --losses FILE.npy`, as those of `bytegolf
    submit`. Never run a stranger's script where it could do harm: the limits
    are Python's, not a sandbox.

    Example: bytegolf audit submission --data data/default

    JSON keys: passed (no rule is broken), verdicts (rule, about, outcome: pass,
    BROKEN, doubt or not checked, evidence).
    """
    from bytegolf.tools.submission import audit as job
    from bytegolf.tools.submission.trial import Limits

    found = job.audit(folder, data, tokenizer, Limits(seconds, memory))
    screen().print(job.table(found))
    passed = all(verdict.outcome != "BROKEN" for verdict in found)
    finish(json, {"passed": passed, "verdicts": [verdict.to_dict() for verdict in found]})
    if not passed:
        sys.exit(1)
