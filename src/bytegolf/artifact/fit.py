"""The best artifact of a run in so many bytes, and the frontier that it lies on: `bytegolf export RUN --fit BYTES`.

Every group of matrices (``quantize.group_of``) is quantised alone, in every way there is (``storage_options``), and the
loss on a sample of *training* text says what that costs. How many bytes it saves, the coder itself says. From the
widest plan the step with the least loss per byte saved is taken again and again; the plans on that way are the
frontier, and the first that is small enough is the answer.

Two assumptions make this quick: losses of groups add up, and so do bytes. Both are checked afterwards on the file.

``artifact.fit`` chooses by sums over groups of tensors; here files are written, and what counts is their size and
their loss as read back.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytegolf.artifact import export as exporting
from bytegolf.artifact.container import CoderName
from bytegolf.artifact.export import primer_of
from bytegolf.artifact.gptq import quantize_state, sample_windows, second_moments, with_gptq
from bytegolf.artifact.loading import build
from bytegolf.artifact.pack import Summary, coded_bits, read_artifact, write_artifact
from bytegolf.artifact.quantize import (
    Kinds,
    Plan,
    QuantizedTensor,
    Storage,
    coded,
    fake_quantize,
    group_of,
    quantize,
    steers,
    storage_of,
)
from bytegolf.artifact.results import FitResult, FrontierPoint
from bytegolf.bpb import Score
from bytegolf.config import ExportConfig
from bytegolf.data.dataset import TokenStream, open_split
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.device import pick_device, pick_precision, prepare_device
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import StorageKind, storage_kinds
from bytegolf.model.lm import LanguageModel
from bytegolf.progress import Pace, Teller

# --------------------------------------------------------------------------------------------------------- the frontier


WIDTHS = (8, 7, 6, 5, 4, 3)
PRUNED = ((6, 0.25), (6, 0.5), (4, 0.25), (4, 0.5), (3, 0.75), (3, 0.9), (3, 0.97))
"""Bits, and shares of a row's weights whose pruning is tried at them. The last ones keep little of a model, and are for
limits far below its size."""

BATCH = 8
"""Windows in one forward pass."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class StorageOption:
    """One way to store the tensors of a group."""

    label: str
    """for people: '6', or '6, 25 % pruned'"""
    storages: Plan
    bits: float
    """what the coder makes of them together"""
    loss: float
    """what they cost, in nats per token of the sample; never negative"""


@dataclass(frozen=True)
class Options:
    """What there is to choose from."""

    groups: Mapping[str, list[StorageOption]]
    """the ways to store each group, the widest first"""
    fixed: Plan
    """the storage of all other tensors, which take ``fixed_bits``"""
    fixed_bits: float


@dataclass(frozen=True)
class Point:
    """A plan on the frontier, with what it should take and cost by the sums over its groups."""

    plan: Plan
    labels: dict[str, str]
    payload_bytes: int
    loss: float


def groups_of(state: Mapping[str, Tensor], kinds: Kinds) -> dict[str, list[str]]:
    """The tensors that may have fewer bits, by group: all matrices that steer nothing."""
    groups: dict[str, list[str]] = {}
    for name, tensor in sorted(state.items()):
        if tensor.numel() and not steers(kinds.get(name, "weight"), tuple(tensor.shape)):
            groups.setdefault(group_of(name), []).append(name)
    return groups


def storage_options(names: list[str], state: Mapping[str, Tensor], kinds: Kinds) -> dict[str, dict[str, Storage]]:
    """The ways to store a group, the widest first, by label."""
    found = {
        str(bits): {name: _storage(kinds.get(name, "weight"), state[name], bits) for name in names} for bits in WIDTHS
    }
    for bits, share in PRUNED:
        found[f"{bits}, {share:.0%} pruned"] = {
            name: storage if kinds.get(name) == "rule" else replace(storage, prune=share)
            for name, storage in found[str(bits)].items()
        }
    return found


def _storage(kind: StorageKind, tensor: Tensor, bits: int) -> Storage:
    """As the export stores large ones (small matrices would stay fp16 there, which no limit can afford)."""
    how = storage_of if kind == "table" else coded
    return how(kind, tuple(tensor.shape), ExportConfig(bits=bits, embedding_bits=bits, ngram_bits=bits))


@torch.inference_mode()
def mean_loss(model: LanguageModel, windows: Tensor) -> float:
    """Nats per token over the windows, (N, L + 1) token ids."""
    total = 0.0
    for part in torch.split(windows.to(model.embedding.weight.device), BATCH):
        total += float(model.losses(model(part[:, :-1]), part[:, 1:]).double().sum())
    return total / (windows.numel() - len(windows))


def measure_options(model: LanguageModel, state: Mapping[str, Tensor], windows: Tensor, say: Say) -> Options:
    """What every way to store every group takes and costs. ``model`` holds ``state``, and does so again afterwards."""
    kinds = storage_kinds(model)
    groups = groups_of(state, kinds)
    tried = {group: storage_options(names, state, kinds) for group, names in groups.items()}
    fixed = {name: Storage("fp32") for name in state if not any(name in names for names in groups.values())}
    fixed_bits = sum(coded_bits([quantize(name, state[name], storage) for name, storage in fixed.items()]).values())
    held = model.state_dict()
    whole = mean_loss(model, windows)
    found: dict[str, list[StorageOption]] = {group: [] for group in groups}
    labels = dict.fromkeys(label for plans in tried.values() for label in plans)
    pace = Pace(len(labels))
    for done, label in enumerate(labels):
        pace.done = done
        say(" · ".join(filter(None, ("fit", f"measured {done} of {len(labels)} widths", pace.left()))))
        there = {name: how for plans in tried.values() for name, how in plans.get(label, {}).items()}
        bits = coded_bits([quantize(name, state[name], storage) for name, storage in there.items()])
        for group, plans in tried.items():
            if label not in plans:
                continue
            # one group at a time, all others whole: what several cost together is taken to be the sum, which the file
            # that is written in the end is measured against
            for name, storage in plans[label].items():
                held[name].copy_(fake_quantize(state[name], storage))
            loss = mean_loss(model, windows) - whole
            for name in plans[label]:
                held[name].copy_(state[name])
            if not math.isfinite(loss):  # NaN compares as nothing: such a way would be chosen, or not, by chance
                loss = math.inf
            taken = sum(bits[name] for name in groups[group])
            found[group].append(StorageOption(label, plans[label], taken, max(loss, 0.0)))
    return Options(found, fixed, fixed_bits)


def descend(options: Options) -> list[Point]:
    """The frontier by the sums, from the widest plan to the narrowest.

    Two groups A and B whose 8 bits take 800 and 80 bits: if 4 bits of A cost 0.1 nats and of B 0.02, A goes first, as
    it gives up 0.1 / 400 nats per bit and B 0.02 / 40.
    """
    chosen = {group: max(ways, key=lambda way: way.bits) for group, ways in options.groups.items()}
    points = []
    while True:
        points.append(_point(chosen, options))
        moves = [
            ((way.loss - now.loss) / (now.bits - way.bits), -way.bits, group, way)
            for group, now in chosen.items()
            for way in options.groups[group]
            if way.bits < now.bits
        ]
        if not moves:
            return points
        _, _, group, way = min(moves, key=lambda move: move[:3])
        chosen[group] = way


def fill(point: Point, options: Options, room: int) -> Point:
    """What becomes of a point if the bytes that it leaves of ``room`` are spent where they lower the loss most each.

    The descent takes large steps (a table may lose four bits at once), and so may land far below.
    """
    chosen = {
        group: next(way for way in options.groups[group] if way.label == label) for group, label in point.labels.items()
    }
    while True:
        left = 8 * room - options.fixed_bits - sum(way.bits for way in chosen.values())
        moves = [
            ((now.loss - way.loss) / (way.bits - now.bits), group, way)
            for group, now in chosen.items()
            for way in options.groups[group]
            if 0 < way.bits - now.bits <= left and way.loss < now.loss
        ]
        if not moves:
            return _point(chosen, options)
        _, group, way = max(moves, key=lambda move: move[:2])
        chosen[group] = way


def _point(chosen: Mapping[str, StorageOption], options: Options) -> Point:
    plan = dict(options.fixed) | {name: storage for way in chosen.values() for name, storage in way.storages.items()}
    size = math.ceil((options.fixed_bits + sum(way.bits for way in chosen.values())) / 8)
    labels = {group: way.label for group, way in chosen.items()}
    return Point(plan, labels, size, sum(way.loss for way in chosen.values()))


# ----------------------------------------------------------------------------------------------------------------- fits


CODERS: tuple[CoderName, ...] = ("range", "zstd", "zlib")
"""Those that are tried on the chosen plan; of equal sizes the first wins."""

Scorer = Callable[[LanguageModel, TokenStream, Tokenizer, int, int], Score]
"""Scores the first so many tokens (the last argument) of a stream in windows of a length (the one before)."""


@dataclass(frozen=True)
class FitOptions:
    """What may be chosen about a fit."""

    out: Path | None = None
    """the artifact; by default the run's own"""
    data: Path | None = None
    """the data folder; by default the run's own"""
    overrides: Sequence[str] = ()
    """changes of the run's configuration, as for a plain export"""
    tokens: int = 32_768
    """how much training text the choice is made on; as much of the validation split is scored for the frontier, which
    the choice does not look at"""
    points: int = 0
    """how many points of the frontier are written and scored"""


def fit(source: Path, limit: int, code_bytes: int, options: FitOptions, *, score: Scorer, tell: Teller) -> FitResult:
    """Write the artifact of the run ``source`` with the lowest loss among those of at most ``limit`` bytes with code.

    Args:
        source: the run's folder.
        limit: code and model together, in bytes.
        code_bytes: what of that the code takes.
        options: where to, from what.
        score: for the points of the frontier.
        tell: is told how far it is.

    Raises BytegolfError: not even the smallest fits, besides what reading and writing raise.
    """
    with exporting.destination(source, options.out) as path, tempfile.TemporaryDirectory() as folder:
        job = _Fit(source, options, tell, Path(folder) / "artifact")
        room = limit - code_bytes
        point = job.choose(room)
        if point is None:
            smallest = job.write(job.path[-1], job.state).file_bytes
            raise BytegolfError(
                f"even the smallest artifact of {source} takes {smallest:,} bytes and its code {code_bytes:,}, "
                f"{smallest - room:,} more than the {limit:,} of --fit: train a smaller model"
            )
        # GPTQ changes codes, so sizes and losses change by a little as well: it is taken where the file, as written,
        # still fits and reads back better
        job.write(point, job.state)
        loss, solved = job.loss_of(job.scratch), job.solved(point)
        gptq = job.write(point, solved).file_bytes <= room and job.loss_of(job.scratch) < loss
        state: Mapping[str, Tensor | QuantizedTensor] = solved if gptq else job.state
        sizes = {coder: job.write(point, state, coder).file_bytes for coder in CODERS}
        coder = min(CODERS, key=lambda name: sizes[name])
        spread = job.spread(options.points, point) if options.points else []
        frontier = [job.measured(other, code_bytes, score) for other in spread]
        info = {"fit_bytes": limit, "widths": point.labels, "gptq": gptq}
        summary = job.write(point, state, coder, path, info)
        return FitResult(
            artifact=path,
            checkpoint=job.saved.checkpoint,
            sha256=summary.sha256,
            params=summary.parameters,
            model_bytes=summary.file_bytes,
            fit_bytes=limit,
            coder=coder,
            coders={str(name): size for name, size in sizes.items()},
            gptq=gptq,
            widths=point.labels,
            sample_tokens=job.windows.numel() - len(job.windows),
            sample_loss=job.loss_of(path),
            sample_loss_unquantised=job.whole,
            frontier=frontier,
        )


class _Fit:
    """A run whose storage options have been measured."""

    def __init__(self, source: Path, options: FitOptions, tell: Teller, scratch: Path) -> None:
        self.saved = exporting.latest(source, options.overrides)
        config = self.saved.config
        self.data, self.tokens = options.data or self.saved.data, options.tokens
        self.tell, self.scratch = tell, scratch
        self.state = self.saved.state
        device = prepare_device(pick_device(config.train.device))
        copy = {name: tensor.clone() for name, tensor in self.state.items()}
        self.model = build(config, copy, str(self.saved.checkpoint)).to(device).eval()
        self.model.precision = pick_precision(config.train.precision, device)
        self.windows = sample_windows(self._stream("train"), config.train.seq_len, self.tokens)
        self.whole = mean_loss(self.model, self.windows)
        self.options = measure_options(self.model, self.state, self.windows, tell.progress)
        self.path = descend(self.options)
        self.primer = primer_of(config, self.saved.tokenizer, self.data)

    def _stream(self, split: str) -> TokenStream:
        tokenizer = self.saved.tokenizer
        return open_split(self.data, tokenizer.name, split, tokenizer.vocab_size)

    def choose(self, room: int) -> Point | None:
        """The best point whose file, written with ``range``, takes at most ``room`` bytes; None if there is none."""
        # Example: room for 10,000 bytes. By its sums the path has points of 12,000, 10,400, 9,500, 8,000 … bytes. The
        # first within 10,000 is written: 9,700 with its header. 300 are spare, so `fill` may spend them where they help
        # most; should that file take 10,050, it tries again with an eighth less, until one fits or nothing changes.
        primed = len(self.primer.packed) if self.primer else 0
        for point in self.path:
            if point.payload_bytes + primed > room:  # the header not yet in it
                continue
            written = self.write(point, self.state).file_bytes
            while written <= room:
                spare = room - written
                fuller = fill(point, self.options, point.payload_bytes + spare)
                if fuller.labels == point.labels:
                    return point
                if self.write(fuller, self.state).file_bytes <= room:
                    return fuller
                written += max(1, spare // 8)  # the sums promised too much: spend less
        return None

    def write(
        self,
        point: Point,
        state: Mapping[str, Tensor | QuantizedTensor],
        coder: CoderName = "range",
        path: Path | None = None,
        info: dict[str, Any] | None = None,
    ) -> Summary:
        """Write the artifact of a point, by default to try it."""
        self.tell.progress(f"fit · writing an artifact of about {point.payload_bytes:,} bytes with {coder}")
        identity = self.saved.tokenizer.identity()
        told = exporting.info(self.saved.progress) | (info or {})
        place, config = path or self.scratch, self.saved.config
        return write_artifact(place, state, config, identity, told, point.plan, coder, self.primer)

    def solved(self, point: Point) -> dict[str, Tensor | QuantizedTensor]:
        """The weights with their linear maps quantised by GPTQ, as the point says, on training text."""
        self.tell.progress("fit · GPTQ")
        self._load(self.state)
        moments = second_moments(self.model, self.windows, with_gptq(point.plan))
        return quantize_state(self.state, point.plan, moments, self.saved.config.export.gptq_damping)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(state[name])

    def loss_of(self, path: Path) -> float:
        """Nats per token of an artifact, as read back from the disk, on the sample."""
        self._load(read_artifact(path).state)
        return mean_loss(self.model, self.windows)

    def spread(self, count: int, chosen: Point) -> list[Point]:
        """So many points, evenly spaced by their size, and the chosen one."""
        first, last = self.path[0].payload_bytes, self.path[-1].payload_bytes
        wanted = [first + (last - first) * at / max(1, count - 1) for at in range(count)]
        picked = {min(range(len(self.path)), key=lambda at: abs(self.path[at].payload_bytes - size)) for size in wanted}
        return [point for at, point in enumerate(self.path) if at in picked or point is chosen]

    def measured(self, point: Point, code_bytes: int, score: Scorer) -> FrontierPoint:
        """What becomes of a point on the disk."""
        written = self.write(point, self.state)
        sample_loss = self.loss_of(self.scratch)
        found = score(
            self.model, self._stream("val"), self.saved.tokenizer, self.saved.config.train.seq_len, self.tokens
        )
        total = written.file_bytes + code_bytes
        return FrontierPoint(written.file_bytes, total, sample_loss, point.loss, found.bpb, found.tokens, point.labels)
