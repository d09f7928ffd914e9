"""The mixer: byte distributions of experts and what it has learned from the bytes before, bit by bit.

Legend: S streams, R of them that are asked for, E experts, n bytes.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, UInt8, UInt16, UInt32
from numpy.typing import NDArray

from bytegolf.config import MixConfig
from bytegolf.mixing import tables
from bytegolf.mixing.primer import Primer
from bytegolf.mixing.reference import Reference
from bytegolf.mixing.state import State, ring
from bytegolf.ops import native


class Engine(Protocol):
    """What computes on a ``State``: the kernel, or the reference. Each row's last byte opened a chunk or not."""

    def begin(
        self,
        rows: Int[np.ndarray, " R"],
        frequencies: UInt32[np.ndarray, "R E 256"],
        opens: Bool[np.ndarray, " R"],
    ) -> None:
        """The distributions of the next byte of each row."""

    def predict(self, rows: Int[np.ndarray, " R"], nodes: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
        """The probability of a 1 at a node of each row in units of 2⁻¹⁶, 1 … 65535."""

    def nodes(self, rows: Int[np.ndarray, " R"]) -> Int[np.ndarray, "R 256"]:
        """The same at every node, of which there is none 0."""

    def learn(self, rows: Int[np.ndarray, " R"], data: UInt8[np.ndarray, " R"]) -> None:
        """The byte that came in each row."""

    def prime(self, row: int, data: UInt8[np.ndarray, " n"]) -> None:
        """n bytes of one row, counted and not predicted."""

    def run(
        self,
        row: int,
        frequencies: UInt32[np.ndarray, "n E 256"],
        opens: Bool[np.ndarray, " n"],
        data: UInt8[np.ndarray, " n"],
    ) -> UInt16[np.ndarray, "n 8"]:
        """n bytes of one row, each begun, predicted and learned: what each of their bits was given, of 2⁻¹⁶."""


class Kernel:
    """An ``Engine`` in C++."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._frames = np.zeros(state.rows * 16384 + 64, np.uint8)
        start = self._frames.ctypes.data + -self._frames.ctypes.data % 64
        self._kept: list[NDArray[Any] | int] = [
            state.table, state.maps, state.match_maps, state.weights, state.final_weights, state.apm, state.positions,
            state.text, state.history, start, state.counts, tables.squash(), tables.stretch(), tables.log_mantissa(),
            state.boost, state.numbers, state.slot_rate, state.map_rate, *(
                np.array(numbers, np.int64) for numbers in (state.contexts, state.selectors, state.set_offsets)
            ), state.given, state.alone, state.bins, state.level_gaps, state.trust,
        ]  # fmt: skip
        addresses = [one if isinstance(one, int) else one.ctypes.data for one in self._kept]
        sizes = (len(state.contexts), len(state.selectors), state.experts, state.inputs, state.bits, state.ring)
        self._fields = torch.tensor(addresses, dtype=torch.int64)
        more = (state.position_bits, state.shortest, state.alone_inputs, state.chained)
        self._sizes = torch.tensor((*sizes, *more), dtype=torch.int64)

    def _call(self, name: str, *arguments: NDArray[Any] | int) -> None:
        kept = [one if isinstance(one, int) else np.ascontiguousarray(one) for one in arguments]
        packed = [one if isinstance(one, int) else one.ctypes.data for one in kept]
        native.call(name, _LIKE, self._fields, self._sizes, *packed)

    def begin(self, rows: NDArray[np.int64], frequencies: NDArray[np.uint32], opens: NDArray[np.bool_]) -> None:
        frequencies, stride = _spaced(frequencies)
        self._call("mixing_begin", rows, len(rows), frequencies.ctypes.data, stride, opens)

    def predict(self, rows: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.int32]:
        out = np.empty(len(rows), np.int32)
        self._call("mixing_predict", rows, len(rows), nodes, out)
        return out

    def nodes(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        out = np.zeros((len(rows), 256), np.int32)
        self._call("mixing_nodes", rows, len(rows), out)
        return out

    def learn(self, rows: NDArray[np.int64], data: NDArray[np.uint8]) -> None:
        self._call("mixing_learn", rows, len(rows), data)

    def run(
        self, row: int, frequencies: NDArray[np.uint32], opens: NDArray[np.bool_], data: NDArray[np.uint8]
    ) -> NDArray[np.uint16]:
        out = np.empty((len(data), 8), np.uint16)
        frequencies, stride = _spaced(frequencies)
        self._call("mixing_run", row, len(data), frequencies.ctypes.data, stride, opens, data, out)
        return out

    def prime(self, row: int, data: NDArray[np.uint8]) -> None:
        self._call("mixing_prime", row, len(data), data)

    def code(
        self,
        rows: NDArray[np.int64],
        frequencies: NDArray[np.uint32],
        data: NDArray[np.uint8],
        coder: NDArray[np.int64],
        buffer: NDArray[np.uint8],
    ) -> None:
        """Code ``data`` (T, R) with a ``coding.BitCoder``'s numbers and buffer; see ``coding.code_bytes``."""
        assert data.flags.c_contiguous
        frequencies, stride = _spaced(frequencies)
        arguments = (rows, len(rows), len(data), frequencies.ctypes.data, stride, np.zeros(len(rows), np.bool_))
        self._call("mixing_code", *arguments, data, coder, buffer, len(buffer))

    def code_samples(
        self,
        samples: NDArray[np.int64],
        data: NDArray[np.uint8],
        coder: NDArray[np.int64],
        buffer: NDArray[np.uint8],
    ) -> None:
        """Code ``data`` (n) of one stream with ``samples.Samples``, whose arrays lie at ``samples``."""
        assert data.flags.c_contiguous
        self._call("samples_code", samples, len(data), data, coder, buffer, len(buffer))


_LIKE = torch.empty(0)


def _spaced(frequencies: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], int]:
    """Distributions that the kernel can read, and how many numbers lie between two: a slice of rows need no copy."""
    rows, experts, size = frequencies.shape
    gap = frequencies.strides[0] // 4 if rows > 1 else size
    if frequencies.strides[2] == 4 and experts == 1:
        return frequencies, gap
    return np.ascontiguousarray(frequencies), size


class Mixer:
    """Probabilities of the next byte of several streams, which share what they learn.

    A byte of stream ``r`` goes through ``begin``, any number of ``predict`` or ``distribution``, and ``learn``; all
    predictions between are made from what was learned before ``begin``. Several rows at a time are worked out from the
    same knowledge and learned in their order. ``run`` does the whole for many bytes of one stream.

    ``length`` is how many bytes back a repetition can be found. ``primed``: a text is going to be read before all
    streams (``prime``). ``given``: see ``State``. Without ``native`` kernels plain NumPy computes the
    same, some hundred times slower.
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
        self.state = State(settings, streams, experts, length, primed, given)
        self._begun = np.zeros(streams, np.bool_)
        self.engine: Engine = Kernel(self.state) if native.why_not() is None else Reference(self.state)

    @staticmethod
    def behind(
        primer: Primer | None, settings: MixConfig, streams: int = 1, experts: int = 1, length: int = 1 << 24
    ) -> Mixer:
        """A mixer that has read ``primer`` (None: nothing), and has room for all of it."""
        if primer is None:
            return Mixer(settings, streams, experts, length)
        room = max(length, primer.size)
        if ready := primer.readers.pop((settings, streams, experts, ring(room)), None):
            assert isinstance(ready, Mixer)
            return ready
        mixer = Mixer(settings, streams, experts, room, primed=True)
        mixer.read(primer)
        return mixer

    @staticmethod
    def prepare(primer: Primer, settings: MixConfig) -> None:
        """Have a mixer of one stream and one expert read a primer, for the first one to be asked for ``behind`` it."""
        mixer = Mixer.behind(primer, settings, length=primer.size)
        primer.readers[settings, 1, 1, mixer.state.ring] = mixer

    def reset(self) -> None:
        """Forget everything."""
        self.state.reset()

    def begin_anew(self, primer: Primer | None) -> None:
        """Know ``primer`` (None: nothing) and nothing else, as before the first text."""
        if primer is None:
            self.reset()
        else:
            self.read(primer)

    def read(self, primer: Primer) -> None:
        """Know a text and nothing else: what follows its contexts is counted, and none of it predicted, so that weights
        and corrections are as new. All streams know it, and none goes on from its end.

        The second mixer of a kind keeps a copy of what is known then for those behind it, as a proof makes dozens. A
        score makes one, and a copy of a gigabyte takes as long as scoring.
        """
        state = self.state
        assert state.rows > state.streams, "this mixer has no room for a text before all others"
        kind = (state.settings, state.rows, state.experts, state.ring)
        if known := primer.known.get(kind):
            state.restore(known)
            return
        again = kind in primer.known
        self.reset()
        self.engine.prime(state.streams, primer.data)
        primer.known.clear()
        primer.known[kind] = state.snapshot() if again else None

    def begin(
        self,
        frequencies: UInt32[np.ndarray, "R E 256"],
        opens: Bool[np.ndarray, " R"] | None = None,
        rows: Int[np.ndarray, " R"] | None = None,
    ) -> None:
        """Take each expert's distribution of the next byte of ``rows`` (None: all), as integers above 0 of any sum.

        ``opens``: whether the byte before it began a chunk of the model's (None: not).
        """
        which = self._rows(rows)
        self.engine.begin(which, frequencies, np.zeros(len(which), np.bool_) if opens is None else opens)
        self._begun[which] = True

    def predict(self, nodes: Int[np.ndarray, " R"], rows: Int[np.ndarray, " R"] | None = None) -> Int[np.ndarray, " R"]:
        """The probability of a 1 at a node of each row, in units of 2⁻¹⁶ (1 … 65535).

        A node is 1, and behind it the bits of the byte so far: 1 at its first bit, 0b101 behind the bits 0 and 1. Each
        byte must be asked about from its first node on, one bit deeper each time.
        """
        return self.engine.predict(self._ready(rows), nodes)

    def distribution(self, rows: Int[np.ndarray, " R"] | None = None) -> Float64[np.ndarray, "R 256"]:
        """The probabilities of all bytes: at each byte the product of its eight bits', which is what it would cost."""
        ones = self.engine.nodes(self._ready(rows)) / tables.SHARES
        found = np.ones((len(ones), 1))
        for depth in range(8):
            p = ones[:, 1 << depth : 2 << depth]
            found = np.stack((found * (1 - p), found * p), 2).reshape(len(ones), -1)
        return found

    def learn(self, data: UInt8[np.ndarray, " R"], rows: Int[np.ndarray, " R"] | None = None) -> None:
        """Learn the byte that came in each row."""
        which = self._ready(rows)
        self.engine.learn(which, data)
        self._begun[which] = False

    def run(
        self,
        data: UInt8[np.ndarray, " n"],
        frequencies: UInt32[np.ndarray, "n E 256"],
        opens: Bool[np.ndarray, " n"] | None = None,
        row: int = 0,
    ) -> Float64[np.ndarray, " n"]:
        """What each of the next bytes of a stream costs in nats, learned one after the other."""
        opens = np.zeros(len(data), np.bool_) if opens is None else opens
        given = self.engine.run(row, frequencies, opens, data)
        self._begun[row] = False
        costs: NDArray[np.float64] = tables.nats()[given].sum(1)
        return costs

    @functools.cached_property
    def _all(self) -> NDArray[np.int64]:
        return np.arange(self.state.streams)

    def _rows(self, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
        return self._all if rows is None else rows

    def _ready(self, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
        which = self._rows(rows)
        if not self._begun[which].all():
            raise RuntimeError("a byte of a stream is asked for or learned before it was begun")
        return which
