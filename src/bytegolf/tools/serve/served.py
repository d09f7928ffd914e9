"""The models that are served, and the jobs that they do: generators for the worker's thread."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bytegolf.analyze.incremental import IncrementalReader, LiveReading, StateCache
from bytegolf.analyze.report import reference_tokenizer
from bytegolf.analyze.segment import Segmentation
from bytegolf.api.model import Model, load
from bytegolf.artifact.loading import data_of
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.infer import compressors
from bytegolf.infer.format import MAGIC
from bytegolf.tools.serve import answers
from bytegolf.tools.serve.bodies import too_large
from bytegolf.tools.serve.refusals import RefusedError

COMPRESSED_HEADER = 4096
"""What a compressed file may have more than its original, and then some."""

TELL_SECONDS = 0.1

Tell = Callable[[int | None], None]
"""Is called often by a long job: with how far it is, or with None, only to let others work."""


@dataclass(frozen=True)
class Served:
    """A model by its name."""

    name: str
    model: Model
    reader: IncrementalReader

    def about(self) -> answers.Model:
        """What /v1/models says of it."""
        config = self.model.config
        chunking = "router" if self.model.module.levels() else "soft" if self.model.levels else None
        return answers.Model(
            id=self.name,
            object="model",
            created=int(self.model.path.stat().st_mtime),
            owned_by="bytegolf",
            parameters=self.model.parameters,
            bytes=self.model.path.stat().st_size,
            sha256=self.model.sha256,
            tokenizer=self.model.tokenizer.name,
            vocab_size=self.model.tokenizer.vocab_size,
            levels=self.model.levels,
            chunking=chunking,
            window=config.train.seq_len,
            compresses=self.bytewise,
        )

    @property
    def bytewise(self) -> bool:
        """Whether it reads bytes."""
        return isinstance(self.model.tokenizer, ByteTokenizer)

    def read(self, data: bytes) -> Generator[None, None, LiveReading]:
        """Read a text, in steps."""
        return (yield from self.reader.steps(data))

    def segmented(self, data: bytes) -> Generator[None, None, answers.Segmented]:
        """The chunks of a text."""
        reading = (yield from self.read(data)).reading
        found = []
        for level in reading.levels:
            one = Segmentation(reading.data, level.boundary, level.candidates)
            texts = [piece.decode("utf-8", "backslashreplace") for piece in one.chunks()] if data else []
            found.append(answers.ChunkLevel(one.offsets(), texts, _numbers(level.p)))
        return answers.Segmented(self.name, len(reading.data), found)

    def scored(self, data: bytes) -> Generator[None, None, answers.Scored]:
        """The bits of a text."""
        reading = (yield from self.read(data)).reading
        bpb = reading.bpb if reading.data else None
        return answers.Scored(
            self.name, len(reading.data), reading.tokens, reading.nats, bpb, _numbers(reading.bits), []
        )

    def compressed(self, data: bytes, tell: Tell) -> Generator[int, None, bytes]:
        """The text compressed."""
        yield 0
        packed, told = io.BytesIO(), _Told(tell)
        stride = self.model.config.eval.stride
        self.model.codec.compress(io.BytesIO(data), packed, stride, size=len(data), progress=told.add)
        return packed.getvalue()

    def decompressed(self, data: bytes, limit: int, tell: Tell) -> Generator[int, None, bytes]:
        """The original of a compressed file, of at most ``limit`` bytes."""
        yield 0
        out, told = _Bounded(limit), _Told(tell, limit)
        self.model.codec.decompress(io.BytesIO(data), out, "the file", lambda count, _: told.add(count))
        return out.getvalue()


class _Told:
    """Counts the bytes that are done; ``tell`` is called with their number now and then, else with None."""

    def __init__(self, tell: Tell, limit: float = math.inf) -> None:
        self._count, self._tell, self._limit, self._next = 0, tell, limit, 0.0

    def add(self, count: int) -> None:
        self._count += count
        if self._count > self._limit:
            raise too_large(self._count, int(self._limit))
        now = time.monotonic()
        if due := now >= self._next:
            self._next = now + TELL_SECONDS
        self._tell(self._count if due else None)


class _Bounded(io.BytesIO):
    """Takes no more than a file may have."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > self._limit:
            raise too_large(self.tell() + len(data), self._limit)
        return super().write(data)


@dataclass(frozen=True)
class Collection:
    """All models that are served."""

    models: dict[str, Served]
    reference: SentencePieceTokenizer | None
    """the tokenizer whose tokens are shown beside the chunks"""
    limit: int
    """bytes that are taken at a time"""

    @staticmethod
    def open(
        sources: Sequence[Path], data: Path | None = None, bpe: str = "", limit: int = 262_144, cache: int = 256_000_000
    ) -> Collection:
        """Load models, each by the name of its folder or file; two of one name by their paths.

        ``cache``: bytes of what is remembered of texts that were read. Raises BytegolfError if one cannot be loaded.
        """
        if not sources:
            raise BytegolfError("name a model to serve: a run's folder or an artifact file")
        shared = StateCache(cache)
        short = [source.resolve().name for source in sources]
        names = short if len(set(short)) == len(short) else [str(source) for source in sources]
        if len(set(names)) < len(names):
            raise BytegolfError("the same model is named twice: a page shows it once")
        loaded = [load(source, data=data) for source in sources]
        served = [Served(name, model, model.reader(shared)) for name, model in zip(names, loaded, strict=True)]
        try:
            folder = data_of(served[0].reader.loaded, data)
        except BytegolfError:  # the data that it was trained on need not be here
            folder = Path()
        reference = reference_tokenizer(bpe, folder, [one.tokenizer for one in loaded])
        return Collection({one.name: one for one in served}, reference, limit)

    def warm_up(self) -> None:
        """Read a letter with each model, so that kernels are compiled before the first text comes."""
        for one in self.models.values():
            one.reader.read(b"a")

    def named(self, name: str) -> Served:
        """A model; "" is the first. Raises RefusedError with 404."""
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            said = f"there is no model {name!r} here: there is {', '.join(self.models)}"
            raise RefusedError(404, said, param="model", code="model_not_found")
        return self.models[name]

    def about(self) -> answers.Models:
        """What /v1/models says."""
        reference = self.reference.name if self.reference else None
        return answers.Models("list", [one.about() for one in self.models.values()], self.limit, reference, MAGIC.hex())


def packed_by_others(data: bytes) -> list[answers.Packed]:
    """The usual compressors on a text."""
    if not data:
        return []
    sizes = {name: len(squeeze(data)) for name, squeeze in compressors.best().items()}
    return [answers.Packed(name, size, 8 * size / len(data)) for name, size in sizes.items()]


def milliseconds(since: float) -> float:
    """Since a ``time.perf_counter()``."""
    return round(1e3 * (time.perf_counter() - since), 2)


def _numbers(values: Any) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]
