"""The command line: one thin function a verb, in the order of the way of the data.

torch and everything that imports it are loaded inside the verbs, so that help answers at once.
"""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from bytegolf import __version__
from bytegolf.errors import BytegolfError

app = App(
    name="bytegolf",
    help="Learned tokenization in 16,000,000 bytes: train, ship and score byte-level H-Nets.",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
)

Json = Annotated[bool, Parameter(help="End stdout with one JSON object on a line.")]
Data = Annotated[Path | None, Parameter(help="Folder made by `bytegolf prepare`; by default the configured one.")]
Model = Annotated[Path, Parameter(help="A run's folder or an artifact file.")]


@app.command
def prepare(
    *sources: Annotated[
        str,
        Parameter(help="Text files, folders, .jsonl[.gz|.zst], .parquet, or - for stdin; none = the default corpus."),
    ],
    out: Annotated[Path, Parameter(help="The data folder to write.")],
    tokenizer: Annotated[str, Parameter(help="byte260, sp1024 (or spN), or a SPECS.json.")] = "byte260",
    val: Annotated[
        str | None,
        Parameter(help="Validation split: first:K, hash:FRACTION, group:FRACTION or groups:A,B (default hash:0.05)."),
    ] = None,
    field: Annotated[str, Parameter(help="Field or column that holds the text.")] = "text",
    group_field: Annotated[str | None, Parameter(help="Field or column that holds the group.")] = None,
    workers: Annotated[int, Parameter(help="Processes or threads for SentencePiece; 0 = one a core.")] = 0,
    json: Json = False,
) -> None:
    """Turn documents into token shards, with their validation split and tokenizer.

    Example: bytegolf prepare --out data/default
    Example: bytegolf prepare books/ notes.jsonl --out data/mine --tokenizer sp1024 --val hash:0.1

    JSON keys: out, and for each data set its statistics (tokens_train, tokens_val, docs_train, docs_val, ...).
    """
    from bytegolf.data.manifest import data_summary
    from bytegolf.data.prepare import prepare as run

    run(list(sources), out, tokenizer, val, text_field=field, group_field=group_field, workers=workers)
    summary = data_summary(out)
    console = _console()
    for name, stats in summary.items():
        console.print(
            f"{name}: {stats['tokens_train']:,} training and {stats['tokens_val']:,} validation tokens from "
            f"{stats['docs_train']:,} + {stats['docs_val']:,} documents in {out}"
        )
    _finish(json, {"out": str(out), **summary})


@app.command
def train(
    preset: Annotated[str, Parameter(help="A preset's name (see `bytegolf presets`) or a TOML file.")],
    *overrides: Annotated[str, Parameter(help="Changes, as section.key=value.")],
    data: Data = None,
    out: Annotated[Path | None, Parameter(help="The run's folder; by default runs/<name>.")] = None,
    resume: Annotated[bool, Parameter(help="Go on with the run in that folder, if there is one.")] = False,
    json: Json = False,
) -> None:
    """Train, export the artifact, score it as reloaded from disk, and show how it cuts text into chunks.

    Ctrl-C stops cleanly, and what was trained so far is still exported and scored.

    Example: bytegolf train cpu-demo train.max_seconds=60 --out runs/quick

    JSON keys: those of summary.json in the run's folder: bpb, val_loss, artifact_bytes, total_bytes, fits, params,
    steps, train_seconds, train_bytes_per_second, boundaries (whitespace_agreement, mean_chunk_bytes, cv, ...), ...
    """
    from bytegolf.config import load
    from bytegolf.recipes import show, training

    changes = [*overrides, *([f"data.path={_toml_string(str(data))}"] if data else [])]
    config = load(preset, changes)
    outcome = training.train(config, out or Path("runs") / config.name, resume=resume)
    if outcome:
        show.outcome(_console(), outcome)
        _finish(json, outcome.summary)


@app.command(name="eval")
def evaluate(
    model: Model,
    *,
    data: Data = None,
    stride: Annotated[int | None, Parameter(help="New tokens a window; by default windows do not overlap.")] = None,
    limit: Annotated[int, Parameter(help="Score this many tokens only: a subset, labelled as one.")] = 0,
    batch: Annotated[int, Parameter(help="Windows in one forward pass; 0 = as configured.")] = 0,
    tail: Annotated[
        Literal["auto", "drop", "score"],
        Parameter(help="Tokens that fill no window: auto drops them unless windows overlap, as published."),
    ] = "auto",
    precision: Annotated[Literal["auto", "bf16", "fp32"], Parameter(help="Compute dtype.")] = "auto",
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Score an artifact in bits per byte over the full validation split.

    Example: bytegolf eval runs/cpu-demo --stride 512

    JSON keys: bpb, bpb_original, val_loss, tokens, bytes, seconds, bytes_per_second, subset, tokens_dropped, stride,
    seq_len, precision, artifact_bytes, code_bytes, total_bytes, limit_bytes, fits, params, artifact_sha256, boundaries.
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
            reporter=reporter,
        )
    show.score(_console(), result)
    _finish(json, result)


@app.command
def export(
    run: Annotated[Path, Parameter(help="A run's folder.")],
    *,
    out: Annotated[Path | None, Parameter(help="The artifact to write; by default the run's own.")] = None,
    json: Json = False,
) -> None:
    """Quantise a run's latest checkpoint into an artifact, and account for every byte of it.

    Example: bytegolf export runs/cpu-demo --out model.bgolf

    JSON keys: artifact, checkpoint, sha256, params, model_bytes, code_bytes, total_bytes, limit, fits, rows.
    """
    from bytegolf.artifact import ledger
    from bytegolf.recipes import training

    summary, checkpoint = training.export(run, out)
    account = ledger.measure(summary.path)
    console = _console()
    console.print(ledger.table(account))
    console.print(f"wrote {summary.path} from {checkpoint}", soft_wrap=True)
    result = {"artifact": str(summary.path), "checkpoint": str(checkpoint), "sha256": summary.sha256}
    _finish(json, {**result, "params": summary.parameters, **account.to_dict()})


@app.command
def segment(
    model: Model,
    text: Annotated[str | None, Parameter(help="The text; without it and --file, two standard sentences.")] = None,
    *,
    file: Annotated[Path | None, Parameter(help="Read the text from a file (- = stdin).")] = None,
    level: Annotated[int, Parameter(help="Chunking level; 0 is the outermost.")] = 0,
    data: Data = None,
    json: Json = False,
) -> None:
    """Show the chunks that a model cuts a text into: in colour on a terminal, in brackets elsewhere.

    Example: bytegolf segment runs/cpu-demo "The quick brown fox"

    JSON keys: boundaries (byte offsets of chunk starts), chunks (texts), mean_chunk_bytes, cv, whitespace_agreement
    (share of boundaries before or behind a whitespace byte), bytes, level.
    """
    from bytegolf.analyze import render
    from bytegolf.analyze import segment as segmenting
    from bytegolf.recipes import opening, show

    content, where = _text(text, file, render.STANDARD_TEXT)
    opened = opening.open_model(model, data)
    found = segmenting.segment(opened.model, opened.tokenizer, content, opened.config.train.seq_len, where, level)
    show.segmentation(_console(), found)
    stats = found.stats().to_dict()
    keys = ("mean_chunk_bytes", "cv", "whitespace_agreement", "bytes")
    pieces = [piece.decode("utf-8", errors="backslashreplace") for piece in render.chunks(found.data, found.boundaries)]
    _finish(
        json, {"boundaries": found.offsets(), "chunks": pieces, **{key: stats[key] for key in keys}, "level": level}
    )


@app.command
def sample(
    model: Model,
    prompt: Annotated[str, Parameter(help="The text to continue.")] = "",
    *,
    bytes: Annotated[int, Parameter(help="How many bytes to write.")] = 400,
    temperature: Annotated[float, Parameter(help="0 = always the likeliest.")] = 0.8,
    top_p: Annotated[float, Parameter(help="Draw from the likeliest tokens of this mass.")] = 0.95,
    seed: Annotated[int, Parameter(help="The same seed gives the same text.")] = 0,
    data: Data = None,
    json: Json = False,
) -> None:
    """Continue a text, byte by byte.

    Example: bytegolf sample runs/cpu-demo "Fellow citizens" --bytes 300 --temperature 0.7

    JSON keys: prompt, text, bytes, seconds, bytes_per_second, seed, temperature, top_p.
    """
    import time

    from bytegolf.infer.sample import as_text, generate
    from bytegolf.recipes import opening

    opened = opening.open_model(model, data)
    started = time.perf_counter()
    written: list[str] = []
    sys.stdout.write(prompt)
    pieces = generate(
        opened.model, opened.tokenizer, prompt, size=bytes, temperature=temperature, top_p=top_p, seed=seed
    )
    for piece in as_text(pieces):
        written.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    seconds = time.perf_counter() - started
    text = "".join(written)
    size = len(text.encode())
    settings = {"seed": seed, "temperature": temperature, "top_p": top_p}
    speed = {"bytes": size, "seconds": round(seconds, 3), "bytes_per_second": round(size / seconds, 1)}
    _finish(json, {"prompt": prompt, "text": text, **speed, **settings})


@app.command
def presets(*, json: Json = False) -> None:
    """List the presets: what each is, its parameters and an estimate of its artifact's size.

    Example: bytegolf presets

    JSON keys: presets, a list of name, about, tokenizer, params, artifact_estimate_bytes.
    """
    from bytegolf.recipes import show

    rows = show.preset_rows()
    _console().print(show.preset_table(rows))
    _finish(json, {"presets": rows})


# ---------------------------------------------------------------------------------------------- plumbing


def main() -> NoReturn:
    """Run the command line: exit code 0, or 2 with one sentence on stderr where the input was bad."""
    try:
        app(exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(str(error).strip().splitlines()[0])
    except BytegolfError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except BrokenPipeError:  # `bytegolf … | head` has read enough
        sys.stderr.close()
    sys.exit(0)


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"bytegolf: {sentence}\n")
    sys.exit(2)


def _console() -> Console:
    return Console(highlight=False)


def _finish(wanted: bool, result: dict[str, Any]) -> None:
    if wanted:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def _toml_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _text(text: str | None, file: Path | None, default: builtins.bytes) -> tuple[builtins.bytes, str]:
    """The text to work on and what to call it in errors."""
    from bytegolf.files import disk_errors

    if text is not None and file is not None:
        raise BytegolfError("both a text and --file are given: leave one out")
    if file is None:
        return default if text is None else text.encode("utf-8", errors="surrogateescape"), "the text"
    if str(file) == "-":
        return sys.stdin.buffer.read(), "stdin"
    with disk_errors(file, "read"):
        return file.read_bytes(), str(file)


if __name__ == "__main__":
    main()
