"""Verbs that make artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bytegolf.cli.common import Json, app, finish, screen


@app.command(sort_key=30)
def export(
    run: Annotated[Path, Parameter(help="A run's folder.")],
    /,
    *overrides: Annotated[str, Parameter(help="Changes of export.… or eval.…, as section.key=value.")],
    out: Annotated[Path | None, Parameter(help="The artifact to write; by default the run's own.")] = None,
    json: Json = False,
) -> None:
    """Quantise a run's latest checkpoint; account for every byte.

    With export.gptq=true it reads the run's training data.

    Example: bytegolf export runs/cpu-demo export.bits=6 --out model.bgolf

    JSON keys: artifact, checkpoint, gptq_seconds, sha256, params, model_bytes, code_bytes,
    total_bytes, limit, fits, rows (group, tensors, parameters, raw_bytes,
    packed_bytes, bits_per_weight).
    """
    from bytegolf.artifact import ledger
    from bytegolf.recipes import exporting

    exported, checkpoint = exporting.export(run, out, overrides)
    summary = exported.summary
    account = ledger.measure(summary.path)
    console = screen()
    console.print(ledger.table(account))
    console.print(f"wrote {summary.path} from {checkpoint}", soft_wrap=True)
    result = {
        "artifact": str(summary.path),
        "checkpoint": str(checkpoint),
        "gptq_seconds": round(exported.gptq_seconds, 2),
        "sha256": summary.sha256,
        "params": summary.parameters,
    }
    finish(json, {**result, **account.to_dict()})
