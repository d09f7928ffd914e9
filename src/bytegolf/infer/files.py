"""Compress and decompress files with an artifact, and compare it with the usual compressors."""

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
from pathlib import Path
from typing import IO, TypeVar

import torch

from bytegolf.artifact.loading import LoadedModel, in_fp32
from bytegolf.artifact.opening import load_model
from bytegolf.data.shards import open_split
from bytegolf.data.tokenizer import BYTE_TOKENIZERS, ByteTokenizer, load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, write_atomically
from bytegolf.infer import compressors
from bytegolf.infer.codec import Codec
from bytegolf.infer.results import Compression, CompressorComparison, CompressorResult, Decompression
from bytegolf.progress import Pace, Reporter

_Result = TypeVar("_Result")

PIPE = Path("-")
"""Stands for stdin and stdout."""


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


def compress(
    model: Path,
    source: Path,
    target: Path,
    stride: int | None,
    streams: int,
    reporter: Reporter,
    force: bool = False,
) -> Compression:
    """Compress ``source`` into ``target`` ("-": stdin, stdout). ``stride``: as ``eval`` has it by default.

    Raises BytegolfError where that would replace a file unasked (``force``), or put binary data on a terminal.
    """
    _check_target(source, target, force, binary=True)
    codec, opened = open_codec(model)
    stride = opened.config.eval.stride if stride is None else stride
    progress = _Progress(reporter, "compressed")
    with _reading(source) as (file, known):
        size = known.st_size if known else None
        told = functools.partial(progress, total=size)
        report = _write(target, lambda out: codec.compress(file, out, stride, streams, size, told), known)
    seconds = progress.seconds()
    read = report.original_bytes
    return Compression(
        **dataclasses.asdict(report),
        bits_per_byte=8 * report.compressed_bytes / read if read else None,
        stride=stride,
        seconds=round(seconds, 3),
        bytes_per_second=round(read / seconds, 1),
        artifact_sha256=opened.artifact.sha256,
    )


def decompress(model: Path, source: Path, target: Path, reporter: Reporter, force: bool = False) -> Decompression:
    """Decompress ``source`` into ``target`` ("-": stdin, stdout).

    The target appears once all of it is there and its checksum is right. Raises BytegolfError where that would replace
    a file unasked (``force``).
    """
    _check_target(source, target, force, binary=False)
    codec, _ = open_codec(model)
    progress = _Progress(reporter, "decompressed")
    where = "stdin" if source == PIPE else str(source)
    with _reading(source) as (file, known):
        size = _write(target, lambda out: codec.decompress(file, out, where, progress), known)
    seconds = progress.seconds()
    return Decompression(size, round(seconds, 3), round(size / seconds, 1))


def bench(
    model: Path, sources: list[Path], stride: int | None, streams: int, reporter: Reporter
) -> CompressorComparison:
    """Each source's bits per byte and MB/s by the usual compressors and by the model, which must give it back.

    A folder made by `prepare` stands for the text of its validation split.
    """
    codec, opened = open_codec(model)
    stride = opened.config.eval.stride if stride is None else stride
    progress = _Progress(reporter, "compressed")
    texts = {str(source): _contents(source) for source in sources}
    total = sum(map(len, texts.values()))

    def by_model(text: bytes) -> bytes:
        packed = io.BytesIO()
        told = functools.partial(progress, total=total)
        codec.compress(io.BytesIO(text), packed, stride, streams, len(text), told)
        return packed.getvalue()

    rows = []
    for source, text in texts.items():
        if not text:
            raise BytegolfError(f"{source} is empty: there is nothing to compare")
        for name, squeeze in {**compressors.best(), opened.config.name: by_model}.items():
            started = time.perf_counter()
            packed = squeeze(text)
            pace = len(text) / 1e6 / max(1e-9, time.perf_counter() - started)
            bits = 8 * len(packed) / len(text)
            rows.append(CompressorResult(source, name, len(text), len(packed), bits, pace))
        unpacked = io.BytesIO()
        codec.decompress(io.BytesIO(packed), unpacked)
        if unpacked.getvalue() != text:
            raise BytegolfError(f"{source} did not come back from the model as it was: report this as a bug")
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
        self._reporter.progress(f"{self._done} {self._pace.done / 1e6:.2f} MB · {self._pace.line(self._pace.done)}")

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
