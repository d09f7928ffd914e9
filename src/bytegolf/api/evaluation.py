"""Score an artifact: bits per byte over the validation split, sizes, and what its chunks look like."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bytegolf.artifact.loading import LoadedModel
from bytegolf.bpb import Score
from bytegolf.config import CapacityMode, TttConfig, levels, to_dict
from bytegolf.data.manifest import validation_bytes
from bytegolf.data.shards import TokenStream, open_split
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.boundaries import BoundaryStats
from bytegolf.evaluate.chunk_stats import TruncationStats, collector
from bytegolf.evaluate.one_pass import OnePass, one_pass, reaching
from bytegolf.evaluate.score import Observer
from bytegolf.evaluate.scoring import drops_tail, score_as
from bytegolf.evaluate.windows import Window, targets_of
from bytegolf.model.outline import count_parameters
from bytegolf.model.trace import RouterTrace
from bytegolf.progress import Reporter, clock
from bytegolf.results import to_json
from bytegolf.tools.bundle.ledger import LIMIT
from bytegolf.tools.bundle.script import code_bytes


def evaluate(
    opened: LoadedModel,
    data: Path,
    *,
    stride: int | None = None,
    limit: int = 0,
    batch: int = 0,
    drop_tail: bool | None = None,
    capacity: CapacityMode | Literal[""] = "",
    capacity_divisor: float = 0.0,
    ttt: TttConfig | None = None,
    length: int = 0,
    reach: Sequence[int] = (),
    once: OnePass | None = None,
    reporter: Reporter | None = None,
    world: DistributedContext = SINGLE_PROCESS,
) -> dict[str, Any]:
    """The score of ``opened`` over the validation split in ``data``, as plain data.

    ``stride``, ``batch``, ``capacity``, ``capacity_divisor``, ``ttt``: as configured by default. ``limit`` > 0 scores
    that many tokens only (a window at least), which ``subset`` then says. Without overlap the tail that fills no window
    is left out, as published (formats.md); with a stride or test-time training every token counts.

    ``length`` is how many tokens a window reads (0: ``train.seq_len``), and ``reach`` how many of its own positions a
    stage sees that else sees everything (none: everything; ``evaluate.one_pass.reaching``). ``once`` has all three of
    them from ``plan_one_pass``.

    The processes of ``world`` share the windows, and all of them get the result that one alone would have had.
    Test-time training reads in order: each of them would do everything.

    Keys: bpb, val_loss (nats a token), tokens, bytes, seconds, bytes_per_second, subset, tokens_dropped, stride,
    seq_len, reach, one_pass (null, or the windows that it stands for: seq_len, stride), precision, artifact_bytes,
    code_bytes, total_bytes, limit_bytes, fits, params, artifact_sha256, bpb_original (over the bytes of the text before
    normalisation; null where it is not known), boundaries (null for a flat model; else the keys of BoundaryStats),
    capacity (a list of the levels, see TruncationStats), ttt (null, or the keys of TttConfig).

    Raises BytegolfError for a divisor without a fixed capacity, or a tail dropped in test-time training, besides what
    ``score`` raises.
    """
    config, tokenizer = opened.config, opened.tokenizer
    stride = config.eval.stride if stride is None else stride
    length = length or config.train.seq_len
    if once:
        stride, length, reach = once.stride, once.length, once.reach
    ttt = config.eval.ttt if ttt is None else ttt
    adapting = ttt.mode != "off"
    if adapting and drop_tail:
        raise BytegolfError(
            "test-time training reads every document to its end, so no tail can be dropped: leave it out"
        )
    drop = drops_tail(stride, length, ttt) if drop_tail is None else drop_tail
    stream = open_split(data, tokenizer.name, "val", tokenizer.vocab_size)
    stats = BoundaryStats()

    def observer() -> Observer:
        collect = collector(stats, tokenizer)

        def observe(window: Window, tokens: NDArray[np.int64], traces: list[RouterTrace], row: int) -> None:
            collect(window, tokens, traces, row)
            truncation.add(traces, row)

        return observe

    targets = targets_of(len(stream), length, limit)
    if not adapting:
        targets = -(-targets // world.size)
    started = time.perf_counter()

    def show(total: Score) -> None:
        spent = time.perf_counter() - started
        left = spent * (targets - total.tokens) / total.tokens
        if reporter:
            reporter.progress(
                f"scored {total.tokens / targets:.0%} · {total.bytes / spent / 1000:.1f} kB/s · "
                f"{clock(left)} left · bpb {total.bpb:.4f}"
            )

    with opened.model.capacity(capacity, capacity_divisor), reaching(opened.model, reach):
        truncation = TruncationStats(opened.model)
        if capacity_divisor and not truncation.any_fixed:
            raise BytegolfError("a capacity divisor belongs to a fixed capacity, which no level has: choose fixed too")
        made = observer if levels(config.model.network) else None
        settings = dataclasses.replace(config.eval, stride=stride, batch=batch or config.eval.batch, ttt=ttt)
        total = score_as(
            settings,
            opened,
            stream,
            drop_tail=drop,
            length=length,
            limit=limit,
            observer=made,
            progress=show,
            world=world,
        )
        if not adapting:
            stats = sum(world.collect([stats]), BoundaryStats())
            counted, truncation = world.collect([truncation]), TruncationStats(opened.model)
            for each in counted:
                truncation.absorb(each)
    seconds = time.perf_counter() - started
    model_bytes, source_bytes = opened.artifact.file_bytes, code_bytes(config)
    dropped = len(stream) - 1 - total.tokens
    tail = (len(stream) - 1 - length) % (stride or length) if drop else 0
    return {
        "bpb": total.bpb,
        "bpb_original": None if limit else _original(opened, data, stream, total, dropped),
        "val_loss": total.val_loss,
        "tokens": total.tokens,
        "bytes": total.bytes,
        "seconds": round(seconds, 2),
        "bytes_per_second": round(total.bytes / seconds),
        "subset": dropped > tail,
        "tokens_dropped": dropped,
        "stride": stride,
        "seq_len": length,
        "reach": list(reach),
        "one_pass": {"seq_len": once.stands_for[0], "stride": once.stands_for[1]} if once else None,
        "precision": str(opened.model.precision).removeprefix("torch."),
        "artifact_bytes": model_bytes,
        "code_bytes": source_bytes,
        "total_bytes": model_bytes + source_bytes,
        "limit_bytes": LIMIT,
        "fits": model_bytes + source_bytes <= LIMIT,
        "params": count_parameters(opened.model),
        "artifact_sha256": opened.artifact.sha256,
        "boundaries": to_json(stats.figures()) if stats.windows else None,
        "capacity": to_json(truncation.figures()),
        "ttt": to_dict(ttt) if adapting else None,
    }


def plan_one_pass(
    opened: LoadedModel,
    data: Path,
    stride: int | None = None,
    limit: int = 0,
    capacity: CapacityMode | Literal[""] = "",
) -> OnePass:
    """What ``evaluate`` needs to read the validation split in ``data`` once instead of in windows of
    ``train.seq_len`` with ``stride`` (as configured by default).

    Raises BytegolfError for what ``one_pass`` does.
    """
    config, tokenizer = opened.config, opened.tokenizer
    stride = config.eval.stride if stride is None else stride
    stream = open_split(data, tokenizer.name, "val", tokenizer.vocab_size)
    with opened.model.capacity(capacity):
        return one_pass(opened.model, stream, config.train.seq_len, stride, limit)


def _original(opened: LoadedModel, data: Path, stream: TokenStream, total: Score, unscored: int) -> float | None:
    """BPB over the original text's bytes; the unscored tail, less than a window, counts with its tokens' bytes."""
    original = validation_bytes(data, opened.tokenizer.name)
    if original is None:
        return None
    tail = stream.slice(len(stream) - unscored - 1, len(stream))
    missing = int(opened.tokenizer.byte_counts(tail[1:], tail[:-1]).sum()) if unscored else 0
    if original <= missing:
        raise BytegolfError(f"the manifest of {data} gives the validation split too few bytes: run prepare again")
    return total.nats / math.log(2) / (original - missing)
