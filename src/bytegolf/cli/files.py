"""Verbs that compress files with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, Json, Model, answers, app, finish, screen
from bytegolf.errors import BytegolfError
from bytegolf.words import counted

_HYPHEN = Parameter(allow_leading_hyphen=True)
Stride = Annotated[
    int | None,
    Parameter(help="New bytes a window; 0 = windows do not overlap. By default as `eval` has it.", validator=COUNT),
]
Streams = Annotated[
    int,
    Parameter(help="Parts coded side by side; 0 = as many as pay.", validator=validators.Number(gte=0, lte=4096)),
]

Force = Annotated[bool, Parameter(name=("--force", "-f"), help="Replace a file that exists.", show_default=False)]


@app.command(sort_key=60)
@answers("bytegolf.infer.results:Compression", "bytegolf.infer.results:CompressorComparison")
def compress(
    model: Model,
    source: Annotated[Path | None, _HYPHEN, Parameter(help="The file to compress (- = stdin).")] = None,
    target: Annotated[Path | None, _HYPHEN, Parameter(help="The file to write (- = stdout).")] = None,
    /,
    *,
    bench: Annotated[
        list[Path] | None,
        Parameter(
            help="Compare with the usual compressors on these files, or a prepared folder's validation text.",
            consume_multiple=True,
        ),
    ] = None,
    stride: Stride = None,
    streams: Streams = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compress any file with a byte model, without loss.

    The model's distribution of each next byte goes through an entropy coder.
    Bits per byte are those of `eval` with the same --stride. What the model
    cannot shrink is stored, so nothing grows by more than a header. The file
    can be decompressed with the same artifact, the same versions and the same
    kind of CPU, whatever its number of cores. It keeps the source's rights and
    time; a file that exists is replaced with --force only.

    Example: bytegolf compress demo.bgolf notes.txt notes.bgz
    Example: bytegolf compress demo.bgolf --bench notes.txt data/default
    """
    from bytegolf.cli import show
    from bytegolf.infer import files as compressing
    from bytegolf.progress import Reporter

    reporter = Reporter()
    if bench:
        if source is not None:
            raise BytegolfError("both a file to compress and --bench are given: leave one out")
        with reporter:
            compared = compressing.bench(model, bench, stride, streams, reporter)
        screen().print(show.rows(compared.rows))
        finish(json, compared)
        return
    if source is None or target is None:
        raise BytegolfError("name a file to compress and one to write, or files to compare with --bench")
    _check_stdout(target, json)
    with reporter:
        result = compressing.compress(model, source, target, stride, streams, reporter, force)
    if target != compressing.PIPE:
        show.compression(screen(), result)
    finish(json, result)


@app.command(sort_key=61)
@answers("bytegolf.infer.results:Decompression")
def decompress(
    model: Model,
    source: Annotated[Path, _HYPHEN, Parameter(help="The compressed file (- = stdin).")],
    target: Annotated[Path, _HYPHEN, Parameter(help="The file to write (- = stdout).")],
    /,
    *,
    force: Force = False,
    json: Json = False,
) -> None:
    """Give back what `compress` compressed.

    With the very artifact that it was compressed with. Nothing is written
    unless length and checksum are those of the original.

    Example: bytegolf decompress demo.bgolf notes.bgz notes.txt
    """
    from bytegolf.infer import files as compressing
    from bytegolf.progress import Reporter

    _check_stdout(target, json)
    reporter = Reporter()
    with reporter:
        result = compressing.decompress(model, source, target, reporter, force)
    if target != compressing.PIPE:
        screen().print(f"{counted(result.original_bytes, 'byte')} at {result.bytes_per_second:,.0f} bytes/s")
    finish(json, result)


def _check_stdout(target: Path, json: bool) -> None:
    if str(target) == "-" and json:
        raise BytegolfError("stdout cannot take both the file and --json: name a file to write")
