"""The verb that checks a score by experiment; what it needs does not count as a submission's code."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from bytegolf.cli.common import SCORES, Data, Json, Model, answers, app, finish, screen


@app.command(group=SCORES, sort_key=31, alias="prove")
@answers("bytegolf.api.results:Verification")
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
    """
    from bytegolf.api.results import Verification
    from bytegolf.artifact.loading import data_of
    from bytegolf.artifact.opening import load_model
    from bytegolf.evaluate import verification
    from bytegolf.progress import Reporter

    loaded = load_model(model, data, "cpu", precision)
    console, checks = screen(json), []
    effort = verification.THOROUGH if thorough else verification.QUICK
    with Reporter() as reporter:
        source = data_of(loaded, data)
        for check in verification.verify(loaded, source, effort, claim=claim, reporter=reporter):
            checks.append(check)
            console.print(verification.verdict(check), soft_wrap=True)
    passed = all(check.passed for check in checks)
    dtype = str(loaded.model.precision).removeprefix("torch.")
    finish(json, Verification(passed, loaded.artifact.sha256, dtype, checks))
    if not passed:
        sys.exit(1)
