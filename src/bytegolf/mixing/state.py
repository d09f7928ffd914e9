"""What mixing remembers: counters, weights, the text so far. Plain arrays, on which the kernel and the reference work.

Legend: S streams, C contexts, E experts, N inputs of a mixer, M selectors (weight sets chosen at a time).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytegolf.config import MixConfig
from bytegolf.errors import BytegolfError, sized
from bytegolf.mixing import tables
from bytegolf.mixing.arithmetic import GIVEN

CONTEXTS = {
    **{f"o{n}": n for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24)},
    **{"word": 32, "words": 33, "word-skip": 34, "chunk": 40, "chunks": 41, "chunk-skip": 42},
    **{"skip1-2": 48, "skip1-3": 49, "skip2-2": 50, "high": 51, "skip3": 52, "column4": 53, "slope4": 54},
}
"""The kinds of contexts by their names in a configuration; the kernel has the same numbers."""

SELECTORS = {
    "bits": (0, 256),
    "last": (1, 256),
    "before": (2, 256),
    "match": (3, 16 * 8 * 8),
    "known": (4, 8 * 16 * 8),
    "unsure": (5, 8 * 16 * 16),
    "chunk": (6, 16 * 8 * 16),
}
"""The number of each selector, and among how many sets of weights it chooses."""

GIVEN_SET, MOST_GIVEN = 8, 16
"""The number of the first selector that comes from outside (``State.given``), and room for contexts that do."""

GIVEN_SETS = (256 * 8, 512 * 8)
"""Among how many sets of weights the selectors from outside choose."""

MOST_SETS, MOST_EXPERTS = 8, 6
"""Of one mixer, as the kernel has them."""

VISITS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512)
"""What a slot's 16 classes of visits stand for; from one to the next by chance where there is more than one between."""

ALONE_SETS = 256 + 256 + 8 * 16 * 8
SLOTS = 16
"""32-bit slots of a bucket: one to know it by, and one for each of the 15 nodes of half a byte."""

APM_CELLS, APM_ROWS = 33, 2 * 65536
SHORTEST_MATCH = 5
"""Bytes that must be equal before what followed them is expected again."""

HISTORY = (
    "last8", "before8", "before16", "word", "word_before", "chunk", "chunk_before",
    "chunk_bytes", "match_at", "match_bytes", "length", "pending",
)  # fmt: skip
"""The numbers per stream, of which there is room for 16: the last 8 bytes, the 8 before, the 8 before those; hashes of
words and chunks; the bytes of the chunk so far; where the match goes on and how long it is; bytes read; the byte that
was learned last and is not in the history yet (−1: none)."""


@dataclass(frozen=True)
class Rates:
    """How fast things are learned; set on the first third of the default validation split (docs/mixing.md)."""

    first: float = 0.02
    """of the mixers' weights: ``first`` at the beginning …"""
    last: float = 0.003
    """… ``last`` in the end …"""
    decay: float = 0.0002
    """… and in between last + first/(1 + decay · bytes)"""
    final: float = 0.0001
    """of the weights that combine the mixers beside a model; twice that without one"""
    correction: float = 0.1
    """of the corrections, times 1 + ``young`` / visits …"""
    correction_primed: float = 0.14
    """… and behind a primer"""
    young: float = 20.0
    """beside a model …"""
    young_alone: float = 10.0
    """… and without one"""
    slot: float = 1.6
    """a slot's rate is 1/(visits + slot) …"""
    most_primed: int = 512
    """… up to so many visits behind a primer, whose text is of one kind with what comes …"""
    most: int = 16
    """… so many beside a model alone …"""
    most_alone: int = 8
    """… and so many without one, where a file may be of any kind"""
    alone: float = 0.0005
    """of the weights of contexts alone (``State.alone``) in the end; ``first`` and ``decay`` as above"""
    trust_keep: float = 0.98
    """how much of what contexts alone would have saved is still known a byte later"""
    trust_gain: float = 0.15
    """a logit's worth of a nat saved"""
    trust_first: float = 2.5
    """the logit of the share of all in the result where neither saves anything"""
    refined: float = 0.12
    """the share of each refined probability (APM) in the result beside a model; twice that without one"""
    context_weight: float = 0.04
    """what a context's input weighs at first, where there is a model …"""
    context_weight_alone: float = 0.16
    """… and where there is none"""
    expert_weight: float = 0.9
    """what the experts weigh at first, together"""
    alone_weight: float = 0.2
    """what contexts alone weigh at first beside them"""
    other_weight: float = 0.3
    """what the correction weighs at first, and ⅔ of it the match"""


Snapshot = tuple[NDArray[Any], ...]
"""Copies of a state's arrays."""


def ring(length: int) -> int:
    """How many bytes of a stream of ``length`` are kept for matches: a power of 2."""
    return 1 << max(6, min(24, (length - 1).bit_length()))


class State:
    """The arrays of one mixer for ``streams`` streams, which share counters and weights, and have a history each.

    Memory is taken when it is touched, so a small text costs little whatever ``settings.megabytes`` says.

    Raises BytegolfError for more streams than positions can be told apart of.
    """

    def __init__(
        self,
        settings: MixConfig,
        streams: int = 1,
        experts: int = 1,
        length: int = 1 << 24,
        primed: bool = False,
        given: int = 0,
    ) -> None:
        """``length``: how many bytes back a match can lie, of those of one stream; a power of 2 or the one above.

        ``primed``: there is one stream more, of what was read before all others (``mixing.primer``). ``given``: so many
        contexts and, if any, two selectors come from outside (``mixing.samples``), besides those of ``settings``.
        """
        if not 0 <= experts <= MOST_EXPERTS:
            raise BytegolfError(f"{experts} experts: mixing takes up to {MOST_EXPERTS}")
        rates = self.rates = Rates()
        self.settings, self.streams, self.experts = settings, streams, experts
        self.rows = rows = streams + primed
        self.ring = ring(length)
        if rows * self.ring >= 1 << 32:
            raise BytegolfError(f"{streams} streams of {self.ring} bytes cannot be mixed together: take fewer")
        self.bits = (settings.megabytes << 20).bit_length() - 7  # log₂ of the buckets, 64 bytes each
        self.position_bits = min(22 if primed else 20, max(12, (rows * self.ring).bit_length() - 1))
        self.shortest = SHORTEST_MATCH
        self.contexts = [*range(GIVEN, GIVEN + given), *(CONTEXTS[name] for name in settings.contexts)]
        outside = tuple((GIVEN_SET + i, size) for i, size in enumerate(GIVEN_SETS)) if given else ()
        chosen = [SELECTORS[name] for name in settings.selectors] + [*outside]
        self.selectors, sizes = [number for number, _ in chosen], [size for _, size in chosen]
        self.given = aligned((MOST_GIVEN + len(GIVEN_SETS),), np.uint64)
        """of the next byte: contexts as numbers of 64 bits, then which eight sets of weights, one for each bit"""
        self.set_offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        self.chained = experts > 0 and not given
        """whether contexts alone, without the expert, predict as well, by weights that a primer teaches, too: one input
        more, and what is trusted where an expert knows nothing of the text"""
        self.alone_inputs = _padded(2 * len(self.contexts) + 3)
        """A: two inputs of each context, match (2), 1; then zeros up to a multiple of 8"""
        self.inputs = _padded(self.alone_inputs + 1 + experts + self.chained)
        """N: those, correction, experts, contexts alone; then zeros up to a multiple of 8"""
        self.table: NDArray[np.uint32] = aligned((1 << self.bits, SLOTS), np.uint32)
        """a bucket's first slot: its hash's last 16 bits, above them the generation; each other one: the class of
        visits (4 bits, ``VISITS``), the probability of a 1 (16), the correction in units of 2⁻⁸ (12, signed)"""
        self.maps = aligned((len(self.contexts), 16, 64), np.uint32)
        """what a slot's visits and probability stand for: a probability of 22 bits above a count of 10"""
        self.match_maps = aligned((32,), np.uint32)
        """how often the expected bit comes, by the match's length"""
        self.weights = aligned((sum(sizes), self.inputs), np.float32)
        self.alone = aligned((ALONE_SETS if self.chained else 0, self.alone_inputs), np.float32)
        """weights of contexts alone: by the bits so far, by the last byte, by the match and how many are known"""
        self.final_weights = aligned((64, MOST_SETS), np.float32)
        self.apm = aligned((APM_ROWS, APM_CELLS), np.uint16)
        """refined probabilities, by the mixers' (33 supporting points over −8 … 8) and a context"""
        self.positions = aligned((1 << self.position_bits,), np.uint32)
        """where the last bytes, by their hash, came last: stream · ring + place, plus 1"""
        self.text = aligned((rows, self.ring), np.uint8)
        self.history = aligned((rows, 16), np.int64)
        self.trust = aligned((2,), np.float32)
        """what contexts alone would have cost more than all of late, in logits; the share of all in the result"""
        self.counts = np.array([0, 0, 0], np.int64)
        """the table's generation, the bytes learned, and those that contexts alone predicted"""
        visits = np.array(VISITS, np.float64)
        self.level_gaps = np.append(np.diff(VISITS) - 1, (1 << 31) - 1).astype(np.int32)
        """of each class of visits: it rises by a chance of 1 in this and 1, a power of 2"""
        most = rates.most_primed if primed else rates.most if self.chained else rates.most_alone
        self.slot_rate = np.array([int(32768 / (min(n, most) + rates.slot)) for n in VISITS], np.int32)
        self.bins = np.clip(np.floor(tables.stretch() * 4 + 32), 0, 63).astype(np.int32)
        """a probability's first 12 bits as one of 64 classes, a quarter of a logit each"""
        self.map_rate = np.array([int(65536 / (n + 1.5)) for n in range(1024)], np.int32)
        young = rates.young if experts else rates.young_alone
        correction = rates.correction_primed if primed else rates.correction
        self.boost = (256 * correction * (1 + young / np.maximum(visits, 1))).astype(np.float32)
        share = rates.refined if experts else 2 * rates.refined
        final = rates.final if self.chained else 2 * rates.final
        self.numbers = np.array(
            [
                rates.first, rates.last, rates.decay, final, 0, 1 - 2 * share, share,
                rates.alone, rates.trust_keep, rates.trust_gain, rates.trust_first,
            ],
            np.float32,
        )  # fmt: skip
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if new; the table by a new generation, which makes all of its buckets stale."""
        # (a table of 1 GB is not zeroed for each document: a bucket of generation 7 counts as empty in generation 8)
        self.counts[:] = (self.counts[0] + 1) % (1 << 16), 0, 0
        if self.counts[0] == 0:  # generations begin anew: here old ones could be taken for new
            self.table[:] = 0
            self.counts[0] = 1
        # before anything is known a slot's probability stands for itself: for the middle of its class
        squash = tables.squash()
        middles = squash[16 * np.arange(64) + 8 + (tables.FAR - 8) * tables.PER_UNIT].astype(np.float64)  # of ``bins``
        self.maps[:] = (middles * 4194303).astype(np.uint32) << 10
        lengths = 1 - 1 / (np.arange(32) + 2.5)
        self.match_maps[:] = (lengths * 4194303).astype(np.uint32) << 10
        rates, count, experts = self.rates, len(self.contexts), self.experts
        first = np.zeros(self.inputs)
        first[:count] = rates.context_weight if experts else rates.context_weight_alone
        first[2 * count : 2 * count + 2] = rates.other_weight * 2 / 3
        at = self.alone_inputs
        self.alone[:] = first[:at]
        self.alone[:, :count] = rates.context_weight_alone
        first[at] = rates.other_weight
        first[at + 1 : at + 1 + experts] = rates.expert_weight / max(1, experts)
        first[at + 1 + experts : at + 1 + experts + self.chained] = rates.alone_weight
        self.trust[:] = 0, squash[int((rates.trust_first + tables.FAR) * tables.PER_UNIT)]
        self.weights[:] = first
        self.final_weights[:] = 1 / len(self.selectors)
        points = squash[np.arange(-8 * 64, 8 * 64 + 1, 32) + tables.FAR * tables.PER_UNIT]
        self.apm[:] = np.minimum(points * 65536, 65535).astype(np.uint16)
        self.positions[:] = 0
        self.history[:] = 0
        self.history[:, HISTORY.index("pending")] = -1

    def snapshot(self) -> Snapshot:
        """A copy of all that was learned, for ``restore``."""
        return tuple(array.copy() for array in self._learned())

    def restore(self, snapshot: Snapshot) -> None:
        """Know what was known when a state of the same shapes gave ``snapshot``, and nothing else."""
        for array, kept in zip(self._learned(), snapshot, strict=True):
            array[:] = kept

    def _learned(self) -> Snapshot:
        counters = self.table, self.maps, self.match_maps, self.weights, self.final_weights, self.apm
        return *counters, self.alone, self.trust, self.positions, self.text, self.history, self.counts


def _padded(count: int) -> int:
    """The multiple of 8 that ``count`` inputs take."""
    return -(-count // 8) * 8


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros whose first element lies at a multiple of 64 bytes, as vectors and whole buckets want it.

    Raises BytegolfError where there is no memory for them.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        room = np.zeros(size + 64, np.uint8)
    except MemoryError as error:
        raise BytegolfError(
            f"{sized(size)} of memory for mixing's contexts cannot be had: take fewer (eval.mix.megabytes, "
            "--mix-megabytes)"
        ) from error
    start = -room.ctypes.data % 64
    found: NDArray[Any] = room[start : start + size].view(dtype).reshape(shape)
    return found
