"""Verbs that make artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, Data, Json, app, finish, screen
from bytegolf.errors import BytegolfError


@app.command(sort_key=30)
def export(
    run: Annotated[Path, Parameter(help="A run's folder.")],
    /,
    *overrides: Annotated[str, Parameter(help="Changes of export.… or eval.…, as section.key=value.")],
    out: Annotated[Path | None, Parameter(help="The artifact to write; by default the run's own.")] = None,
    fit: Annotated[
        int,
        Parameter(
            help="Choose widths, pruning, GPTQ and coder for the lowest loss in so many bytes, code included; 0 = "
            "store as configured.",
            validator=COUNT,
        ),
    ] = 0,
    frontier: Annotated[
        Path | None, Parameter(help="With --fit: draw bytes against BPB into this PNG file; needs matplotlib.")
    ] = None,
    points: Annotated[int, Parameter(help="With --fit: points of the frontier that are scored.", validator=COUNT)] = 8,
    tokens: Annotated[
        int,
        Parameter(help="With --fit: how much training text decides.", validator=validators.Number(gte=1)),
    ] = 32_768,
    tensors: Annotated[bool, Parameter(help="A row a tensor instead of one a group.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Quantise a run's latest checkpoint; account for every byte.

    With export.gptq=true it reads the run's training data. With --fit it
    measures on a sample of it what each group of tensors costs at each width,
    then gives up bits where they cost least until all fits, code included;
    what comes of it is scored over the full validation split, which the
    choice never sees.

    Example: bytegolf export runs/cpu-demo --fit 16000000 --out model.bgolf

    JSON keys: artifact, checkpoint, gptq_seconds, sha256, params, model_bytes,
    code_bytes, total_bytes, limit, fits, rows (group, tensors, parameters,
    raw_bytes, packed_bytes, bits_per_weight). With --fit also bpb (full
    validation split), fit_bytes, coder, coders (bytes by coder: zlib, zstd,
    lzma, range), gptq, widths (label by group), sample_tokens, sample_loss,
    sample_loss_unquantised (nats a token of training text), frontier (a list:
    model_bytes, total_bytes, sample_loss, added_loss_expected, bpb and tokens
    of a validation subset, widths).
    """
    from bytegolf.analyze import frontier as picture
    from bytegolf.analyze import plots
    from bytegolf.api import evaluation as scoring
    from bytegolf.artifact import export as exporting
    from bytegolf.artifact import loading as opening
    from bytegolf.progress import Reporter
    from bytegolf.tools.bundle import fit_run as fitting
    from bytegolf.tools.bundle import ledger

    console = screen()
    if not fit:
        if frontier:
            raise BytegolfError("--frontier draws what --fit measured: give --fit BYTES as well")
        exported, checkpoint = exporting.export(run, out, overrides)
        summary = exported.summary
        more: dict[str, Any] = {"gptq_seconds": round(exported.gptq_seconds, 2)}
    else:
        if frontier:
            plots.check()
        reporter = Reporter()
        with reporter:
            fitted = fitting.fit(run, fit, out, data, overrides, tokens=tokens, points=points, reporter=reporter)
            summary, checkpoint, more = fitted.summary, fitted.checkpoint, fitted.result
            opened = opening.load_model(summary.path, data)
            found = scoring.evaluate(opened, data or Path(opened.config.data.path), reporter=reporter)
        more["bpb"] = found.bpb
        if more["frontier"]:
            console.print(picture.table(more["frontier"], fit))
        if frontier:
            picture.draw(more["frontier"], fit, frontier)
        console.print(f"chosen: {picture.widths(more['widths'])}, {more['coder']}", soft_wrap=True)
        console.print(f"{more['bpb']:.4f} bits per byte over the full validation split", soft_wrap=True)
    account = ledger.measure(summary.path, tensors)
    console.print(ledger.table(account))
    console.print(f"wrote {summary.path} from {checkpoint}", soft_wrap=True)
    result = {
        "artifact": str(summary.path),
        "checkpoint": str(checkpoint),
        "sha256": summary.sha256,
        "params": summary.parameters,
        **more,
    }
    finish(json, {**result, **account.to_dict()})
