"""Verbs that compress files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, FILES, Json, answers, app, finish, screen
from bytegolf.errors import BytegolfError, counted

if TYPE_CHECKING:
    from bytegolf.infer.files import Settings

Files = Annotated[
    list[Path] | None, Parameter(allow_leading_hyphen=True, help="Files (- = stdin, also where none is named).")
]
Model = Annotated[
    Path | None,
    Parameter(name=("--model", "-m"), help="A run's folder or an artifact file; without one, context mixing alone."),
]
Output = Annotated[
    Path | None,
    Parameter(
        name=("--output", "-o"),
        allow_leading_hyphen=True,
        help="The file to write (- = stdout), or a folder to write into. By default beside each file.",
    ),
]
Stdout = Annotated[bool, Parameter(name=("--stdout", "-c"), help="Write to stdout.")]
Force = Annotated[
    bool,
    Parameter(name=("--force", "-f"), help="Replace files that exist; write on a terminal."),
]
Keep = Annotated[bool, Parameter(name=("--keep", "-k"), help="Keep the files (the default).")]
Remove = Annotated[bool, Parameter(name="--rm", help="Remove each file once it is done.")]
Stride = Annotated[
    int | None,
    Parameter(help="New bytes per window of the model; 0 = windows do not overlap. As `eval` has it.", validator=COUNT),
]
Streams = Annotated[
    int,
    Parameter(
        help="With a model: parts coded side by side; 0 = as many as pay.", validator=validators.Number(gte=0, lte=4096)
    ),
]


@app.command(group=FILES, sort_key=40)
@answers("bytegolf.infer.results:CompressedFiles", "bytegolf.infer.results:CompressorComparison")
def compress(
    files: Files = None,
    /,
    *,
    model: Model = None,
    output: Output = None,
    stdout: Stdout = False,
    decompress: Annotated[bool, Parameter(name=("--decompress", "-d"), help="As `bytegolf decompress`.")] = False,
    keep: Keep = False,
    rm: Remove = False,
    force: Force = False,
    bench: Annotated[
        list[Path] | None,
        Parameter(
            help="Compare with the usual compressors on these files, or a prepared folder's validation text.",
            consume_multiple=True,
        ),
    ] = None,
    stride: Stride = None,
    streams: Streams = 0,
    json: Json = False,
) -> None:
    """Compress any files, without loss: NAME becomes NAME.bgz.

    Context mixing predicts each bit from the bytes so far, and an entropy coder
    writes what it did not know. With --model a byte model's distributions are
    mixed in: far better on text like the model's, but slow, and the file needs
    the same artifact again. What does not get smaller is stored. Options are
    those of gzip and zstd: files are kept, existing ones replaced with --force
    only, and rights and times go over. Without files it reads stdin.

    Example: bytegolf compress notes.txt
    Example: bytegolf compress --model demo.bgolf notes.txt -o small.bgz
    Example: bytegolf compress notes.txt --rm --force
    Example: bytegolf compress --bench notes.txt data/default
    """
    from bytegolf.cli import show
    from bytegolf.infer import files as compressing
    from bytegolf.progress import Reporter

    if bench:
        if files:
            raise BytegolfError("both files to compress and --bench are given: leave one out")
        reporter = Reporter()
        with reporter:
            compared = compressing.bench(bench, compressing.Settings(model, stride=stride, streams=streams), reporter)
        screen(json).print(show.rows(compared.rows))
        finish(json, compared)
        return
    settings = _settings(model, output, stdout, force, keep, rm, json, stride, streams)
    if decompress:
        _decompress(files, settings, json)
        return
    reporter = Reporter()
    with reporter:
        result = compressing.compress(_named(files), settings, reporter)
    for file in result.files:
        if file.target != "-":
            show.compression(screen(json), file)
    finish(json, result)


@app.command(group=FILES, sort_key=41)
@answers("bytegolf.infer.results:DecompressedFiles")
def decompress(
    files: Files = None,
    /,
    *,
    model: Model = None,
    output: Output = None,
    stdout: Stdout = False,
    keep: Keep = False,
    rm: Remove = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Give back what `compress` compressed: NAME.bgz becomes NAME.

    With the very artifact that it was compressed with, if there was one.
    Nothing is written unless the checksum is that of the original.

    Example: bytegolf decompress notes.txt.bgz
    Example: bytegolf decompress --model demo.bgolf small.bgz -o notes.txt
    """
    _decompress(files, _settings(model, output, stdout, force, keep, rm, json), json)


def _decompress(files: list[Path] | None, settings: Settings, json: bool) -> None:
    from bytegolf.infer import files as compressing
    from bytegolf.progress import Reporter

    reporter = Reporter()
    with reporter:
        result = compressing.decompress(_named(files), settings, reporter)
    for file in result.files:
        if file.target != "-":
            screen(json).print(
                f"{file.target}: {counted(file.original_bytes, 'byte')} at {file.bytes_per_second:,.0f} bytes/s"
            )
    finish(json, result)


def _settings(
    model: Path | None,
    output: Path | None,
    stdout: bool,
    force: bool,
    keep: bool,
    remove: bool,
    json: bool,
    stride: int | None = None,
    streams: int = 0,
) -> Settings:
    from bytegolf.infer import files as compressing

    if stdout and output is not None:
        raise BytegolfError("both --output and --stdout are given: leave one out")
    if stdout:
        output = compressing.PIPE
    if output == compressing.PIPE and json:
        raise BytegolfError("stdout cannot take both the file and --json: name a file to write")
    return compressing.Settings(model, output, force, remove and not keep, stride, streams)


def _named(files: list[Path] | None) -> list[Path]:
    """The files that were named; stdin, if none was and somebody is writing there.

    A word with a dash that is no file was meant as an option, and nothing is done without it.
    """
    if files:
        for path in files:
            if str(path).startswith("-") and str(path) != "-" and not path.exists():
                raise BytegolfError(f"{path} is no option (see `bytegolf compress --help`) and no file that is there")
        return files
    if sys.stdin.isatty():
        raise BytegolfError("name files, or send something to stdin")
    return [Path("-")]
