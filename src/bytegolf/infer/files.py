"""Compress and decompress files as gzip and zstd do, and compare with the usual compressors."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import torch

from bytegolf.artifact.loading import LoadedModel, in_fp32, load_model
from bytegolf.config import Config
from bytegolf.data.dataset import open_split
from bytegolf.data.tokenizer import BYTE_TOKENIZERS, ByteTokenizer, load_tokenizer
from bytegolf.errors import BytegolfError, sized
from bytegolf.files import disk_errors, write_atomically
from bytegolf.folders import check_file
from bytegolf.infer import compressors
from bytegolf.infer.codec import Codec
from bytegolf.infer.results import (
    CompressedFiles,
    Compression,
    CompressorComparison,
    CompressorResult,
    DecompressedFiles,
    Decompression,
)
from bytegolf.progress import Pace, Reporter

_Result = TypeVar("_Result")

PIPE = Path("-")
"""Stands for stdin and stdout."""

SUFFIX = ".bgz"
"""What names of compressed files end in."""


def codec_of(loaded: LoadedModel) -> Codec:
    """The codec of a loaded model: the same artifact in fp32 on the CPU, with the chunk capacity of ``eval``.

    Raises BytegolfError for a model that does not read bytes.
    """
    artifact = loaded.artifact
    if artifact.tokenizer.get("kind") != "byte":
        raise BytegolfError(
            f"{loaded.path} reads {artifact.tokenizer.get('name')} tokens, whose tokenizer normalises text, so that "
            "bytes would not come back as they were: choose an artifact with the tokenizer byte260 or byte256"
        )
    chosen = in_fp32(loaded, torch.device("cpu"))
    return Codec(chosen.model, bytes.fromhex(artifact.sha256), chosen.config.train.seq_len)


def open_codec(model: Path) -> tuple[Codec, LoadedModel]:
    """``codec_of`` a run's folder or an artifact file, and what was loaded."""
    loaded = load_model(model, device="cpu", precision="fp32")
    return codec_of(loaded), loaded


@dataclass(frozen=True)
class Settings:
    """How files are compressed or decompressed."""

    model: Path | None = None
    """a run's folder or an artifact file; None: context mixing alone"""
    output: Path | None = None
    """the file to write, "-" for stdout, or a folder to write into; None: beside the source, under its name"""
    force: bool = False
    """replace what exists, compress what is compressed, write binary data on a terminal"""
    remove: bool = False
    """delete each source once its target is complete"""
    stride: int | None = None
    """as ``eval`` has it; None: as the model's configuration says"""
    streams: int = 0
    """parts of a block coded side by side; 0: as many as pay"""


def compress(sources: list[Path], settings: Settings, reporter: Reporter) -> CompressedFiles:
    """Compress each of ``sources`` ("-": stdin), ``NAME`` to ``NAME.bgz`` unless ``settings`` say otherwise.

    A target is seen once it is complete. If one of several files fails, the others are compressed all the same. Raises
    BytegolfError for what failed: where something would be replaced unasked, say, or binary data meet a terminal.
    """
    codec, config, sha256 = _codec(settings)
    stride = settings.stride if settings.stride is not None else config.eval.stride if config else 0

    def one(source: Path, target: Path) -> Compression:
        progress = _Progress(reporter, "compressed")
        with _reading(source) as (file, known):
            size = known.st_size if known else None
            told = functools.partial(progress, total=size)
            report = _write(target, lambda out: codec.compress(file, out, stride, settings.streams, size, told), known)
        seconds, read = progress.seconds(), report.original_bytes
        return Compression(
            str(source),
            str(target),
            **dataclasses.asdict(report),
            bits_per_byte=8 * report.compressed_bytes / read if read else None,
            stride=stride,
            seconds=round(seconds, 3),
            bytes_per_second=round(read / seconds, 1),
            artifact_sha256=sha256,
        )

    found = _each(sources, settings, False, one, reporter)
    return CompressedFiles(found, sum(file.original_bytes for file in found), sum(f.compressed_bytes for f in found))


def decompress(sources: list[Path], settings: Settings, reporter: Reporter) -> DecompressedFiles:
    """Decompress each of ``sources`` ("-": stdin), ``NAME.bgz`` to ``NAME`` unless ``settings`` say otherwise.

    A target appears once all of it is there and its checksum is right. Errors are those of ``compress``.
    """
    codec = _codec(settings)[0]

    def one(source: Path, target: Path) -> Decompression:
        progress = _Progress(reporter, "decompressed")
        where = "stdin" if source == PIPE else str(source)
        with _reading(source) as (file, known):
            size = _write(target, lambda out: codec.decompress(file, out, where, progress), known)
        seconds = progress.seconds()
        return Decompression(str(source), str(target), size, round(seconds, 3), round(size / seconds, 1))

    found = _each(sources, settings, True, one, reporter)
    return DecompressedFiles(found, sum(file.original_bytes for file in found))


def _codec(settings: Settings) -> tuple[Codec, Config | None, str | None]:
    """The codec, and of what model."""
    if settings.model is None:
        return Codec(), None, None
    codec, loaded = open_codec(settings.model)
    return codec, loaded.config, loaded.artifact.sha256


def _each(
    sources: list[Path],
    settings: Settings,
    back: bool,
    work: Callable[[Path, Path], _Result],
    reporter: Reporter,
) -> list[_Result]:
    """What ``work`` makes of each source and its target; sources go afterwards where that is asked for."""
    output = settings.output
    if len(sources) > 1 and output is not None and output != PIPE and not output.is_dir():
        raise BytegolfError(
            f"{output} is one file for {len(sources)}: name a folder that exists, or leave out --output"
        )
    if len(sources) > 1 and output == PIPE and not back:
        raise BytegolfError("several files cannot be compressed to one stdout: make one of them first, as with tar")
    found, failed = [], []
    for source in sources:
        try:
            target = target_of(source, output, back, settings.force)
            _check_target(source, target, settings.force, binary=not back)
            found.append(work(source, target))
            if settings.remove and PIPE not in (source, target):
                with disk_errors(source, "remove"):
                    source.unlink()
        except BytegolfError as error:
            if len(sources) == 1:
                raise
            failed.append(str(error))
            reporter.warn(str(error))
    if failed:
        raise BytegolfError(f"{len(failed)} of {len(sources)} files failed, {failed[0]}")
    return found


def target_of(source: Path, output: Path | None, back: bool, force: bool = False) -> Path:
    """Where the target of ``source`` goes; ``back``: it is decompressed. The suffix is added or taken off.

    Raises BytegolfError for a name that says it is compressed already (unless ``force``), or that has no suffix to take
    off where no name is given.
    """
    if output is not None and (output == PIPE or not output.is_dir()):
        return output
    if source == PIPE:
        if output is not None:
            raise BytegolfError(f"stdin has no name: name a file to write, not the folder {output}")
        return PIPE
    suffixed = source.name.endswith(SUFFIX) and source.name != SUFFIX
    if back:
        if not suffixed:
            raise BytegolfError(f"{source} does not end in {SUFFIX}: say with --output what to write")
        name = source.name[: -len(SUFFIX)]
    elif suffixed and not force:
        raise BytegolfError(f"{source} ends in {SUFFIX} already: add --force to compress it once more")
    else:
        name = source.name + SUFFIX
    return (source.parent if output is None else output) / name


def bench(sources: list[Path], settings: Settings, reporter: Reporter) -> CompressorComparison:
    """Each source's bits per byte and MB/s by the usual compressors and by this one, which must give it back.

    A folder made by `prepare` stands for the text of its validation split.
    """
    codec, config, _ = _codec(settings)
    stride = settings.stride if settings.stride is not None else config.eval.stride if config else 0
    ours = f"bytegolf, {config.name}" if config else "bytegolf"
    progress = _Progress(reporter, "compressed")
    texts = {str(source): _contents(source) for source in sources}
    total = sum(map(len, texts.values()))

    def by_us(text: bytes) -> bytes:
        packed = io.BytesIO()
        told = functools.partial(progress, total=total)
        codec.compress(io.BytesIO(text), packed, stride, settings.streams, len(text), told)
        return packed.getvalue()

    rows = []
    for source, text in texts.items():
        if not text:
            raise BytegolfError(f"{source} is empty: there is nothing to compare")
        for name, squeeze in {**compressors.best(), ours: by_us}.items():
            started = time.perf_counter()
            packed = squeeze(text)
            pace = len(text) / 1e6 / max(1e-9, time.perf_counter() - started)
            bits = 8 * len(packed) / len(text)
            rows.append(CompressorResult(source, name, len(text), len(packed), bits, pace))
        unpacked = io.BytesIO()
        codec.decompress(io.BytesIO(packed), unpacked)
        if unpacked.getvalue() != text:
            raise BytegolfError(f"{source} did not come back as it was: report this as a bug")
    return CompressorComparison(rows)


def split_text(data: Path, split: str) -> bytes:
    """The bytes of a split's documents, one behind the other, from its shards of bytes."""
    there = (name for name in BYTE_TOKENIZERS if (data / "datasets" / f"fineweb10B_{name}").is_dir())
    tokenizer = load_tokenizer(next(there, ByteTokenizer().name))
    stream = open_split(data, tokenizer.name, split, tokenizer.vocab_size)
    return tokenizer.decode(stream.slice(0, len(stream)))


def _contents(source: Path) -> bytes:
    if source.is_dir():
        return split_text(source, "val")
    with disk_errors(source, "read"):
        return source.read_bytes()


class _Progress:
    """Tells how far compressing or decompressing is."""

    def __init__(self, reporter: Reporter, done: str) -> None:
        self._reporter, self._done, self._pace = reporter, done, Pace()

    def __call__(self, count: int, total: int | None) -> None:
        self._pace.total = total
        self._pace.done += count
        self._reporter.progress(f"{self._done} {sized(self._pace.done)} · {self._pace.line(self._pace.done)}")

    def seconds(self) -> float:
        """Since the start; above 0."""
        return self._pace.seconds()


def _check_target(source: Path, target: Path, force: bool, binary: bool) -> None:
    """Raise unless writing ``target`` destroys nothing; ``binary``: what is written is for no terminal.

    A file is never its own target, whatever is forced: what is read would be gone if anything failed.
    """
    if target == PIPE:
        if binary and sys.stdout.isatty() and not force:
            raise BytegolfError("compressed data are not for a terminal: name a file to write, or redirect stdout")
        return
    if not target.exists():
        return
    if source != PIPE and source.exists() and target.samefile(source):
        raise BytegolfError(f"{target} is the file that is read: name another one to write")
    if not force and target.is_file():
        raise BytegolfError(f"{target} exists already: name another file, or add --force to replace it")


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[tuple[IO[bytes], os.stat_result | None]]:
    """The file, and what is known of it if it is a regular one."""
    if source == PIPE:
        yield sys.stdin.buffer, None
        return
    if source.exists():
        check_file(source, "name a file, or - for stdin", pipes=True)
    with disk_errors(source, "read"):
        file = source.open("rb")
        known = os.fstat(file.fileno()) if source.is_file() else None
    with file:
        yield file, known


def _write(target: Path, write: Callable[[IO[bytes]], _Result], like: os.stat_result | None) -> _Result:
    """Have ``write`` make the target, of which nothing is seen before it is complete; what ``write`` gives.

    The target gets the rights and times of the source, as gzip, xz and zstd have it: a private file stays private.
    """
    results: list[_Result] = []
    if target != PIPE:
        write_atomically(target, lambda file: results.append(write(file)), like)
        return results[0]
    with tempfile.TemporaryFile() as file:
        result = write(file)
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    return result
