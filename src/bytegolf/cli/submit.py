"""The verb that makes a submission; what it needs is no part of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bytegolf.cli.common import EXCHANGE, Data, Json, answers, app, finish, screen


@app.command(group=EXCHANGE, sort_key=52)
@answers("bytegolf.tools.submission.claims:Submission")
def submit(
    run: Annotated[Path, Parameter(help="A run's folder.")],
    /,
    *overrides: Annotated[str, Parameter(help="Changes of export.… or eval.…, as section.key=value.")],
    out: Annotated[Path, Parameter(help="The submission's folder, which must not be there yet.")],
    data: Data = None,
    author: Annotated[str, Parameter(help="Who made it.")] = "",
    github_id: Annotated[str, Parameter(help="Their account.")] = "",
    name: Annotated[str, Parameter(help="What it is called; by default as its configuration.")] = "",
    blurb: Annotated[str, Parameter(help="What it is, in a sentence; by default as its configuration says.")] = "",
    track: Annotated[str, Parameter(help="The leaderboard's track.")] = "non-record-unlimited-compute-16mb",
    pack: Annotated[bool, Parameter(help="Compress the script, whose size counts (LZMA in base 85).")] = False,
    json: Json = False,
) -> None:
    """Make a submission of a run: one script, the artifact, the log, the claims.

    The script is made of bytegolf's own modules and runs without bytegolf, on
    torch, numpy and public libraries: `train` trains the same configuration,
    `eval` scores the artifact. What is claimed is what it says of the artifact
    over the whole validation split. More than 16,000,000 bytes are refused.
    With overrides the artifact is exported and scored as they say: in sliding
    windows with eval.stride=64, with test-time training by eval.ttt.mode=sgd.

    Example: bytegolf submit runs/cpu-demo --out submission --author "A. Name"
    Example: bytegolf submit runs/cpu-demo eval.stride=64 --pack --out submission
    """
    from bytegolf.progress import Reporter
    from bytegolf.tools.submission import claims, folder

    reporter = Reporter()
    with reporter:
        by = folder.By(author, github_id, name, blurb, track)
        made = folder.submit(run, out, data, by, reporter, overrides=overrides, pack=pack)
    console = screen(json)
    sizes = f"{made.bytes_model_int8_zlib:,} model + {made.bytes_code:,} code = {made.bytes_total:,} bytes"
    console.print(f"wrote {out}: {sizes}", soft_wrap=True)
    console.print(f"{made.val_bpb:.6f} bits per byte, says its script (`bytegolf audit {out}`)", soft_wrap=True)
    if missing := [key for key in ("author", "github_id") if not getattr(made, key)]:
        console.print(f"fill in {' and '.join(missing)} in {out / claims.CLAIMS}", soft_wrap=True)
    finish(json, made)
