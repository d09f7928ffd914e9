"""The verb that plans a run for a machine that is not at hand."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, TRAINING, Json, answers, app, finish, screen


@app.command(group=TRAINING, sort_key=13)
@answers("bytegolf.tools.plan.results:Plan", "bytegolf.tools.plan.results:Published")
def plan(
    preset: Annotated[
        str | None, Parameter(help="A preset's name or a TOML file; without it, all published step times.")
    ] = None,
    /,
    *overrides: Annotated[str, Parameter(help="Changes, as section.key=value.")],
    device: Annotated[str, Parameter(help="h100, h200, a100, rtx4090, or here: this machine, measured.")] = "h100",
    count: Annotated[int, Parameter(help="How many of them.", validator=validators.Number(gte=1))] = 1,
    rate: Annotated[
        float | None,
        Parameter(
            help="Chunks a position, padding not included; by default the router's 1/N.",
            validator=validators.Number(gt=0, lte=1),
        ),
    ] = None,
    steps: Annotated[
        int, Parameter(help="With --device here, compare with so many real steps; 0 = none.", validator=COUNT)
    ] = 3,
    json: Json = False,
) -> None:
    """Predict what a run takes: memory, time per step, steps in its budget.

    From the work that a step does (products, passes over memory, kernels) and a
    device's peaks. Without a preset, the same arithmetic is held against the step
    times that were published for these systems on H100s.

    Example: bytegolf plan study2-byte-4h --device h100 --count 8
    Example: bytegolf plan cpu-demo --device here
    Example: bytegolf plan
    """
    from bytegolf.config import Config
    from bytegolf.tools.plan import prediction as planning
    from bytegolf.tools.plan import tables as plan_tables
    from bytegolf.tools.plan.results import Published

    if preset is None:
        rows = planning.against_published()
        plan_tables.published(screen(json), rows)
        finish(json, Published(rows))
        return
    found = planning.plan(Config.load(preset, overrides), device, count, rate, steps)
    plan_tables.plan(screen(json), found)
    finish(json, found)
