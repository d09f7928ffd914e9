"""The score of a model: bits per byte over a validation split, sizes, and what its chunks look like."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bytegolf.api.results import Evaluation, Windows
from bytegolf.artifact.loading import LoadedModel
from bytegolf.artifact.results import LIMIT
from bytegolf.bpb import Score, bits_per_byte
from bytegolf.config import levels
from bytegolf.data.dataset import TokenStream, open_split, validation_bytes
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.boundaries import BoundaryStats, TruncationStats, collector
from bytegolf.evaluate.modes import OnePass, ScoringMode
from bytegolf.evaluate.score import Observer, Window, targets_of
from bytegolf.model.lm import count_parameters
from bytegolf.model.trace import RouterTrace
from bytegolf.progress import Pace, Reporter
from bytegolf.tools.bundle.script import code_bytes


def evaluate(
    loaded: LoadedModel,
    data: Path,
    mode: ScoringMode | None = None,
    *,
    limit: int = 0,
    one_pass: bool = False,
    reporter: Reporter | None = None,
    world: DistributedContext = SINGLE_PROCESS,
) -> Evaluation:
    """The score of ``loaded`` over the validation split in the data folder ``data``.

    ``mode`` is as configured by default. ``limit`` > 0 scores that many tokens only (a window at least), which
    ``subset`` then says. With ``one_pass`` long windows stand for those of ``mode`` (``evaluate.modes``).

    The processes of ``world`` share the windows, and all of them get the result that one alone would have had.
    Test-time training and mixing read in order: each of them does everything.

    Raises BytegolfError for a mode that does not fit model or text.
    """
    config, tokenizer, model = loaded.config, loaded.tokenizer, loaded.model
    mode = mode or ScoringMode.configured(config, loaded.artifact.primer)
    stream = open_split(data, tokenizer.name, "val", tokenizer.vocab_size)
    once: OnePass | None = None
    if one_pass:
        if mode.adapts:
            raise BytegolfError(
                f"one pass cannot learn on its way: leave it out, or test-time training ({mode.ttt.mode})"
            )
        mode, once = mode.in_one_pass(model, stream, limit)
    with model.capacity(mode.capacity, mode.capacity_divisor):
        stats, truncation = BoundaryStats(), TruncationStats(model)

        def observer() -> Observer:
            collect = collector(stats, tokenizer)

            def observe(window: Window, tokens: NDArray[np.int64], traces: list[RouterTrace], row: int) -> None:
                collect(window, tokens, traces, row)
                truncation.add(traces, row)

            return observe

        started = time.perf_counter()
        total = mode.score(
            model,
            stream,
            tokenizer,
            limit=limit,
            observer=observer if levels(config.model.network) else None,
            progress=_teller(reporter, mode, len(stream), limit, world) if reporter else None,
            world=world,
        )
        seconds = time.perf_counter() - started
        if not mode.in_order:
            stats = sum(world.collect([stats]), BoundaryStats())
            counted, truncation = world.collect([truncation]), TruncationStats(model)
            for each in counted:
                truncation.absorb(each)
    dropped = len(stream) - 1 - total.tokens
    tail = (len(stream) - 1 - mode.seq_len) % (mode.stride or mode.seq_len) if mode.drops_tail else 0
    model_bytes, source_bytes = loaded.artifact.file_bytes, code_bytes(config)
    return Evaluation(
        bpb=total.bpb,
        bpb_original=None if limit else _original(loaded, data, stream, total, dropped),
        val_loss=total.val_loss,
        tokens=total.tokens,
        bytes=total.bytes,
        seconds=round(seconds, 2),
        bytes_per_second=round(total.bytes / seconds),
        subset=dropped > tail,
        tokens_dropped=dropped,
        scored_share=total.tokens / (len(stream) - 1),
        stride=mode.stride,
        seq_len=mode.seq_len,
        receptive_field=list(mode.receptive_field),
        one_pass=Windows(*once.stands_for) if once else None,
        precision=str(model.precision).removeprefix("torch."),
        artifact_bytes=model_bytes,
        code_bytes=source_bytes,
        total_bytes=model_bytes + source_bytes,
        limit_bytes=LIMIT,
        fits=model_bytes + source_bytes <= LIMIT,
        params=count_parameters(model),
        artifact_sha256=loaded.artifact.sha256,
        boundaries=stats.figures() if stats.windows else None,
        capacity=truncation.figures(),
        ttt=mode.ttt if mode.adapts else None,
        mix=mode.mix if mode.mix.on else None,
    )


def _teller(
    reporter: Reporter, mode: ScoringMode, tokens: int, limit: int, world: DistributedContext
) -> Callable[[Score], None]:
    """What is told after each batch: the share that is done, the pace, the time left, and the score so far."""
    targets = targets_of(tokens, mode.seq_len, limit)
    pace = Pace(targets if mode.in_order else -(-targets // world.size))

    def show(total: Score) -> None:
        pace.done = total.tokens
        reporter.progress(f"scored {pace.line(total.bytes)} · bpb {total.bpb:.4f}")

    return show


def _original(loaded: LoadedModel, data: Path, stream: TokenStream, total: Score, unscored: int) -> float | None:
    """BPB over the original text's bytes; the unscored tail, less than a window, counts with its tokens' bytes."""
    original = validation_bytes(data, loaded.tokenizer.name)
    if original is None:
        return None
    tail = stream.slice(len(stream) - unscored - 1, len(stream))
    missing = int(loaded.tokenizer.byte_counts(tail[1:], tail[:-1]).sum()) if unscored else 0
    if original <= missing:
        raise BytegolfError(f"the manifest of {data} gives the validation split too few bytes: run prepare again")
    return bits_per_byte(total.nats, original - missing)
