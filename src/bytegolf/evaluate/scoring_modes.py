"""The ways to score a model, and the logits that its scores are made of: what ``proofs`` experiments with.

Legend: N tokens, T targets, V alphabet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from bytegolf.bpb import Score
from bytegolf.config import TttConfig
from bytegolf.data.shards import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.evaluate.score import score
from bytegolf.evaluate.ttt import score_adapting
from bytegolf.model.capacity import Capacity
from bytegolf.model.lm import Forward, LanguageModel

LEARNING: tuple[Literal["lora", "sgd"], ...] = ("lora", "sgd")
"""Kinds of test-time training that are tried."""


class Memory(TokenStream):
    """A stream of tokens that are in memory."""

    def __init__(self, tokens: Int[np.ndarray, " N"]) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def slice(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Tokens ``start`` to ``stop`` (exclusive)."""
        return self._tokens[start:stop].astype(np.uint16)


@dataclass(frozen=True)
class ScoringMode:
    """One way to score: what ``eval`` calls a mode."""

    name: str
    seq_len: int
    stride: int = 0
    capacity: Capacity | None = None
    """the room for chunks at every level; None: as the model is set"""
    exact: bool = True
    """whether shapes do not depend on the text, so that equality is bit for bit"""
    ttt: TttConfig = TttConfig()
    """test-time training; of one text, without resets"""

    def score(self, model: LanguageModel, tokens: Int[np.ndarray, " N"], tokenizer: Tokenizer) -> Score:
        """The score of ``tokens``, a window at a time."""
        with _room(model, self.capacity):
            if self.ttt.mode != "off":
                return score_adapting(model, Memory(tokens), tokenizer, self.seq_len, self.ttt, stride=self.stride)
            return score(model, Memory(tokens), tokenizer, self.seq_len, stride=self.stride, batch=1)

    def logits(self, model: LanguageModel, tokens: Int[np.ndarray, " N"], tokenizer: Tokenizer) -> Float[Tensor, "T V"]:
        """The logits of each target of ``tokens``, whose windows must come out even, as the score's losses use them."""
        seen: list[Tensor] = []
        with watched(model, lambda out: seen.append(model.cap(out.logits).flatten(0, 1).cpu())):
            self.score(model, tokens, tokenizer)
        return torch.cat(seen)

    def fitting(self, most: int, windows: int = 3) -> int:
        """How many of ``most`` tokens to take, so that up to ``windows`` of them come out even."""
        step = self.stride or self.seq_len
        return self.seq_len + 1 + step * max(0, min(windows - 1, (most - 1 - self.seq_len) // step))


def ways(model: LanguageModel, seq_len: int, stride: int = 0) -> list[ScoringMode]:
    """Every way to score ``model``: without overlap and with (``stride`` tokens a window, or a quarter of one), in each
    capacity that it can have, and with test-time training.
    """
    overlap = stride if 0 < stride < seq_len else max(1, seq_len // 4)
    sliding = f"sliding, stride {overlap}"
    every = Capacity("fixed", 1.0)
    adapting = [
        ScoringMode(
            f"learning from what was scored ({mode}), stride {overlap}",
            seq_len,
            overlap,
            every,
            ttt=TttConfig(mode=mode, chunk=overlap, reset="never"),
        )
        for mode in LEARNING
    ]
    if not model.levels():
        return [ScoringMode("plain", seq_len), ScoringMode(sliding, seq_len, overlap), *adapting]
    configured = model.levels()[0].capacity
    found = [
        ScoringMode("plain, room for all chunks", seq_len, 0, every),
        ScoringMode(f"{sliding}, room for all chunks", seq_len, overlap, every),
        ScoringMode("plain, exact capacity", seq_len, 0, configured.changed("exact", 0), exact=False),
        ScoringMode("plain, bucketed capacity", seq_len, 0, configured.changed("bucketed", 0), exact=False),
        ScoringMode(f"{sliding}, exact capacity", seq_len, overlap, configured.changed("exact", 0), exact=False),
    ]
    if not model.config.reset_at_bos:
        fixed = configured.changed("fixed", 0)
        found.append(ScoringMode(f"plain, fixed capacity 1/{fixed.divisor:g}", seq_len, 0, fixed))
        found.append(ScoringMode(f"{sliding}, fixed capacity 1/{fixed.divisor:g}", seq_len, overlap, fixed))
    return found + adapting


@contextlib.contextmanager
def _room(model: LanguageModel, capacity: Capacity | None) -> Iterator[None]:
    with model.capacity():
        for level in model.levels() if capacity else ():
            assert capacity is not None
            level.capacity = capacity
        yield


@contextlib.contextmanager
def watched(model: LanguageModel, see: Callable[[Forward], None]) -> Iterator[None]:
    """Within the context ``see`` gets what ``model.losses`` is asked about, except while the model learns."""
    losses = model.losses

    def watching(out: Forward, targets: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            see(out)
        return losses(out, targets)

    model.losses = watching  # type: ignore[method-assign]  # until the context ends
    try:
        yield
    finally:
        del model.losses  # the class has it still
