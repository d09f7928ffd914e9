"""What `plan` prints for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bytegolf.errors import counted, sized
from bytegolf.tools.plan.devices import ATTENTION, DEVICES, MATMUL, MEMORY, SCAN, SCATTER
from bytegolf.tools.plan.results import Plan, PublishedStep
from bytegolf.tools.plan.work import SPREAD


def published(console: Console, rows: list[PublishedStep]) -> None:
    """The published step times and their predictions, and the constants that all of them share."""
    device = DEVICES["h100"]
    table = Table(box=None, pad_edge=False)
    table.add_column("step on H100s")
    for heading in ("GPUs", "published", "predicted", "error"):
        table.add_column(heading, justify="right")
    for row in rows:
        times = f"{row.published_ms:.1f} ms", f"{row.predicted_ms:.1f} ms"
        table.add_row(row.what, str(row.count), *times, f"{row.error:+.0%}")
    console.print(table)
    for row in rows:
        if row.published_bytes and row.predicted_bytes:
            before, now = row.published_bytes, row.predicted_bytes
            said = f"{row.what}: {before / 1e9:.2f} GB per GPU published, {now / 1e9:.2f} predicted"
            console.print(f"{said} ({now / before - 1:+.0%})")
    console.print(
        f"Guessed: {1e6 * device.launch:.0f} µs per kernel, padding {SPREAD - 1:.0%}. Lowered once, by S0: products "
        f"reach {MATMUL:.0%}, attention {ATTENTION:.0%}, passes over memory {MEMORY:.0%} of the peaks. Fitted to S3's "
        f"four times over bytes: {SCAN / 1e9:.0f} G elements/s of its scan's backward, {SCATTER / 1e9:.0f} G/s of "
        "atomic additions. That S2 smooths in a loop is our reading.",
        soft_wrap=True,
    )


def plan(console: Console, found: Plan) -> None:
    """A plan as tables."""
    use, sent = found.memory_bytes, found.communication_bytes
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("parameters", f"{found.params:,}")
    facts.add_row("artifact", f"≈{sized(found.artifact_estimate_bytes)} before compression")
    rates = ", ".join(f"{value:.3f}" for value in found.rates)
    room = f"; room for {rates} chunks per position" if rates else ""
    facts.add_row(
        "per rank",
        f"{found.sequences} sequences per step, {found.micro_batch} at a time "
        f"({found.accumulation} {'pass' if found.accumulation == 1 else 'passes'}){room}",
    )
    pieces = ", ".join(f"{key} {value / 1e9:.2f}" for key, value in vars(use).items() if key != "total")
    facts.add_row("memory", f"{use.total / 1e9:.2f} GB per rank: {pieces}")
    facts.add_row("sent", f"{sized(sent.gradients)} of gradients, {sized(sent.updates)} of updates")
    facts.add_row("step", f"{found.step_ms:.1f} ms on {found.count} × {found.device}")
    if found.measured:
        known = found.measured
        said = f"{known.step_ms:.1f} ms, median of {known.steps}: the prediction is {known.error:+.0%}"
        facts.add_row("measured", said)
    facts.add_row("budget", f"{counted(found.steps, 'step')}, {counted(found.train_tokens, 'token')}")
    console.print(facts)
    table = Table(box=None, pad_edge=False)
    table.add_column("part of a rank's step")
    for heading in ("GFLOP", "GB moved", "kernels", "computing", "starting"):
        table.add_column(heading, justify="right")
    for part in found.parts:
        counts = f"{part.gflop:,.1f}", f"{part.gigabytes:,.2f}", f"{part.kernels:,}"
        table.add_row(part.name, *counts, f"{part.computing_ms:,.2f} ms", f"{part.starting_ms:,.2f} ms")
    console.print(table)
    console.print("assumed: " + "; ".join(found.assumptions) + ".", soft_wrap=True)
