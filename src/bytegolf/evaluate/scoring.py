"""Scoring in the mode that a configuration asks for: plain or overlapping windows, or test-time training."""

from __future__ import annotations

from collections.abc import Callable

from bytegolf.artifact.loading import LoadedModel
from bytegolf.bpb import Score
from bytegolf.config import EvalConfig, TttConfig
from bytegolf.data.shards import TokenStream
from bytegolf.distributed import SINGLE_PROCESS, DistributedContext
from bytegolf.evaluate.score import Book, Observer, score
from bytegolf.evaluate.ttt import score_adapting


def drops_tail(stride: int, seq_len: int, ttt: TttConfig) -> bool:
    """Whether what fills no window is left out, as published: where windows do not overlap and nothing is learned."""
    return ttt.mode == "off" and not 0 < stride < seq_len


def score_as(
    settings: EvalConfig,
    opened: LoadedModel,
    stream: TokenStream,
    *,
    drop_tail: bool,
    length: int = 0,
    limit: int = 0,
    observer: Callable[[], Observer] | None = None,
    book: Book | None = None,
    progress: Callable[[Score], None] | None = None,
    world: DistributedContext = SINGLE_PROCESS,
) -> Score:
    """The score of ``stream`` in windows of ``length`` (0: ``train.seq_len``), with the stride, batch and test-time
    training of ``settings``; the rest as in ``bpb.score``. The processes of ``world`` share the work, but not in that
    training.
    """
    model, tokenizer, length = opened.model, opened.tokenizer, length or opened.config.train.seq_len
    if settings.ttt.mode != "off":
        return score_adapting(
            model,
            stream,
            tokenizer,
            length,
            settings.ttt,
            stride=settings.stride,
            limit=limit,
            observer=observer,
            book=book,
            progress=progress,
        )
    return score(
        model,
        stream,
        tokenizer,
        length,
        stride=settings.stride,
        drop_tail=drop_tail,
        batch=settings.batch,
        limit=limit,
        observe=observer() if observer else None,
        book=book,
        progress=progress,
        collect=world.collect,
        turn=(world.rank, world.size),
    )
