"""Bits per byte (BPB): the only place that computes it.

BPB = Σ nats / ln 2 / Σ bytes, over the scored tokens: nats summed in float64, bytes as integers from the tokenizer's
exact count of each token (docs/formats; 0 for special tokens, whose loss still counts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bytegolf.errors import BytegolfError


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
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def bpb(self) -> float:
        """Bits per byte."""
        return bits_per_byte(self.nats, self.bytes)


def bits_per_byte(nats: float, size: int) -> float:
    """``nats`` of loss over ``size`` bytes of text, in bits per byte.

    >>> bits_per_byte(math.log(2) * 12, 8)
    1.5
    """
    if size <= 0:
        raise BytegolfError("the scored tokens stand for no bytes at all: there is nothing to score")
    return nats / math.log(2) / size
