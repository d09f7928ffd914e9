"""The verb that verifies a score by experiment; what it needs does not count as a submission's code."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from bytegolf.cli.common import Data, Json, Model, app, finish, screen


@app.command(sort_key=25, alias="prove")
def verify(
    model: Model,
    /,
    *,
    data: Data = None,
    thorough: Annotated[bool, Parameter(help="Score the whole split, and try many times as much.")] = False,
    claim: Annotated[
        float | None, Parameter(help="A BPB that the whole split must come to.", validator=validators.Number(gt=0))
    ] = None,
    precision: Annotated[Literal["auto", "bf16", "fp32"], Parameter(help="Compute dtype.")] = "auto",
    json: Json = False,
) -> None:
    """Verify an artifact's score by experiment; exit code 1 if a check fails.

    That no score depends on what comes later, in every mode of `eval`; that
    probabilities sum to 1; that each target and byte counts once; that a sample
    of the split, coded with the model, takes no more bits than claimed and comes
    back; that a new process scores the artifact alone the same.

    Example: bytegolf verify runs/cpu-demo --thorough

    JSON keys: passed, artifact_sha256, precision, checks (name, passed,
    evidence).
    """
    from bytegolf.artifact import loading as opening
    from bytegolf.evaluate import verification as proving
    from bytegolf.progress import Reporter

    opened = opening.load_model(model, data, "cpu", precision)
    reporter, console, checks = Reporter(), screen(), []
    effort = proving.THOROUGH if thorough else proving.QUICK
    with reporter:
        source = data or Path(opened.config.data.path)
        for check in proving.prove(opened, source, effort, claim=claim, reporter=reporter):
            checks.append(check)
            console.print(proving.verdict(check), soft_wrap=True)
    passed = all(check.passed for check in checks)
    found = {"artifact_sha256": opened.artifact.sha256, "precision": str(opened.model.precision).removeprefix("torch.")}
    finish(json, {"passed": passed, **found, "checks": [dataclasses.asdict(check) for check in checks]})
    if not passed:
        sys.exit(1)
