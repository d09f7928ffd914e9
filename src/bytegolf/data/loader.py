"""Batches for training: a pure function of (seed, step, rank, world size), with nothing to save and replay.

Step, rank and row give a row's number in the endless sequence of epochs; a keyed permutation of the epoch's
windows, computed and not stored, turns that into a place in the stream. So any step is reached in the time of
one batch, and the ranks' parts put together are the same batch whatever their number.

Example: 10 windows, batches of 4 sequences, two ranks of 2 rows each. Step 1 is rows 4 to 7 of the endless sequence:
rank 0 takes rows 4 and 5, rank 1 rows 6 and 7. Step 2 is rows 8 to 11: rank 0 ends epoch 0 with its rows 8 and 9, rank
1 begins epoch 1 with rows 0 and 1, which another permutation sends elsewhere.

Dimensions: B sequences per rank, L tokens per sequence.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.dataset import TokenStream
from bytegolf.errors import BytegolfError

_ROUNDS = 6


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection of 64 bits that looks random; wraps around."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _keys(seed: int, epoch: int, count: int) -> NDArray[np.uint64]:
    """``count`` pseudo-random uint64 for one epoch of one seed.

    Seed and epoch enter as their exclusive or: seed 1 has in its epoch 0 the order that seed 0 has in its epoch 1. A
    run of one epoch never notices. To mix them apart would change every recorded loss.
    """
    key = np.array([seed % 2**64], dtype=np.uint64)
    for word in (epoch % 2**64, 0x9E3779B97F4A7C15):
        key = _mix(key ^ np.uint64(word)) + np.uint64(0x9E3779B97F4A7C15)
    return _mix(key + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def permute(index: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where a pseudo-random permutation of range(size) sends each index; int64, of the shape of ``index``.

    A Feistel network over the smallest even number of bits that holds ``size``, walked along its cycle until
    the value is below ``size`` again (Black and Rogaway 2002): a bijection in constant memory, in fewer than
    four rounds of walking on average.

    Example: ``size`` 10 needs 4 bits, so the network permutes 0 to 15, in two halves of 2 bits. Each round keeps one
    half and changes the other by exclusive or with a hash of the kept one, which can be undone whatever the hash is:
    (left, right) → (right, left ^ hash(right)). Of seed 0 in epoch 0, it sends 0 → 4 and 2 → 6, which are below 10 and
    stay. It sends 1 → 11, which is not: walk on, 11 → 2. A value outside is reached from one place only, so the walks
    of different indices never meet: [4, 2, 6, 0, 1, 7, 3, 8, 9, 5].
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = _keys(seed, epoch, _ROUNDS)
    values = index.astype(np.uint64)
    outside = np.ones(values.shape, dtype=np.bool_)
    while outside.any():
        walking = values[outside]
        left, right = walking >> half, walking & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        values[outside] = (left << half) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


class Loader:
    """Training batches from a token stream.

    An epoch is ``windows`` windows of ``seq_len`` inputs each, every one visited once. ``sequential`` reads
    them in the stream's order. ``shuffled`` permutes them anew each epoch and cuts the stream at an offset
    drawn anew each epoch, so that later epochs see the text in other frames; the last up to two windows'
    worth of tokens may go unseen in an epoch. Epochs follow one another without a gap, also within a batch.

    Attributes:
        windows: windows in an epoch.
        batch_sequences: sequences of a step over all ranks.
        rank_sequences: B, the sequences of this rank.
    """

    def __init__(
        self,
        stream: TokenStream,
        seq_len: int,
        batch_tokens: int,
        seed: int,
        order: Literal["shuffled", "sequential"] = "shuffled",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Sizes are in tokens; ``batch_tokens`` is over all ranks."""
        if seq_len < 1 or batch_tokens < seq_len or batch_tokens % seq_len:
            raise BytegolfError(
                f"a batch of {batch_tokens} tokens is no whole number of sequences of {seq_len}: make "
                "batch_tokens a positive multiple of seq_len"
            )
        self.batch_sequences = batch_tokens // seq_len
        if not 0 <= rank < world_size:
            raise BytegolfError(f"rank {rank} does not exist among {world_size} processes: give 0 to {world_size - 1}")
        if self.batch_sequences % world_size:
            raise BytegolfError(
                f"a batch of {self.batch_sequences} sequences does not split evenly among {world_size} "
                "processes: change batch_tokens or the number of processes"
            )
        if len(stream) < seq_len + 1:
            raise BytegolfError(
                f"a sequence of {seq_len} tokens and the one it predicts are longer than the split of "
                f"{len(stream)} tokens (beginning with {stream.paths[0]}): lower seq_len or prepare more "
                "text"
            )
        self.rank_sequences = self.batch_sequences // world_size
        self._stream = stream
        self._seq_len = seq_len
        self._seed = seed
        self._shuffled = order == "shuffled"
        self._first_row = rank * self.rank_sequences
        # A window fewer when shuffled, so that there is one at every offset and epochs are equally long. A stream of 11
        # and L = 3: sequential (11 − 1) // 3 = 3 windows, from 0, 3 and 6; shuffled (11 − 3) // 3 = 2 windows, and 3
        # offsets: from 0 and 3, from 1 and 4, or from 2 and 5, whose last target is token 8.
        whole = (len(stream) - seq_len) // seq_len if self._shuffled else (len(stream) - 1) // seq_len
        self.windows = max(1, whole)
        self._offsets = min(seq_len, len(stream) - self.windows * seq_len)

    def starts(self, step: int) -> NDArray[np.int64]:
        """Where this rank's sequences of a step begin in the stream: int64 of shape (B,)."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        first = step * self.batch_sequences + self._first_row  # Python's integers: no overflow
        epoch, index = divmod(first, self.windows)
        parts: list[NDArray[np.int64]] = []
        missing = self.rank_sequences
        while missing:  # a batch may end one epoch and begin the next, or hold several of a tiny stream
            count = min(missing, self.windows - index)
            parts.append(self._epoch_starts(epoch, np.arange(index, index + count, dtype=np.int64)))
            missing -= count
            epoch, index = epoch + 1, 0
        return np.concatenate(parts)

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs and targets of this rank at a step: int64 (B, L) each, the second a token later."""
        L = self._seq_len
        tokens = np.empty((self.rank_sequences, L + 1), dtype=np.int64)
        for row, start in zip(tokens, self.starts(step).tolist(), strict=True):
            row[:] = self._stream.slice(start, start + L + 1)
        return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])

    def _epoch_starts(self, epoch: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self._shuffled:
            return index * self._seq_len
        offset = int(_keys(self._seed, epoch, _ROUNDS + 1)[-1] % np.uint64(self._offsets))
        return permute(index, self.windows, self._seed, epoch) * self._seq_len + offset
