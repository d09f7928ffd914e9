"""Verbs that show what a model does."""

from __future__ import annotations

import builtins
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, INSIDE, Data, Json, Model, answers, app, finish, readers, screen, text_of
from bytegolf.errors import BytegolfError, counted


@app.command(group=INSIDE, sort_key=20)
@answers("bytegolf.api.results:SegmentResult")
def segment(
    model: Model,
    text: Annotated[
        str | None, Parameter(help="The text; without it, what stdin brings, or the beginning of the validation split.")
    ] = None,
    /,
    *,
    file: Annotated[
        Path | None, Parameter(help="Read the text from a file (- = stdin).", allow_leading_hyphen=True)
    ] = None,
    level: Annotated[int, Parameter(help="Chunking level; 0 is the outermost.", validator=COUNT)] = 0,
    data: Data = None,
    json: Json = False,
) -> None:
    """Show the chunks that a model cuts a text into.

    In colours on a terminal, in brackets elsewhere. Soft chunking is said to
    begin a chunk where its b is one half or more; a level is a layer of it then.

    Example: bytegolf segment runs/cpu-demo "The quick brown fox"
    """
    from bytegolf.analyze import segment as segments
    from bytegolf.api.model import load
    from bytegolf.api.results import SegmentResult

    content, where = text_of(text, file)
    loaded = load(model, data=data)
    if content is None:
        content = segments.example(loaded.tokenizer, data or loaded.data)
    found = loaded.segment(content, level, where)
    segments.show(screen(json), found)
    stats = found.stats().figures()
    pieces = [piece.decode("utf-8", errors="backslashreplace") for piece in found.chunks()]
    figures = (stats.mean_chunk_bytes, stats.cv, stats.whitespace_agreement, stats.bytes)
    finish(json, SegmentResult(found.offsets(), pieces, *figures, level))


@app.command(group=INSIDE, sort_key=22)
@answers("bytegolf.analyze.results:AnalysisResult")
def analyze(
    *models: Annotated[Path, Parameter(help="Runs' folders or artifact files, to be set side by side.")],
    data: Data = None,
    file: Annotated[
        tuple[Path, ...],
        Parameter(
            help="Read this text (- = stdin) instead of the validation split; may be repeated.",
            allow_leading_hyphen=True,
        ),
    ] = (),
    limit: Annotated[
        int, Parameter(help="Read this many tokens of the split, or bytes of each file; 0 = all.", validator=COUNT)
    ] = 262144,
    history: Annotated[bool, Parameter(help="From the untrained weights through a run's checkpoints.")] = False,
    stability: Annotated[
        bool,
        Parameter(help="What moves boundaries: a window's shift, quantised weights, a capacity."),
    ] = False,
    bpe: Annotated[
        str, Parameter(help="SentencePiece tokenizer to compare with: a .model file or a name in the data folder.")
    ] = "",
    threshold: Annotated[
        float,
        Parameter(
            help="Soft chunking: b from which on a chunk is said to begin.", validator=validators.Number(gte=0, lte=1)
        ),
    ] = 0.5,
    html: Annotated[Path | None, Parameter(help="Write a page for a browser, in one file.")] = None,
    show: Annotated[int, Parameter(help="Bytes of text on that page.", validator=validators.Number(gte=1))] = 20000,
    plots: Annotated[Path | None, Parameter(help="Draw PNG files into this folder; needs matplotlib.")] = None,
    json: Json = False,
) -> None:
    """Say where models begin chunks, and what that has to do with words.

    Reads the validation split, or else --file, or what a pipe brings to stdin.

    Boundaries against whitespace, the token starts of a SentencePiece tokenizer
    and surprisal, each beside what chance would give; words cut inside; chunk
    lengths; a row for each file and each writing system. Of soft chunking, how
    b is distributed, how far it is from the identity, and the score with b forced
    to 1, to 0 and shuffled. With several models, side by side.

    Example: bytegolf analyze runs/cpu-demo --history --html chunks.html
    Example: bytegolf analyze runs/cpu-demo --stability
    Example: bytegolf analyze runs/cpu-demo --file de.txt --file zh.txt
    """
    from bytegolf.analyze import plots as plotting
    from bytegolf.analyze import report as analysis
    from bytegolf.analyze.figures import figures, save_png
    from bytegolf.analyze.page import page
    from bytegolf.analyze.reading import NamedText
    from bytegolf.files import STDIN, check_replaceable, piped_input, write_bytes
    from bytegolf.progress import Reporter

    if not models:
        raise BytegolfError("name a model to analyse: a run's folder or an artifact file")
    if html:
        check_replaceable(html, b"<!doctype html>")
        if any(html.exists() and html.samefile(path) for path in file if path.exists()):
            raise BytegolfError(f"--html {html} would replace the text that is read: choose another path")
    if plots:
        plotting.check()
    texts = [NamedText.read(path) for path in file]
    if not file and data is None and (content := piped_input()):
        texts = [NamedText(STDIN, content)]
    reporter = Reporter()
    with reporter:
        found = analysis.analyze(
            models,
            data,
            texts,
            limit=limit,
            bpe=bpe,
            history=history,
            stable=stability,
            threshold=threshold,
            show=show if html else 0,
            reporter=reporter,
        )
    console = screen(json)
    found.show(console)
    if html:
        write_bytes(html, page(found).encode())
        console.print(f"wrote {html}", soft_wrap=True)
    if plots:
        for path in save_png(figures(found.result.models), plots):
            console.print(f"wrote {path}", soft_wrap=True)
    finish(json, found.result)


@app.command(group=INSIDE, sort_key=21)
@answers("bytegolf.infer.results:Samples")
def sample(
    model: Model,
    /,
    *prompts: Annotated[str, Parameter(help="The texts to continue; none = begin a new one.")],
    count: Annotated[int, Parameter(help="Samples of each prompt.", validator=validators.Number(gte=1))] = 1,
    bytes: Annotated[int, Parameter(help="Write at most this many bytes.", validator=COUNT)] = 400,
    temperature: Annotated[float, Parameter(help="0 = always the likeliest token.")] = 0.8,
    top_p: Annotated[float, Parameter(help="Draw from the likeliest tokens of this total probability.")] = 0.95,
    seed: Annotated[
        int,
        Parameter(
            help="Of the first sample; the next one's is 1 higher.", validator=validators.Number(gte=0, lt=1 << 62)
        ),
    ] = 0,
    draft: Annotated[
        int, Parameter(help="Tokens that an H-Net's outer networks draft at a time; 0 = none.", validator=COUNT)
    ] = 0,
    data: Data = None,
    json: Json = False,
) -> None:
    """Continue texts.

    Token by token, until --bytes are written or the model ends the text. A
    character that the last byte cuts in two is left out. Several samples are
    drawn at once, in fp32, each from its own seed: alone, with that --seed, each
    of them comes out the same. There is room for every chunk, also where the
    model was trained with a fixed capacity. --draft changes the speed and not the
    text, up to rounding: the outer networks guess ahead, the whole model verifies.

    Example: bytegolf sample runs/cpu-demo "Fellow citizens" --bytes 300
    Example: bytegolf sample runs/cpu-demo "Fellow citizens" "My" --count 8
    """

    from bytegolf.api.model import load
    from bytegolf.infer.results import Sample, Samples
    from bytegolf.infer.sample import as_text
    from bytegolf.infer.speculative import Acceptance
    from bytegolf.progress import Reporter

    loaded = load(model, data=data, precision="fp32")
    begun = [prompt for prompt in prompts or ("",) for _ in range(count)]
    seeds = list(range(seed, seed + len(begun)))
    found: list[list[builtins.bytes]] = [[] for _ in begun]
    started = time.perf_counter()
    acceptance = Acceptance() if draft else None
    drawn = loaded.generate_bytes(begun, seeds, bytes, temperature, top_p, draft=draft, acceptance=acceptance)

    def kept() -> Iterator[builtins.bytes]:
        for row, piece in drawn:
            found[row].append(piece)
            yield piece

    shown = readers(json)
    if len(begun) == 1:  # as it comes
        for text in itertools.chain(begun, as_text(kept())):
            shown.write(text)
            shown.flush()
        shown.write("\n")
    else:
        for _ in kept():
            pass
    seconds = time.perf_counter() - started
    samples = [
        Sample(prompt, "".join(as_text(pieces)), sum(map(len, pieces)), number)
        for prompt, pieces, number in zip(begun, found, seeds, strict=True)
    ]
    if len(begun) > 1:
        for one in samples:
            shown.write(f"--- seed {one.seed}\n{one.prompt}{one.text}\n")
    size = sum(one.bytes for one in samples)
    rates = (round(acceptance.rate, 3), round(acceptance.tokens_per_pass, 2)) if acceptance else (None, None)
    if acceptance and acceptance.drafted:  # to stderr, as stdout has the text
        Reporter().say(f"{rates[0]:.1%} of drafted tokens kept, {rates[1]} tokens a pass")
    finish(json, Samples(samples, size, round(seconds, 3), round(size / seconds, 1), temperature, top_p, *rates))


@app.command(group=INSIDE, sort_key=23)
@answers("bytegolf.analyze.results:Probe")
def probe(
    model: Model,
    /,
    *,
    data: Data = None,
    limit: Annotated[
        int, Parameter(help="Look at about this many validation tokens; 0 = all.", validator=COUNT)
    ] = 65_536,
    json: Json = False,
) -> None:
    """Tell whether soft chunking chunks, or is the identity.

    How b is distributed, how far the layer's output is from that of b = 1,
    and the score with b as it is, forced to 1 (open) and to 0 (closed), and
    shuffled among the positions of a window.

    Example: bytegolf probe runs/soft
    """
    from bytegolf.analyze.soft import probe_run
    from bytegolf.analyze.tables import of_probe
    from bytegolf.artifact import loading
    from bytegolf.artifact.loading import data_of
    from bytegolf.progress import Reporter

    opened = loading.load_model(model, data)
    reporter = Reporter()
    with reporter:
        result = probe_run(opened, data_of(opened, data), model, limit, reporter)
    console = screen(json)
    for grid in of_probe(result):
        console.print(grid.drawn())
    console.print(f"over {counted(result.tokens, 'token')}, {counted(result.bytes, 'byte')}")
    finish(json, result)
