"""Verbs that score an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, Data, Json, Model, app, finish, screen


@app.command(name="eval", sort_key=20)
def evaluate(
    model: Model,
    /,
    *,
    data: Data = None,
    stride: Annotated[
        int | None,
        Parameter(help="New tokens a window; 0 = windows do not overlap. By default as configured.", validator=COUNT),
    ] = None,
    limit: Annotated[
        int,
        Parameter(help="Score about this many tokens only: a subset, labelled as one. 0 = all.", validator=COUNT),
    ] = 0,
    batch: Annotated[int, Parameter(help="Windows worked out at a time; 0 = as configured.", validator=COUNT)] = 0,
    capacity: Annotated[
        Literal["exact", "bucketed", "fixed"] | None, Parameter(help="Room for chunks. By default as configured.")
    ] = None,
    capacity_divisor: Annotated[
        float | None,
        Parameter(help="Of a fixed capacity, 1 or more. By default as configured.", validator=validators.Number(gte=1)),
    ] = None,
    tail: Annotated[
        Literal["auto", "drop", "score"],
        Parameter(help="Tokens that fill no window: auto drops them unless windows overlap, as published."),
    ] = "auto",
    precision: Annotated[Literal["auto", "bf16", "fp32"], Parameter(help="Compute dtype.")] = "auto",
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Score an artifact in bits per byte.

    It is read from disk as it would be shipped, and scored over the full
    validation split unless --limit is given. With --stride each window of
    train.seq_len tokens is scored on its last ones only. What windows have in
    common is then computed once, which changes no loss by more than rounding.

    Example: bytegolf eval runs/cpu-demo --stride 512

    JSON keys: bpb, bpb_original (over the text before normalisation), val_loss
    (nats a token), tokens, bytes, seconds, bytes_per_second, subset (whether
    --limit left something out), tokens_dropped, stride, seq_len, precision,
    artifact_bytes, code_bytes, total_bytes, limit_bytes, fits, params,
    artifact_sha256, boundaries (windows, bytes, boundaries, chunks, rate,
    whitespace_agreement, random_agreement, boundaries_per_256,
    mean_chunk_bytes, cv, utf8_splits; null for a flat model), capacity (a list of
    the chunking levels: capacity, divisor, windows, truncated_boundaries,
    truncated_windows).
    """
    from bytegolf.recipes import opening, scoring, show
    from bytegolf.train.report import Reporter

    opened = opening.open_model(model, data, device, precision)
    reporter = Reporter()
    with reporter:
        result = scoring.evaluate(
            opened,
            data or Path(opened.config.data.path),
            stride=stride,
            limit=limit,
            batch=batch,
            drop_tail=None if tail == "auto" else tail == "drop",
            capacity=capacity or "",
            capacity_divisor=capacity_divisor or 0.0,
            reporter=reporter,
        )
    show.score(screen(), result)
    finish(json, result)
