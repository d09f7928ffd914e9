"""Many streams of tokens through the model side by side, a token of each at a time: what compresses and decompresses.

Both sides run this one function, on the same batches in the same order, so that they get the same logits bit for bit:
a forward pass over many tokens, or another number of sequences at once, would add up in another order. All that differs
is where a token comes from, the text or the coder.

The context is that of ``bytegolf eval``: windows of ``window`` tokens, each with a state of its own. Without ``stride``
a window begins with the token that the one before it ended with, and nothing else of the past. With ``stride`` it first
reads window − stride tokens again, in one call on both sides, and gives the distributions of the next ``stride``.

Legend: S streams, R of them that are still going, A symbols of the alphabet, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt16
from torch import Tensor

from bytegolf.errors import BytegolfError
from bytegolf.infer.frequencies import Coder, Mixture, probabilities
from bytegolf.model.lm import LanguageModel

STATE_BYTES = 512_000_000
"""What the states of all streams may take."""

MOST_STREAMS = 256
"""Of them side by side a CPU's matrix products are no longer starved, and more would only take memory."""


@dataclass(frozen=True)
class Mode:
    """How much of the past a token's distribution depends on, as ``eval`` has it.

    Attributes:
        window: tokens that a window reads: ``train.seq_len``.
        stride: new tokens of each window but a stream's first; 0 is ``window``, so that windows do not overlap.
    """

    window: int
    stride: int = 0

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
def run(
    model: LanguageModel,
    tokens: UInt16[np.ndarray, "S L"],
    lengths: Int[np.ndarray, " S"],
    mode: Mode,
    coder: Coder,
    first_id: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Code the tokens behind the first of each stream: an encoder reads them from ``tokens``, a decoder fills them in.

    ``lengths`` are the streams' tokens, the first included (1 to L each). The alphabet is the ids from ``first_id`` on.
    ``progress`` is called with the number of tokens coded since the last call.
    """
    mixture = Mixture(len(tokens))
    for start, first, end in mode.windows(int(lengths.max()) - 1):
        live = np.flatnonzero(lengths > first)
        state = model.start(len(live), mode.window)
        logits = model.extend(_ids(model, tokens[live, start:first]), state)[:, -1]
        for at in range(first, end):
            going = lengths[live] > at
            rows = live[going]
            p = probabilities(logits[:, first_id:])[going]
            symbols = coder.code(mixture.frequencies(p, rows), tokens[rows, at].astype(np.int64) - first_id)
            mixture.learn(p[np.arange(len(rows)), symbols], p.shape[1], rows)
            tokens[rows, at] = symbols + first_id
            if progress:
                progress(len(rows))
            if at + 1 < end:
                # a stream that is over stays in the batch until the window ends, with the same token on both sides
                logits = model.step(_ids(model, np.where(going, tokens[live, at], np.uint16(0))), state)


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
