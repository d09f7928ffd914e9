"""The command line: one thin function a verb, in the order of the way of the data.

torch and everything that imports it are loaded inside the verbs, so that help answers at once.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError, validators
from rich.console import Console

from bytegolf import __version__
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors

app = App(
    name="bytegolf",
    help="Learned tokenization in 16,000,000 bytes: train, ship and score byte-level H-Nets.",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
)

Json = Annotated[bool, Parameter(help="End stdout with one JSON object on a line.", show_default=False)]
Data = Annotated[Path | None, Parameter(help="Folder made by `bytegolf prepare`; by default the run's own.")]
Model = Annotated[Path, Parameter(help="A run's folder or an artifact file.")]
_COUNT = validators.Number(gte=0)


@app.command(sort_key=0)
def prepare(
    *sources: Annotated[
        str,
        Parameter(
            help="Text files, folders, .jsonl[.gz|.zst], .parquet; - or -.jsonl for stdin; none = the default corpus.",
            allow_leading_hyphen=True,
        ),
    ],
    out: Annotated[Path, Parameter(help="The data folder to write.")],
    tokenizer: Annotated[
        str, Parameter(help="byte260, sp1024 (or spN) or a SPECS.json; several with commas between.")
    ] = "byte260",
    val: Annotated[
        str | None,
        Parameter(
            help="Validation split: first:K, hash:FRACTION, group:FRACTION or groups:A,B; by default hash:0.05, and "
            "four authors of the default corpus."
        ),
    ] = None,
    cut: Annotated[
        int,
        Parameter(help="Cut plain texts into documents of about so many bytes; 0 = a file is one.", validator=_COUNT),
    ] = 0,
    field: Annotated[str, Parameter(help="Field or column that holds the text.")] = "text",
    group_field: Annotated[str | None, Parameter(help="Field or column that holds the group.")] = None,
    workers: Annotated[int, Parameter(help="Threads of SentencePiece; 0 = one a core.", validator=_COUNT)] = 0,
    json: Json = False,
) -> None:
    """Turn documents into token shards, validation split included.

    Example: bytegolf prepare --out data/default
    Example: bytegolf prepare books/ a.jsonl --out data/mine --tokenizer sp1024
    Example: bytegolf prepare one.txt --out data/one --cut 20000

    JSON keys: out, split, datasets (by tokenizer: tokenizer, vocab_size,
    docs_total, docs_train, docs_val, and likewise files_, tokens_, bytes_ and
    original_bytes_, the last two for train and val).
    """
    from bytegolf.data.manifest import data_summary
    from bytegolf.data.prepare import prepare as run

    manifest = run(
        sources,
        out,
        tokenizer,
        val,
        text_field=field,
        group_field=group_field,
        cut=cut,
        workers=workers,
    )
    summary = data_summary(out)
    console = _console()
    for name, stats in summary.items():
        console.print(
            f"{name}: {stats['tokens_train']:,} training and {stats['tokens_val']:,} validation tokens from "
            f"{stats['docs_train']:,} + {stats['docs_val']:,} documents in {out}",
            soft_wrap=True,
        )
    _finish(json, {"out": str(out), "split": manifest["split"], "datasets": summary})


@app.command(sort_key=1)
def train(
    preset: Annotated[str, Parameter(help="A preset's name (see `bytegolf presets`) or a TOML file.")],
    /,
    *overrides: Annotated[str, Parameter(help="Changes, as section.key=value.")],
    data: Annotated[Path | None, Parameter(help="Folder made by `bytegolf prepare`: sets data.path.")] = None,
    out: Annotated[Path | None, Parameter(help="The run's folder; by default runs/<name>.")] = None,
    resume: Annotated[
        bool, Parameter(help="Go on with the run in that folder, if there is one.", show_default=False)
    ] = False,
    json: Json = False,
) -> None:
    """Train a model, export it, score the file, show its chunks.

    Ctrl-C stops cleanly: what was trained so far is still exported and scored.

    Example: bytegolf train cpu-demo train.max_seconds=60 --out runs/quick

    JSON keys, as in the run's summary.json: those of `bytegolf eval`, and name,
    seed, steps, train_seconds, train_tokens, train_bytes, train_bytes_per_second,
    validation_bpb_unquantised_sample, stopped_early, chunks_before and
    chunks_after (byte offsets in two standard sentences), artifact.
    """
    from bytegolf.config import load
    from bytegolf.recipes import show, training

    changes = [*overrides, *([f"data.path={_toml_string(str(data))}"] if data else [])]
    config = load(preset, changes)
    outcome = training.train(config, out or Path("runs") / config.name, resume=resume)
    if outcome:
        show.outcome(_console(), outcome)
        _finish(json, outcome.summary)


@app.command(name="eval", sort_key=2)
def evaluate(
    model: Model,
    /,
    *,
    data: Data = None,
    stride: Annotated[
        int | None,
        Parameter(help="New tokens a window; 0 = windows do not overlap. By default as configured.", validator=_COUNT),
    ] = None,
    limit: Annotated[
        int,
        Parameter(help="Score about this many tokens only: a subset, labelled as one. 0 = all.", validator=_COUNT),
    ] = 0,
    batch: Annotated[int, Parameter(help="Windows worked out at a time; 0 = as configured.", validator=_COUNT)] = 0,
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
    show.score(_console(), result)
    _finish(json, result)


@app.command(sort_key=3)
def export(
    run: Annotated[Path, Parameter(help="A run's folder.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="The artifact to write; by default the run's own.")] = None,
    json: Json = False,
) -> None:
    """Quantise a run's latest checkpoint; account for every byte.

    Example: bytegolf export runs/cpu-demo --out model.bgolf

    JSON keys: artifact, checkpoint, sha256, params, model_bytes, code_bytes,
    total_bytes, limit, fits, rows (group, tensors, parameters, raw_bytes,
    packed_bytes).
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


@app.command(sort_key=4)
def segment(
    model: Model,
    text: Annotated[str | None, Parameter(help="The text; without it and --file, two standard sentences.")] = None,
    /,
    *,
    file: Annotated[
        Path | None, Parameter(help="Read the text from a file (- = stdin).", allow_leading_hyphen=True)
    ] = None,
    level: Annotated[int, Parameter(help="Chunking level; 0 is the outermost.", validator=_COUNT)] = 0,
    data: Data = None,
    json: Json = False,
) -> None:
    """Show the chunks that a model cuts a text into.

    In colours on a terminal, in brackets elsewhere.

    Example: bytegolf segment runs/cpu-demo "The quick brown fox"

    JSON keys: boundaries (byte offsets of chunk starts), chunks (texts),
    mean_chunk_bytes, cv, whitespace_agreement (share of boundaries before or
    behind a whitespace byte; null if there is none), bytes, level.
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


@app.command(sort_key=5)
def sample(
    model: Model,
    /,
    *prompts: Annotated[str, Parameter(help="The texts to continue; none = begin a new one.")],
    count: Annotated[int, Parameter(help="Samples of each prompt.", validator=validators.Number(gte=1))] = 1,
    bytes: Annotated[int, Parameter(help="Write at most this many bytes.", validator=_COUNT)] = 400,
    temperature: Annotated[float, Parameter(help="0 = always the likeliest token.")] = 0.8,
    top_p: Annotated[float, Parameter(help="Draw from the likeliest tokens of this total probability.")] = 0.95,
    seed: Annotated[
        int,
        Parameter(
            help="Of the first sample; the next one's is 1 higher.", validator=validators.Number(gte=0, lt=1 << 62)
        ),
    ] = 0,
    data: Data = None,
    json: Json = False,
) -> None:
    """Continue texts.

    Token by token, until --bytes are written or the model ends the text. A
    character that the last byte cuts in two is left out. Several samples are
    drawn at once, in fp32, each from its own seed: alone, with that --seed, each
    of them comes out the same. There is room for every chunk, also where the
    model was trained with a fixed capacity.

    Example: bytegolf sample runs/cpu-demo "Fellow citizens" --bytes 300
    Example: bytegolf sample runs/cpu-demo "Fellow citizens" "My" --count 8

    JSON keys: samples (a list of prompt, text: what was added, bytes drawn for
    it, seed), bytes, seconds, bytes_per_second, temperature, top_p.
    """
    import time

    from bytegolf.infer.sample import as_text, generate
    from bytegolf.recipes import opening

    opened = opening.open_model(model, data, precision="fp32")
    opened.model.set_capacity("exact")  # a text has no length before it is written, so no share of it either
    begun = [prompt for prompt in prompts or ("",) for _ in range(count)]
    seeds = list(range(seed, seed + len(begun)))
    found: list[list[builtins.bytes]] = [[] for _ in begun]
    started = time.perf_counter()
    drawn = generate(opened.model, opened.tokenizer, begun, seeds, size=bytes, temperature=temperature, top_p=top_p)

    def kept() -> Iterator[builtins.bytes]:
        for row, piece in drawn:
            found[row].append(piece)
            yield piece

    if len(begun) == 1:  # as it comes
        for text in itertools.chain(begun, as_text(kept())):
            sys.stdout.write(text)
            sys.stdout.flush()
        sys.stdout.write("\n")
    else:
        for _ in kept():
            pass
    seconds = time.perf_counter() - started
    samples = [
        {"prompt": prompt, "text": "".join(as_text(pieces)), "bytes": sum(map(len, pieces)), "seed": number}
        for prompt, pieces, number in zip(begun, found, seeds, strict=True)
    ]
    if len(begun) > 1:
        for one in samples:
            sys.stdout.write(f"--- seed {one['seed']}\n{one['prompt']}{one['text']}\n")
    size = sum(len(piece) for pieces in found for piece in pieces)
    speed = {"bytes": size, "seconds": round(seconds, 3), "bytes_per_second": round(size / seconds, 1)}
    _finish(json, {"samples": samples, **speed, "temperature": temperature, "top_p": top_p})


@app.command(sort_key=6)
def presets(*, json: Json = False) -> None:
    """List the presets: what each is, and how large.

    Example: bytegolf presets

    JSON keys: presets, a list of name, about, tokenizer, params,
    artifact_estimate_bytes (before compression).
    """
    from bytegolf.recipes import show

    rows = show.preset_rows()
    _console().print(show.preset_table(rows))
    _finish(json, {"presets": rows})


# ---------------------------------------------------------------------------------------------- plumbing


def main() -> NoReturn:
    """Run the command line: exit code 0, or 2 with one sentence on stderr where the input was bad."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # any text can be shown, whatever the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(sys.argv[1:], console=_console(), exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        _fail(_usage(error))
    except BytegolfError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:  # torch's own classes, without importing torch
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        _fail("out of memory: choose a smaller model, a shorter train.seq_len, or fewer sequences at a time")
    except OSError as error:
        _without_stdout()
        if error.errno == errno.EPIPE:  # `bytegolf … | head` has read enough
            sys.exit(0)
        if error.filename is not None or error.errno != errno.ENOSPC:
            raise
        _fail("cannot write to stdout: the disk is full")
    sys.exit(0)


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"bytegolf: {' '.join(sentence.split())}\n")
    sys.exit(2)


def _usage(error: CycloptsError) -> str:
    """A wrong command line in one sentence."""
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        said = f"unexpected argument {error.unused_tokens[0]!r}"
    elif isinstance(error, MissingArgumentError) and error.argument is not None:
        said = f"{error.argument.name} is missing"
    else:
        said = str(error).strip().splitlines()[0].rstrip(".")
    verb = next((token for token in sys.argv[1:] if token in app), None)
    return f"{said} (see `bytegolf {f'{verb} ' if verb else ''}--help`)"


def _without_stdout() -> None:
    """What is still buffered goes nowhere, so that Python's own flush at exit has nothing to complain about."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to ``main``, which takes it for success; rich would exit with 1."""
        raise


def _console() -> Console:
    """For stdout: as wide as the terminal; in a pipe, where nobody's width is known, wide enough for every table."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return _Console(highlight=False, width=120 if piped else None)


def _finish(wanted: bool, result: dict[str, Any]) -> None:
    if wanted:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def _toml_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _text(text: str | None, file: Path | None, default: builtins.bytes) -> tuple[builtins.bytes, str]:
    """The text to work on and what to call it in errors."""
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
