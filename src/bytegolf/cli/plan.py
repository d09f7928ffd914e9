"""The verb that plans a run for a machine that is not at hand."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, Json, app, finish, screen


@app.command(sort_key=5)
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
    """Predict what a run takes: memory, time a step, steps in its budget.

    From the work that a step does (products, passes over memory, kernels) and a
    device's peaks. Without a preset, the same arithmetic is held against the step
    times that were published for these systems on H100s.

    Example: bytegolf plan study2-byte-4h --device h100 --count 8
    Example: bytegolf plan cpu-demo --device here
    Example: bytegolf plan

    JSON keys: preset, device, count, params, artifact_estimate_bytes, sequences
    (of a rank a step), micro_batch, accumulation, rates, flops, bytes and kernels
    (of a rank's step), parts (a list: name, gflop, gigabytes, kernels,
    computing_ms, starting_ms), memory_bytes (weights, gradients, optimiser,
    activations, total), communication_bytes (gradients, updates), step_ms, steps,
    train_tokens, measured (null, or step_ms, steps, clock, error), assumptions.
    Without a preset: published, a list of what, preset, count, published_ms,
    predicted_ms, error, published_bytes and predicted_bytes (null if unknown).
    """
    from bytegolf.config import Config
    from bytegolf.tools.plan import prediction as planning
    from bytegolf.tools.plan import tables as plan_tables

    if preset is None:
        rows = planning.against_published()
        plan_tables.published(screen(), rows)
        finish(json, {"published": rows})
        return
    found = planning.plan(Config.load(preset, overrides), device, count, rate, steps)
    plan_tables.plan(screen(), found)
    finish(json, found)
