"""Verbs that make artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, EXCHANGE, Data, Json, answers, app, finish, screen
from bytegolf.errors import BytegolfError
from bytegolf.results import to_json

if TYPE_CHECKING:
    from bytegolf.bpb import Score
    from bytegolf.data.dataset import TokenStream
    from bytegolf.data.tokenizer import Tokenizer
    from bytegolf.model.lm import LanguageModel


@app.command(group=EXCHANGE, sort_key=51)
@answers(
    "bytegolf.artifact.results:ExportResult",
    "bytegolf.artifact.results:FitResult",
    "bytegolf.artifact.results:Ledger",
    "bytegolf.artifact.results:HnetResult",
)
def export(
    run: Annotated[Path, Parameter(help="A run's folder, or imported weights.")],
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
    tensors: Annotated[bool, Parameter(help="A row per tensor instead of one per group.")] = False,
    format: Annotated[
        Literal["bgolf", "hnet"],
        Parameter(help="bgolf = an artifact; hnet = a folder as public H-Nets are published: JSON and safetensors."),
    ] = "bgolf",
    data: Data = None,
    json: Json = False,
) -> None:
    """Quantise a run's latest checkpoint; account for every byte.

    With export.gptq=true, and for the text of export.primer, it reads the
    run's training data. With --fit it
    measures on a sample of it what each group of tensors costs at each width,
    then gives up bits where they cost least until all fits, code included;
    what comes of it is scored over the full validation split, which the
    choice never sees.

    Example: bytegolf export runs/cpu-demo --fit 16000000 --out model.bgolf

    With --format hnet, weights that are not quantised, by the public names
    (arXiv 2507.07955), for code that reads these; a model that such code has
    no configuration for is refused, saying why.

    The JSON object is the account of the bytes and, in the same object, what
    was exported; with --fit also bpb, over the full validation split.
    """
    from bytegolf.analyze import figures as picture
    from bytegolf.analyze import plots
    from bytegolf.api import evaluation as scoring
    from bytegolf.api.results import scope
    from bytegolf.artifact import export as exporting
    from bytegolf.artifact import fit as fitting
    from bytegolf.artifact import loading as opening
    from bytegolf.artifact.results import ExportResult, FitResult
    from bytegolf.artifact.run_folder import RunFolder
    from bytegolf.progress import Reporter
    from bytegolf.tools.bundle import ledger
    from bytegolf.tools.bundle.script import code_bytes

    console = screen(json)
    if format == "hnet":
        _as_hnet(run, out, json, plain=not (fit or frontier or overrides))
        return
    if not fit:
        if frontier:
            raise BytegolfError("--frontier draws what --fit measured: give --fit BYTES as well")
        found: ExportResult | FitResult = exporting.export(run, out, overrides, data)
    else:
        if frontier:
            plots.check()
        with Reporter() as reporter:
            code = code_bytes(RunFolder(run).read_config(overrides))
            options = fitting.FitOptions(out=out, data=data, overrides=overrides, tokens=tokens, points=points)
            fitted = found = fitting.fit(run, fit, code, options, score=_plainly, tell=reporter)
            opened = opening.load_own(fitted.artifact, data)
            result = scoring.evaluate(opened, opening.data_of(opened, data), reporter=reporter)
        if fitted.frontier:
            console.print(picture.table(fitted.frontier, fit))
        if frontier:
            picture.draw(fitted.frontier, fit, frontier)
        console.print(f"chosen: {picture.widths(fitted.widths)}, {fitted.coder}", soft_wrap=True)
        console.print(
            f"{result.bpb:.4f} bits per byte over {scope(result.subset, result.scored_share)}", soft_wrap=True
        )
    account = ledger.measure(found.artifact, tensors)
    console.print(ledger.table(account))
    console.print(f"wrote {found.artifact} from {found.checkpoint}", soft_wrap=True)
    score = {"bpb": result.bpb} if fit else {}
    finish(json, {**to_json(found), **score, **to_json(account)})


def _as_hnet(run: Path, out: Path | None, json: bool, plain: bool) -> None:
    """Write the weights of a run's latest checkpoint, or of any other model, in the public layout."""
    from bytegolf.artifact import exchange

    if out is None or not plain:
        raise BytegolfError("--format hnet writes weights as they are into a new folder: give --out, and nothing else")
    done = exchange.export_hnet(run, out)
    screen(json).print(f"wrote {done.folder}: {done.params:,} weights as public H-Nets are published", soft_wrap=True)
    finish(json, done)


def _plainly(model: LanguageModel, stream: TokenStream, tokenizer: Tokenizer, seq_len: int, tokens: int) -> Score:
    """The score of the first ``tokens`` of a split, in windows that do not overlap."""
    from bytegolf.evaluate.score import score

    return score(model, stream, tokenizer, seq_len, limit=tokens, drop_tail=True)
