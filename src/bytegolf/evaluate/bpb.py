"""Bits per byte: the only place that computes it.

BPB = Σ nats / ln 2 / Σ bytes, over the scored tokens: nats summed in float64, bytes as integers from the tokenizer's
exact count of each token (formats.md; 0 for special tokens, whose loss still counts).

Legend: B windows of a batch, L tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from bytegolf.data.shards import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.windows import Window, windows
from bytegolf.model.lm import Forward, LanguageModel


@dataclass(frozen=True)
class Score:
    """A sum of losses over scored tokens, and the bytes they stand for."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)

    @property
    def val_loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def bpb(self) -> float:
        """Bits a byte."""
        return bits_per_byte(self.nats, self.bytes)


def bits_per_byte(nats: float, size: int) -> float:
    """``nats`` of loss over ``size`` bytes of text, in bits per byte.

    >>> bits_per_byte(math.log(2) * 12, 8)
    1.5
    """
    if size <= 0:
        raise BytegolfError("the scored tokens stand for no bytes at all: there is nothing to score")
    return nats / math.log(2) / size


Observer = Callable[[Window, NDArray[np.int64], Forward, int], None]
"""Called with a window, its tokens (L + 1,), the batch's forward pass and the window's row in it."""


def score(
    model: LanguageModel,
    stream: TokenStream,
    tokenizer: Tokenizer,
    seq_len: int,
    *,
    stride: int = 0,
    drop_tail: bool = False,
    batch: int = 16,
    limit: int = 0,
    observe: Observer | None = None,
    progress: Callable[[Score], None] | None = None,
) -> Score:
    """Score ``stream`` with ``model`` in windows of ``seq_len`` tokens; each target counts exactly once.

    ``stride`` and ``drop_tail``: see ``windows``. ``limit`` > 0 stops after that many targets (a subset: say so where
    it is reported), but not before a first window. ``progress`` gets the running score after each batch.

    Raises BytegolfError if the stream is shorter than a window, or the loss is not finite.
    """
    if batch < 1 or limit < 0:
        raise BytegolfError(
            f"cannot score {limit} tokens in batches of {batch}: give a batch of 1 or more, a limit of 0 or more"
        )
    targets = len(stream) - 1
    if limit:
        targets = min(targets, max(seq_len, limit))
    device = model.embedding.weight.device
    plan = windows(targets, seq_len, stride, drop_tail)
    total = Score()
    training = model.training
    model.eval()
    try:
        while chunk := list(islice(plan, batch)):
            tokens = np.stack([stream.slice(w.start, w.start + w.length + 1) for w in chunk]).astype(np.int64)
            total += _score_batch(model, chunk, tokens, tokenizer, device, observe)
            if progress:
                progress(total)
    finally:
        model.train(training)
    return total


@torch.inference_mode()
def _score_batch(
    model: LanguageModel,
    chunk: list[Window],
    tokens: NDArray[np.int64],
    tokenizer: Tokenizer,
    device: torch.device,
    observe: Observer | None,
) -> Score:
    ids = torch.from_numpy(tokens).to(device)
    out = model(ids[:, :-1])
    losses = model.losses(out, ids[:, 1:]).double().cpu().numpy()
    result = Score()
    for row, window in enumerate(chunk):
        scored = slice(window.length - window.scored, window.length)
        nats = float(losses[row, scored].sum())
        if not math.isfinite(nats):
            raise BytegolfError(f"the loss is not finite in the window at token {window.start}: the weights are broken")
        size = tokenizer.byte_counts(tokens[row, 1:][scored], tokens[row, :-1][scored])
        result += Score(nats, window.scored, int(size.sum()))
        if observe:
            observe(window, tokens[row], out, row)
    return result
