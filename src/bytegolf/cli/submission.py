"""Verbs for submissions and trust: make one, audit one, verify a score, check what lies on the disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from bytegolf.cli.common import EXCHANGE, FILES, SCORES, Data, Json, Model, answers, app, finish, readers, screen


@app.command(group=EXCHANGE, sort_key=52)
@answers("bytegolf.tools.submission.papers:Submission")
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
    from bytegolf.tools.submission import folder, papers

    reporter = Reporter()
    with reporter:
        by = folder.By(author, github_id, name, blurb, track)
        made = folder.submit(run, out, data, by, reporter, overrides=overrides, pack=pack)
    console = screen(json)
    sizes = f"{made.bytes_model_int8_zlib:,} model + {made.bytes_code:,} code = {made.bytes_total:,} bytes"
    console.print(f"wrote {out}: {sizes}", soft_wrap=True)
    console.print(f"{made.val_bpb:.6f} bits per byte, says its script (`bytegolf audit {out}`)", soft_wrap=True)
    if missing := [key for key in ("author", "github_id") if not getattr(made, key)]:
        console.print(f"fill in {' and '.join(missing)} in {out / papers.CLAIMS}", soft_wrap=True)
    finish(json, made)


@app.command(group=EXCHANGE, sort_key=53)
@answers("bytegolf.tools.submission.verdict:Audit")
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
    markdown: Annotated[
        bool, Parameter(help="Print a summary to paste under a pull request instead of the table.")
    ] = False,
    json: Json = False,
) -> None:
    """Check a submission against the rules: shown, not proved or broken, each with its evidence.

    Its papers are compared with its files, and its code is read: network,
    files, caches, where validation tokens go; packed code is unpacked. With
    --data the script also runs, in a process of its own without bytegolf or
    network: on texts whose future is changed, on every token at one place, and
    on the whole split. For that it must have `eval --data FOLDER --losses
    FILE.npy`, as those of `bytegolf submit`. Never run a stranger's script
    where it could do harm: the limits are Python's, not a sandbox.

    Exit code 0: passed, every rule is shown. 1: a rule is broken. 3: nothing is
    broken, and not everything is proved.

    Example: bytegolf audit submission --data data/default
    """
    from bytegolf.tools.submission import audit as job
    from bytegolf.tools.submission import verdict
    from bytegolf.tools.submission.trial import Limits

    found = job.audit(folder, data, tokenizer, Limits(seconds, memory))
    if markdown:
        readers(json).write(verdict.markdown(found) + "\n")
    else:
        console = screen(json)
        console.print(verdict.table(found))
        console.print(found.summary, soft_wrap=True)
    finish(json, found)
    if code := verdict.EXITS[found.verdict]:
        sys.exit(code)


@app.command(group=FILES, sort_key=42)
@answers("bytegolf.tools.check:CheckResult")
def check(
    *paths: Annotated[
        Path,
        Parameter(
            help="Runs, data folders, checkpoints, shards, artifacts, compressed files, results, submissions, or "
            "folders of these."
        ),
    ],
    json: Json = False,
) -> None:
    """Verify checksums and structure of what lies there; exit code 1 if something is damaged.

    Artifacts and compressed files carry their checksums; those of a checkpoint
    lie in it, those of shards and tokenizers in the data folder's manifest,
    those of a study's results in each row. What has none, or was written before
    there were any, is read as far as that tells something ("no checksum").

    Example: bytegolf check runs/cpu-demo data/default
    """
    from rich.table import Table

    from bytegolf.errors import BytegolfError
    from bytegolf.folders import Tally, in_words
    from bytegolf.tools.check import CheckResult
    from bytegolf.tools.check import check as verdicts_on

    if not paths:
        raise BytegolfError("name what is to be checked: a run, a data folder, an artifact, …")
    tally = Tally()
    verdicts = [verdict for path in paths for verdict in verdicts_on(path, tally)]
    result = CheckResult.of(verdicts, tally.all())
    table = Table(box=None, pad_edge=False)
    for name in ("finding", "kind", "path", "evidence"):
        table.add_column(name, no_wrap=name in ("finding", "kind"), overflow="fold")
    for verdict in result.verdicts:
        table.add_row(*(str(cell) for cell in (verdict.finding, verdict.kind, verdict.path, verdict.evidence)))
    console = screen(json)
    console.print(table)
    if result.left_out:
        console.print(in_words(result.left_out), soft_wrap=True)
    console.print(f"{result.checked} checked, {result.damaged} damaged")
    finish(json, result)
    if result.damaged:
        sys.exit(1)


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
    from bytegolf.artifact.loading import data_of, load_model
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
