"""The best artifact of a run in so many bytes: `bytegolf export RUN --fit BYTES`, and the frontier it lies on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytegolf.artifact import export as exporting
from bytegolf.artifact.calibration import second_moments
from bytegolf.artifact.coders import CoderName
from bytegolf.artifact.fit import Point, descend, fill, mean_loss, measure_ways, sample
from bytegolf.artifact.gptq import quantize_state
from bytegolf.artifact.loading import build
from bytegolf.artifact.pack import Summary, read_artifact, write_artifact
from bytegolf.artifact.quantize import ROW_BITS, QuantizedTensor
from bytegolf.data.shards import TokenStream, open_split
from bytegolf.device import choose_device, pick_precision
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.score import score
from bytegolf.progress import Reporter
from bytegolf.tools.bundle.script import code_bytes

CODERS: tuple[CoderName, ...] = ("range", "lzma", "zstd", "zlib")
"""Those that are tried on the chosen plan; brotli never came before ``range`` and takes long."""


@dataclass(frozen=True)
class Fitted:
    """What came of a fit.

    Attributes:
        summary: the file.
        checkpoint: what it was made of.
        result: plain data: fit_bytes, coder, coders (bytes by coder), gptq, widths (by group), sample_tokens,
            sample_loss, sample_loss_unquantised (nats a token) and frontier (see ``_Fit.row``).
    """

    summary: Summary
    checkpoint: Path
    result: dict[str, Any]


def fit(
    source: Path,
    limit: int,
    out: Path | None,
    data: Path | None,
    overrides: Sequence[str],
    *,
    tokens: int,
    points: int,
    reporter: Reporter,
) -> Fitted:
    """Write the artifact of the run ``source`` with the lowest loss among those of at most ``limit`` bytes with code.

    Args:
        source: the run's folder.
        limit: code and model together, in bytes.
        out: the artifact; by default the run's own.
        data: the data folder; by default the run's own.
        overrides: changes of its configuration, as for a plain export.
        tokens: how much training text the choice is made on; as much of the validation split is scored for the
            frontier, which the choice does not look at.
        points: how many points of the frontier are written and scored; 0 = none.
        reporter: is told how far it is.

    Raises:
        BytegolfError: not even the smallest fits, besides what reading and writing raise.
    """
    with exporting.destination(source, out) as path:
        return _fit(_Fit(source, data, overrides, tokens, reporter), limit, path, points)


def _fit(job: _Fit, limit: int, path: Path, points: int) -> Fitted:
    room = limit - code_bytes(job.saved.config)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "artifact"
        chosen = job.choose(scratch, room)
        if chosen is None:
            smallest, run = job.write(scratch, job.path[-1], job.state).file_bytes, job.saved.run.path
            raise BytegolfError(
                f"even the smallest artifact of {run} takes {smallest:,} bytes and its code {limit - room:,}, "
                f"{smallest - room:,} more than the {limit:,} of --fit: train a smaller model"
            )
        point = chosen
        job.write(scratch, point, job.state)
        loss, solved = job.loss_of(scratch), job.solved(point)
        written = job.write(scratch, point, solved)
        gptq = written.file_bytes <= room and job.loss_of(scratch) < loss
        state: Mapping[str, Tensor | QuantizedTensor] = solved if gptq else job.state
        sizes = {coder: job.write(scratch, point, state, coder).file_bytes for coder in CODERS}
        coder = min(CODERS, key=lambda name: sizes[name])
        frontier = [job.row(scratch, other) for other in job.spread(points, point)] if points else []
    info = {"fit_bytes": limit, "widths": point.labels, "gptq": gptq}
    summary = job.write(path, point, state, coder, info)
    result = {
        "fit_bytes": limit,
        "coder": coder,
        "coders": sizes,
        "gptq": gptq,
        "widths": point.labels,
        "sample_tokens": job.windows.numel() - len(job.windows),
        "sample_loss": job.loss_of(path),
        "sample_loss_unquantised": job.whole,
        "frontier": frontier,
    }
    return Fitted(summary, job.saved.checkpoint, result)


class _Fit:
    """A run whose ways of storing have been measured."""

    def __init__(
        self, source: Path, data: Path | None, overrides: Sequence[str], tokens: int, reporter: Reporter
    ) -> None:
        self.saved = exporting.latest(source, overrides)
        config = self.saved.config
        self.data, self.tokens, self.reporter = data or Path(config.data.path), tokens, reporter
        self.state = self.saved.state
        device = choose_device(config.train.device)
        copy = {name: tensor.clone() for name, tensor in self.state.items()}
        self.model = build(config, copy, str(self.saved.checkpoint)).to(device).eval()
        self.model.precision = pick_precision(config.train.precision, device)
        self.windows = sample(self._stream("train"), config.train.seq_len, tokens)
        self.whole = mean_loss(self.model, self.windows)
        self.ways = measure_ways(self.model, self.state, self.windows, reporter.progress)
        self.path = descend(*self.ways)

    def _stream(self, split: str) -> TokenStream:
        tokenizer = self.saved.tokenizer
        return open_split(self.data, tokenizer.name, split, tokenizer.vocab_size)

    def choose(self, scratch: Path, room: int) -> Point | None:
        """The best point whose file, written with ``range``, takes at most ``room`` bytes; None if there is none."""
        for point in self.path:
            if point.payload_bytes > room:  # the header not yet in it
                continue
            written = self.write(scratch, point, self.state).file_bytes
            while written <= room:
                spare = room - written
                fuller = fill(point, *self.ways, point.payload_bytes + spare)
                if fuller.labels == point.labels:
                    return point
                if self.write(scratch, fuller, self.state).file_bytes <= room:
                    return fuller
                written += max(1, spare // 8)  # the sums promised too much: spend less
        return None

    def write(
        self,
        path: Path,
        point: Point,
        state: Mapping[str, Tensor | QuantizedTensor],
        coder: CoderName = "range",
        info: dict[str, Any] | None = None,
    ) -> Summary:
        """Write the artifact of a point."""
        self.reporter.progress(f"fit · writing an artifact of about {point.payload_bytes:,} bytes with {coder}")
        identity = self.saved.tokenizer.identity()
        told = exporting.info(self.saved.progress) | (info or {})
        return write_artifact(path, state, self.saved.config, identity, told, point.plan, coder)

    def solved(self, point: Point) -> dict[str, Tensor | QuantizedTensor]:
        """The weights with their linear maps quantised by GPTQ, as the point says, on training text."""
        self.reporter.progress("fit · GPTQ")
        self._load(self.state)
        names = {name for name, storage in point.plan.items() if storage.scheme in ROW_BITS and storage.group == 1}
        length = self.saved.config.train.seq_len
        moments = second_moments(self.model, self._stream("train"), length, self.tokens, names)
        return quantize_state(self.state, point.plan, moments, self.saved.config.export.gptq_damping)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(state[name])

    def loss_of(self, path: Path) -> float:
        """Nats a token of an artifact, as read back from the disk, on the sample."""
        self._load(read_artifact(path).state)
        return mean_loss(self.model, self.windows)

    def spread(self, count: int, chosen: Point) -> list[Point]:
        """So many points, evenly spaced by their size, and the chosen one."""
        first, last = self.path[0].payload_bytes, self.path[-1].payload_bytes
        wanted = [first + (last - first) * at / max(1, count - 1) for at in range(count)]
        picked = {min(range(len(self.path)), key=lambda at: abs(self.path[at].payload_bytes - size)) for size in wanted}
        return [point for at, point in enumerate(self.path) if at in picked or point is chosen]

    def row(self, scratch: Path, point: Point) -> dict[str, Any]:
        """A row of the frontier, of the file as read back: its bytes, losses and widths."""
        written = self.write(scratch, point, self.state)
        sample_loss = self.loss_of(scratch)
        length = self.saved.config.train.seq_len
        found = score(self.model, self._stream("val"), self.saved.tokenizer, length, limit=self.tokens, drop_tail=True)
        return {
            "model_bytes": written.file_bytes,
            "total_bytes": written.file_bytes + code_bytes(self.saved.config),
            "sample_loss": sample_loss,
            "added_loss_expected": point.loss if math.isfinite(point.loss) else None,
            "bpb": found.bpb,
            "tokens": found.tokens,
            "widths": point.labels,
        }
