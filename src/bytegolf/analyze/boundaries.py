"""What learned chunk boundaries have to do with words: counts and ratios over windows of bytes.

The convention, on which every figure here rests:

- A boundary *at* byte t means that byte t starts a chunk.
- Position 0 of a window is a boundary by architecture (p_0 = 1, S2). It starts a chunk, but nobody chose it,
  so it is not counted; nor is it among the positions where a boundary could have been.
- Whitespace is ASCII: space, \\t, \\n, \\r, \\v, \\f.
- A boundary lies *behind* whitespace if byte t-1 is whitespace (a word with its trailing space is a chunk),
  *at* whitespace if byte t is (with its leading space), and *touches* it if it does either, so that both
  styles are scored alike. Between two spaces it does both.
- Chance, for each of these, is the share of the positions that have the property: what boundaries placed at
  random would show, whatever their rate.

S2 (PR #1104) reports the same quantities: boundaries per 256, whitespace agreement and the CV of chunk sizes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from bytegolf.data.tokenizer import WHITESPACE

Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass
class BoundaryStats:
    """Counts over the windows given to :meth:`add`; every ratio is a property, and NaN while it has no data.

    Attributes:
        windows: windows added.
        bytes: bytes in them.
        positions: bytes at which a boundary could have been chosen; a window's first byte is none of them.
        boundaries: how many of them were chosen.
        behind, at, touching: how many chosen boundaries lie behind, at or touch whitespace.
        behind_positions, at_positions, touching_positions: how many positions do.
        splitting: how many chosen boundaries fall inside a UTF-8 character (byte t is a continuation byte).
        splitting_positions: how many positions do.
        lengths: how many complete chunks (see :meth:`add`) there are of each length in bytes.
    """

    windows: int = 0
    bytes: int = 0
    positions: int = 0
    boundaries: int = 0
    behind: int = 0
    behind_positions: int = 0
    at: int = 0
    at_positions: int = 0
    touching: int = 0
    touching_positions: int = 0
    splitting: int = 0
    splitting_positions: int = 0
    lengths: Counter[int] = field(default_factory=Counter)

    def add(self, window: Bytes, boundaries: Mask, *, candidates: Mask | None = None, whole: bool = False) -> None:
        """Count one window.

        Args:
            window: n bytes, uint8.
            boundaries: n booleans; true where a byte starts a chunk. The first one's value is ignored.
            candidates: n booleans; true where a boundary could be chosen. Left out: everywhere. It is narrower for
                a model over subwords (the starts of tokens) and where the architecture forces a boundary. One that
                lies elsewhere still ends a chunk, but is not counted.
            whole: the window is a text from its beginning to its end, so that its first and its last chunk are
                complete. Otherwise both are cut by the window's edges, at least as far as anyone can tell, and left
                out of the chunk lengths: what counts is what lies between two boundaries.

        Raises:
            TypeError: an array has another dtype.
            ValueError: the arrays do not have one common length.
        """
        candidates = np.ones(len(window), np.bool_) if candidates is None else candidates
        _check(window, boundaries, candidates)
        if len(window) == 0:
            return
        free = candidates.copy()
        free[0] = False
        chosen = boundaries & free
        white = is_whitespace(window)
        follows = np.concatenate(([False], white[:-1]))
        self.windows += 1
        self.bytes += len(window)
        self.positions += int(free.sum())
        self.boundaries += int(chosen.sum())
        self.behind += int((chosen & follows).sum())
        self.behind_positions += int((free & follows).sum())
        self.at += int((chosen & white).sum())
        self.at_positions += int((free & white).sum())
        touches = touching_whitespace(window)
        self.touching += int((chosen & touches).sum())
        self.touching_positions += int((free & touches).sum())
        inside = is_continuation(window)
        self.splitting += int((chosen & inside).sum())
        self.splitting_positions += int((free & inside).sum())
        edges = np.flatnonzero(boundaries[1:]) + 1
        if whole:
            edges = np.concatenate([[0], edges, [len(window)]])
        self.lengths.update(np.diff(edges).tolist())

    def __add__(self, other: BoundaryStats) -> BoundaryStats:
        """The counts of both."""
        return BoundaryStats(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def chunks(self) -> int:
        """Complete chunks."""
        return self.lengths.total()

    @property
    def chunk_bytes(self) -> int:
        """Bytes in them."""
        return sum(length * count for length, count in self.lengths.items())

    @property
    def rate(self) -> float:
        """Share of the positions that became boundaries."""
        return _ratio(self.boundaries, self.positions)

    @property
    def boundaries_per_256(self) -> float:
        """256 times the rate: S2's figure for a window of 256 bytes (or tokens, where candidates are
        tokens)."""
        return 256 * self.rate

    @property
    def whitespace_agreement(self) -> float:
        """Share of the boundaries that touch whitespace."""
        return _ratio(self.touching, self.boundaries)

    @property
    def random_agreement(self) -> float:
        """The whitespace agreement to expect of boundaries placed at random, whatever their rate.

        Exactly the share of positions that touch whitespace, about a third in English prose: the agreement
        means something only above it.
        """
        return _ratio(self.touching_positions, self.positions)

    @property
    def utf8_splits(self) -> float:
        """Share of the boundaries that fall inside a UTF-8 character."""
        return _ratio(self.splitting, self.boundaries)

    @property
    def mean_chunk_bytes(self) -> float:
        """Mean length of the complete chunks, in bytes."""
        return _ratio(self.chunk_bytes, self.chunks)

    @property
    def cv(self) -> float:
        """Coefficient of variation of the complete chunks' lengths: (population) standard deviation / mean.

        0 for a fixed stride, near 1 for boundaries placed at random.
        """
        # integers until the root, so that nothing cancels
        squares = sum(length**2 * count for length, count in self.lengths.items())
        spread = self.chunks * squares - self.chunk_bytes**2
        return _ratio(math.sqrt(spread), self.chunk_bytes)

    def to_dict(self) -> dict[str, int | float | None]:
        """The figures as plain JSON data; None where there is nothing to divide by."""
        ratios = {
            "rate": self.rate,
            "boundaries_per_256": self.boundaries_per_256,
            "whitespace_agreement": self.whitespace_agreement,
            "random_agreement": self.random_agreement,
            "whitespace_behind": _ratio(self.behind, self.boundaries),
            "random_behind": _ratio(self.behind_positions, self.positions),
            "whitespace_at": _ratio(self.at, self.boundaries),
            "random_at": _ratio(self.at_positions, self.positions),
            "mean_chunk_bytes": self.mean_chunk_bytes,
            "cv": self.cv,
            "utf8_splits": self.utf8_splits,
            "random_utf8_splits": _ratio(self.splitting_positions, self.positions),
        }
        plain = {name: None if math.isnan(value) else value for name, value in ratios.items()}
        return {
            "windows": self.windows,
            "bytes": self.bytes,
            "boundaries": self.boundaries,
            "chunks": self.chunks,
            **plain,
        }


def is_whitespace(window: Bytes) -> Mask:
    """Which bytes are ASCII whitespace."""
    return np.isin(window, np.frombuffer(WHITESPACE, np.uint8))


def touching_whitespace(window: Bytes) -> Mask:
    """At which bytes t a boundary would touch whitespace: t or t-1 is whitespace."""
    white = is_whitespace(window)
    touches = white.copy()
    touches[1:] |= white[:-1]
    return touches


def is_continuation(window: Bytes) -> Mask:
    """Which bytes are a later byte of a UTF-8 character."""
    inside: Mask = (window & 0xC0) == 0x80
    return inside


def token_boundaries_to_bytes(
    token_bytes: Sequence[int] | npt.NDArray[np.integer], boundaries: Sequence[bool] | Mask
) -> Mask:
    """Boundaries between tokens as boundaries between bytes: where each chosen token's first byte lies.

    A token of no bytes (BOS, other specials) passes its boundary on to the next byte; at the end there is
    none, and the boundary is dropped. All tokens chosen gives the ``candidates`` of
    :meth:`BoundaryStats.add`.

    >>> token_boundaries_to_bytes([0, 3, 1, 2], [True, False, False, True]).tolist()
    [True, False, False, False, True, False]

    Args:
        token_bytes: the number of bytes of each token, ≥ 0.
        boundaries: for each token, whether it starts a chunk.

    Raises:
        ValueError: the two differ in length.
    """
    sizes, chosen = np.asarray(token_bytes, np.int64), np.asarray(boundaries, np.bool_)
    if sizes.shape != chosen.shape:
        raise ValueError(f"{sizes.shape} token sizes and {chosen.shape} boundaries: give one of each a token")
    starts = (np.cumsum(sizes) - sizes)[chosen]
    mask = np.zeros(int(sizes.sum()), np.bool_)
    mask[starts[starts < len(mask)]] = True
    return mask


def _check(window: Bytes, boundaries: Mask, candidates: Mask) -> None:
    if window.dtype != np.uint8 or boundaries.dtype != np.bool_ or candidates.dtype != np.bool_:
        raise TypeError("a window must be uint8, its boundaries and candidates bool")
    if window.ndim != 1 or not window.shape == boundaries.shape == candidates.shape:
        raise ValueError(
            f"window {window.shape}, boundaries {boundaries.shape} and candidates {candidates.shape} must "
            "have one common length"
        )


def _ratio(part: int | float, whole: int) -> float:
    return part / whole if whole else math.nan
