"""Before a run: its size, a step's time on some device, the steps in its budget; and how far off that arithmetic is.

An operation takes as long as its slower side, a part of the model at least as long as starting its kernels.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass

import torch

from bytegolf.artifact.quantize import estimated_bytes
from bytegolf.config import Config, levels
from bytegolf.device import choose_device, pick_precision
from bytegolf.errors import BytegolfError
from bytegolf.model.lm import LanguageModel, count_parameters, outline
from bytegolf.ops import native
from bytegolf.tools.plan.devices import DEVICES, LINK, SCAN, SCATTER, STEP_TIMES, Device, this_machine, timed
from bytegolf.tools.plan.results import Measured, MemoryBytes, Part, Plan, PublishedStep, Sent
from bytegolf.tools.plan.work import SPREAD, Code, Op, chunk_rates, step_work
from bytegolf.training.memory import BF16, FP32, at_a_time, memory_use
from bytegolf.training.optim import Optimizer
from bytegolf.training.schedule import training_budget

OURS = Code(compiled=True)
"""This package on a GPU."""


@dataclass
class PartTime:
    """A part of the model in one step of a rank."""

    name: str
    flops: float = 0.0
    bytes: float = 0.0
    kernels: float = 0.0
    computing: float = 0.0
    """seconds that the device is busy"""
    starting: float = 0.0
    """seconds that the processor takes to start the kernels, beside it"""

    @property
    def seconds(self) -> float:
        """The longer of both."""
        return max(self.computing, self.starting)


def seconds(op: Op, device: Device) -> float:
    """How long the device is busy with ``op``."""
    products, attention, passes = device.reached
    memory = op.bytes / (device.bandwidth * passes)
    if op.kind == "matmul":
        return max(op.flops / (device.flops * products), memory)
    if op.kind == "attention":
        return op.flops / (device.flops * attention)
    # fitted on one device, and bound by its processors and memory: taken to scale with the bandwidth
    scale = device.bandwidth / 3.35e12
    if op.kind == "scan":
        return op.flops / (SCAN * scale)
    if op.kind == "scatter":
        return op.flops / (SCATTER * scale)
    return memory


def part_times(work: list[Op], device: Device) -> list[PartTime]:
    """The parts of a step in the order in which they appear; a loop waits for its kernels beside everything else."""
    parts: dict[str, PartTime] = {}
    loops: dict[str, float] = defaultdict(float)
    for op in work:
        part = parts.setdefault(op.part, PartTime(op.part))
        if op.kind not in ("scan", "scatter"):
            part.flops += op.flops
        part.bytes += op.bytes
        part.kernels += op.kernels
        busy, start = seconds(op, device), op.kernels * device.launch
        if op.kind == "loop":  # a chain of tiny kernels: the device cannot run ahead, nor the processor
            loops[op.part] += max(busy, start)
        else:
            part.computing += busy
            part.starting += start
    for name, extra in loops.items():
        parts[name].computing = max(parts[name].computing, parts[name].starting) + extra
    return list(parts.values())


def step_seconds(parts: list[PartTime], link_bytes: float, hidden_bytes: float, device: Device) -> float:
    """A whole step: the parts, and communication as far as the backward pass does not hide it.

    Args:
        link_bytes: sent with nothing beside it (the optimiser's updates).
        hidden_bytes: sent while gradients are computed, two thirds of the time of the other parts.
    """
    busy = sum(part.seconds for part in parts)
    rate = device.link * LINK
    return busy + link_bytes / rate + max(0.0, hidden_bytes / rate - busy * 2 / 3)


@dataclass(frozen=True)
class Prediction:
    """A step on ``count`` devices."""

    parts: list[PartTime]
    sequences: int
    """of a rank per step"""
    at_a_time: int
    passes: int
    """micro-batches per step"""
    reduced: float
    """bytes of gradients that a rank sends while it computes them"""
    gathered: float
    """bytes of updates that it sends afterwards"""
    seconds: float


def predict(config: Config, device: Device, count: int, rates: list[float], code: Code) -> Prediction:
    """What a step of ``config`` takes on each of ``count`` devices, with room for ``rates`` chunks per position.

    Raises BytegolfError if the batch does not split.
    """
    whole = config.train.batch_tokens // config.train.seq_len
    if whole % count:
        raise BytegolfError(
            f"a batch of {whole} sequences does not split among {count} devices: change --count or train.batch_tokens"
        )
    model, share = outline(config.model), whole // count
    parameters = count_parameters(model)
    size = at_a_time(config, model, count, device.memory)
    passes = -(-share // size)
    parts = part_times(step_work(config, model, count, code, rates, passes), device)
    ring = 2 * (count - 1) / count
    reduced, gathered = ring * FP32 * parameters, ring / 2 * BF16 * parameters
    seconds = step_seconds(parts, gathered, reduced, device)
    return Prediction(parts, share, size, passes, reduced, gathered, seconds)


def plan(config: Config, name: str, count: int, rate: float | None, steps: int) -> Plan:
    """What a run of ``config`` takes on ``count`` devices.

    ``name`` is a device's, or "here", which is measured and takes ``steps`` steps.
    """
    step_ms, rates, code = 0.0, chunk_rates(config.model, rate), OURS
    clock = "cpu" if config.train.clock == "processor" else "wall"
    if name == "here":
        if count != 1:
            raise BytegolfError(f"--count is {count}, but 'here' is one device: leave it out, or name a device")
        place = choose_device(config.train.device)
        precision = pick_precision(config.train.precision, place)
        code = Code(compiled=place.type == "cuda", native=native.why_not() is None and place.type == "cpu")
        if steps:
            step_ms, rates = measure(config, place, precision, steps, clock)
        device = this_machine(place, precision, clock)
    elif name in DEVICES:
        device = DEVICES[name]
    else:
        raise BytegolfError(f"no device is called {name!r}: choose one of {', '.join(DEVICES)}, or 'here' to measure")
    found = predict(config, device, count, rates, code)
    model = outline(config.model)
    use = memory_use(config, model, found.at_a_time, count, rates)
    train = training_budget(config)
    fit = int(min(train.max_steps or float("inf"), train.max_seconds / found.seconds or float("inf")))
    milliseconds = 1e3 * found.seconds
    measured = Measured(step_ms, steps, clock, round(milliseconds / step_ms - 1, 3)) if step_ms else None
    parts = [
        Part(
            name=part.name,
            gflop=round(part.flops / 1e9, 2),
            gigabytes=round(part.bytes / 1e9, 3),
            kernels=round(part.kernels),
            computing_ms=round(1e3 * part.computing, 3),
            starting_ms=round(1e3 * part.starting, 3),
        )
        for part in found.parts
    ]
    return Plan(
        preset=config.name,
        device=device.name,
        count=count,
        params=count_parameters(model),
        artifact_estimate_bytes=estimated_bytes(model, config.export),
        sequences=found.sequences,
        micro_batch=found.at_a_time,
        accumulation=found.passes,
        rates=[round(value, 4) for value in rates],
        flops=sum(part.flops for part in found.parts),
        bytes=sum(part.bytes for part in found.parts),
        kernels=round(sum(part.kernels for part in found.parts)),
        parts=parts,
        memory_bytes=MemoryBytes(**{key: round(value) for key, value in vars(use).items()}, total=round(use.total)),
        communication_bytes=Sent(round(found.reduced), round(found.gathered)),
        step_ms=round(milliseconds, 3),
        steps=fit,
        train_tokens=fit * config.train.batch_tokens,
        measured=measured,
        assumptions=assumptions(config, device, rate, measured is not None),
    )


def assumptions(config: Config, device: Device, rate: float | None, counted: bool) -> list[str]:
    """What a prediction for ``device`` stands on, a sentence each; ``counted``: chunks were, in real steps."""
    products, attention, passes = device.reached
    said = [
        f"{device.name}: {device.flops / 1e12:.3g} TFLOP/s, {device.bandwidth / 1e9:.4g} GB/s, "
        f"{1e6 * device.launch:.1f} µs per kernel",
        f"reached of it: {products:.0%} by products, {attention:.0%} by attention, {passes:.0%} by passes over memory, "
        f"{LINK:.0%} of the link by collectives",
        "stacks of constant length are compiled or native: an activation is passed over as often as it must be",
        "gradients travel while the backward pass computes, updates do not",
    ]
    if levels(config.model.network):
        room = f"{f'{rate:.3f} of the positions' if rate else '1/N'}, and {SPREAD - 1:.0%} for padding"
        room = "those of the untrained router on random tokens" if counted else room
        said.append(f"chunks: {room}; under a fixed capacity, all of it")
    if device.name in DEVICES:
        errors = [row.error for row in against_published()]
        said.append(
            f"against the published step times this arithmetic is off by {min(errors):+.0%} to {max(errors):+.0%} "
            "(`bytegolf plan`); this package's own code has not been timed on such a device"
        )
    return said


def measure(
    config: Config, place: torch.device, precision: torch.dtype, steps: int, clock: str
) -> tuple[float, list[float]]:
    """Milliseconds (median) of real training steps on random tokens, and each level's room for chunks per position."""
    torch.manual_seed(config.train.seed)
    model = LanguageModel(config.model).to(place)
    model.precision = precision
    optimizer = Optimizer(model, config.optim)
    shape = (config.train.batch_tokens // config.train.seq_len, config.train.seq_len)
    tokens = torch.randint(4, config.model.vocab_size, shape, device=place)
    tokens[:, 0] = 1
    size = config.train.micro_batch or shape[0]
    rooms: list[float] = []

    def step() -> None:
        for ids in torch.split(tokens, size):
            out = model(ids)
            inner = [trace.p.shape[1] for trace in out.traces[1:]]
            last = [int(trace.boundary.sum(1).max()) for trace in out.traces[-1:]]
            rooms[:] = [room / trace.p.shape[1] for room, trace in zip([*inner, *last], out.traces, strict=True)]
            torch.autograd.backward(model.objective(out, model.losses(out, ids)))
        optimizer.step(0.0, 0)
        optimizer.zero_grad()

    step()
    spent = [timed(step, place, clock) for _ in range(steps)]
    return round(1e3 * statistics.median(spent), 2), rooms


def against_published() -> list[PublishedStep]:
    """Every published step time beside what the same arithmetic predicts for the code that took it."""
    device, rows = DEVICES["h100"], []
    for known in STEP_TIMES:
        config = Config.load(known.preset, known.overrides)
        model, rates = outline(config.model), chunk_rates(config.model, known.rate)
        parts = part_times(step_work(config, model, known.count, known.code, rates, known.passes), device)
        milliseconds = 1e3 * step_seconds(parts, 0.0, 0.0, device)
        sequences = config.train.batch_tokens // config.train.seq_len // known.count // known.passes
        # the published Muon keeps all of its momenta on every rank
        use = memory_use(config, model, sequences, 1, rates).total
        rows.append(
            PublishedStep(
                what=known.what,
                preset=known.preset,
                count=known.count,
                published_ms=round(known.milliseconds, 2),
                predicted_ms=round(milliseconds, 2),
                error=round(milliseconds / known.milliseconds - 1, 3),
                published_bytes=known.memory,
                predicted_bytes=round(use) if known.memory else None,
            )
        )
    return rows
