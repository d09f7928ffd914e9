"""Which widths give the lowest loss in so many bytes: measured sensitivities, real sizes, and a greedy descent.

Every group of matrices (``plan.group_of``) is quantised alone, in every way there is (``storage_options``), and the
loss on a sample of *training* text says what that costs. How many bytes it saves, the coder itself says. From the
widest plan the step with the least loss per byte saved is taken again and again; the plans on that way are the
frontier, and the first that is small enough is the answer.

Two assumptions make this quick: losses of groups add up, and so do bytes. Both are checked afterwards on the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bytegolf.artifact.encoding import coded_bits
from bytegolf.artifact.plan import Kinds, Plan, coded, group_of, steers, storage_of
from bytegolf.artifact.quantize import fake_quantize, quantize
from bytegolf.artifact.quantizer import Storage
from bytegolf.config import ExportConfig
from bytegolf.model.lm import LanguageModel
from bytegolf.model.storage import StorageKind, storage_kinds
from bytegolf.progress import Pace

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
            for name, storage in plans[label].items():
                held[name].copy_(fake_quantize(state[name], storage))
            loss = mean_loss(model, windows) - whole
            for name in plans[label]:
                held[name].copy_(state[name])
            if not math.isfinite(loss):
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
