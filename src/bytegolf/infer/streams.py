"""A text in streams side by side, and the model's logits of each next byte: the same bits for an encoder and a decoder.

A text is cut into streams of equal length that go through the model as a batch. ``native_step.ExactModel`` gives the
same logits however tokens are grouped, so what is known, a text to encode, goes through it many positions at a time. A
model that it does not know goes through ``LanguageModel.step`` on both sides, on the same batches in the same order: a
forward pass over many tokens, or another number of sequences at once, would add up in another order.

The context is that of ``bytegolf eval``: windows of ``window`` tokens, each with a state of its own. Without ``stride``
a window begins with the token that the one before it ended with, and nothing else of the past. With ``stride`` it first
reads window − stride tokens again, in one call on both sides, and gives the distributions of the next ``stride``.

Legend: S streams, R of them that are still going, A symbols of the alphabet, L tokens (of the longest).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt16
from torch import Tensor

from bytegolf.data.tokenizer import ByteTokenizer, byte_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.infer.frequencies import Coder, Encoder, probabilities
from bytegolf.infer.native_step import ExactModel, stepper
from bytegolf.mixing.frequencies import quantised
from bytegolf.model.lm import LanguageModel

STATE_BYTES = 512_000_000
"""What the states of all streams may take."""

MOST_STREAMS = 256
"""Of them side by side a CPU's matrix products are no longer starved, and more would only take memory."""

AHEAD = 64
"""Positions of a known text that go through the model at once."""


@dataclass(frozen=True)
class Mode:
    """How much of the past a token's distribution depends on, as ``eval`` has it."""

    window: int
    """tokens that a window reads: ``train.seq_len``"""
    stride: int = 0
    """new tokens of each window but a stream's first; 0 is ``window``, so that windows do not overlap"""

    def __post_init__(self) -> None:
        if not 0 <= self.stride <= self.window:
            raise BytegolfError(
                f"stride {self.stride} must lie between 1 and the sequence length {self.window}, or be 0 for windows "
                "without overlap"
            )

    @property
    def ahead(self) -> int:
        """Tokens that every window but the first reads before its first distribution."""
        return 1 + (self.window - self.stride if self.stride else 0)

    def windows(self, targets: int) -> Iterator[tuple[int, int, int]]:
        """For each window over streams of 1 + ``targets`` tokens: its first token, its first target, and the one
        behind its last.
        """
        done = 0
        while done < targets:
            start = max(0, done + 1 - self.ahead)
            end = min(targets, start + self.window)
            yield start, done + 1, end + 1
            done = end


@torch.inference_mode()
def steps(
    model: LanguageModel, tokens: UInt16[np.ndarray, "S L"], lengths: Int[np.ndarray, " S"], mode: Mode, known: bool
) -> Iterator[tuple[int, Int[np.ndarray, " R"], Float[Tensor, "R V"]]]:
    """For each position behind the streams' first: the position, the streams that have it, and the logits of its token.

    ``lengths`` are the streams' tokens, the first included (1 to L each). Unless all ``tokens`` are ``known``, those of
    a position are filled in before the next one is asked for. A stream that is over stays in the batch until the window
    ends, with the zeros behind it on both sides.
    """
    runner = stepper(model)
    ahead = AHEAD if known and isinstance(runner, ExactModel) else 1
    for start, first, end in mode.windows(int(lengths.max()) - 1):
        # Streams of 9, 9 and 8 tokens: the third is over at position 8. It stays in the batch to the window's end, as
        # without it the products of the other two might round otherwise; the next window begins without it.
        live = np.flatnonzero(lengths > first)
        state = runner.start(len(live), mode.window)
        logits = runner.extend(_ids(model, tokens[live, start:first]), state)[:, -1:]
        at = first
        while at < end:
            for column in logits.unbind(1):
                going = lengths[live] > at
                yield at, live[going], column if going.all() else column[torch.from_numpy(going)]
                at += 1
            if at < end:
                logits = runner.extend(_ids(model, tokens[live, at - 1 : min(at - 1 + ahead, end - 1)]), state)


def code_streams(
    model: LanguageModel,
    tokens: UInt16[np.ndarray, "S L"],
    lengths: Int[np.ndarray, " S"],
    mode: Mode,
    coder: Coder,
    first_id: int,
) -> None:
    """Code the tokens behind the first of each stream by the model's distributions alone, as ``verify`` does it.

    An encoder reads them from ``tokens``, a decoder fills them in. The alphabet is the ids from ``first_id`` on.
    """
    for at, rows, logits in steps(model, tokens, lengths, mode, isinstance(coder, Encoder)):
        frequencies = quantised(probabilities(logits, first_id))
        symbols = coder.code(frequencies, tokens[rows, at].astype(np.int64) - first_id)
        tokens[rows, at] = symbols + first_id


def _ids(model: LanguageModel, tokens: UInt16[np.ndarray, "*S"]) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64)).to(model.embedding.weight.device)


def streams_for(model: LanguageModel, mode: Mode, size: int) -> int:
    """How many streams to cut ``size`` tokens into: as many as pay, and as memory is for.

    A stream begins without a past. That costs little where windows share none either, and more where they do.
    """
    least = mode.window * (32 if mode.stride else 8)
    return max(1, min(MOST_STREAMS, STATE_BYTES // state_bytes(model, mode.window), size // least))


def state_bytes(model: LanguageModel, window: int) -> int:
    """The memory of one sequence's keys, values and rotary angles."""
    found: list[object] = [model.start(1, window).network]
    total = 0
    while found:
        part = found.pop()
        if isinstance(part, Tensor):
            total += part.nbytes
        elif isinstance(part, list):
            found += part
        elif hasattr(part, "__dataclass_fields__"):
            found += vars(part).values()
    return max(1, total)


def cut(size: int, streams: int, bos: int) -> tuple[UInt16[np.ndarray, "S L"], Int[np.ndarray, " S"]]:
    """Room for ``size`` bytes in ``streams``, each behind a BOS, and the length of each; the first are the longer."""
    lengths = np.full(streams, 1 + size // streams)
    lengths[: size % streams] += 1
    tokens = np.zeros((streams, int(lengths[0])), np.uint16)
    tokens[:, 0] = bos
    return tokens, lengths


def places(tokens: UInt16[np.ndarray, "S L"], lengths: Int[np.ndarray, " S"]) -> Bool[np.ndarray, "S L"]:
    """Where bytes stand: behind each stream's BOS."""
    at = np.arange(tokens.shape[1])
    return (at > 0) & (at < lengths[:, None])


def bytewise(model: LanguageModel) -> ByteTokenizer:
    """The tokenizer. Every byte is coded as the token of its value, also one that means something else in text.

    Raises BytegolfError for a model that is not over bytes.
    """
    found = byte_tokenizer(model.config.vocab_size)
    if found is None:
        raise BytegolfError(
            "only a model over bytes can compress any bytes: choose an artifact whose tokenizer is byte260 or byte256"
        )
    return found
