"""Pictures, sounds and tables: numbers in rows and channels, as contexts and experts of a mixer.

Text is repetition; a picture is not: a pixel is *near* those around it, and hardly ever the same. So a sample (a number
of one to three bytes of a channel) is predicted before it is coded, and the mixer gets distributions over its next byte
as experts (``mixer.py``), and what lies around it as contexts from outside (``State.given``).

- Two predictors are least squares over up to 32 samples near by, which forget what is far back, one quickly and one
  slowly (X. Wu, G. Zhai, X. Yang, W. Zhang, "Adaptive sequential prediction of multidimensional signals", 2007). For
  pictures a third is the median of west, north and the plane through both (M. Weinberger, G. Seroussi, G. Sapiro,
  LOCO-I, 2000), of the difference to the channel before; for sounds it is least squares that hardly forget.
- An expert is a logistic distribution around one's prediction, as wide as its errors have been in such a place: by what
  the samples around differ, and the last errors.
- A table's contexts are its column, and what stands above.

fp64 is worked out in one written order (``ops/kernels/exact_samples.h``), so decoding is exact on every machine; the
same in plain NumPy is ``samples_reference.py``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from bytegolf.config import ContextName, MixConfig
from bytegolf.mixing.coding import BitCoder, code_byte
from bytegolf.mixing.mixer import Kernel, Mixer
from bytegolf.mixing.samples_reference import SampleReference

Kind = Literal["picture", "sound", "table"]
KINDS: tuple[Kind, ...] = ("picture", "sound", "table")

MOST_CHANNELS, MOST_WIDTH, MOST_ROW = 8, 3, 1 << 20
NEAR, PREDICTORS, CLASSES, UNIT = 32, 3, 48, 64
"""As the kernel has them: samples that a predictor looks at, predictors, classes of places, parts of a sample."""

ALL_KINDS: tuple[ContextName, ...] = (
    *("o0", "o1", "o2", "o3", "o4", "o5", "o6", "o8", "o12", "o16", "word", "words"),
    *("skip1-2", "skip2-2", "skip1-3", "skip3", "word-skip", "high", "column4", "slope4"),
)
"""Contexts for files of all kinds: besides text's, those that skip bytes, for programs, tables, pictures and sounds
(LOG)."""

_CONTEXTS: dict[Kind, tuple[ContextName, ...]] = {
    "picture": ("o0", "o2", "o3", "o4", "o6"),
    "sound": ("o0", "o1", "o2", "o3", "o4", "o6", "o8", "o12"),
    "table": ALL_KINDS,
}
_GIVEN: dict[Kind, int] = {"picture": 11, "sound": 8, "table": 8}
_SHAPES = np.array([(0, 46), (1, 46), (2, 46), (0, 26)], np.int64)
"""Of each expert: its predictor, and the scale of the logistic distribution in 64ths of the mean error (46: 1/(2 ln 2),
that of one with just this mean)."""


@dataclass(frozen=True)
class Layout:
    """How the samples of some bytes lie."""

    kind: Kind
    channels: int
    """of each pixel or each moment"""
    width: int
    """bytes of a sample, the highest first, and all numbers from 0 on (``infer/layouts.py`` makes them so)"""
    row: int = 0
    """samples of a row, padding counted; 0 for a sound"""
    start: int = 0
    """bytes before the first sample"""

    def valid(self) -> bool:
        """Whether these numbers can be worked with: a file may say anything."""
        rows = self.row == 0 if self.kind == "sound" else self.channels < self.row <= MOST_ROW
        return rows and 1 <= self.channels <= MOST_CHANNELS and 1 <= self.width <= MOST_WIDTH and self.start >= 0


def mixer_for(layout: Layout, megabytes: int) -> Mixer:
    """A mixer for bytes of such a layout."""
    settings = MixConfig(megabytes=megabytes, contexts=_CONTEXTS[layout.kind])
    experts = 0 if layout.kind == "table" else len(_SHAPES)
    return Mixer(settings, experts=experts, given=_GIVEN[layout.kind])


class Samples:
    """What is known of the samples so far, and what it says of the next byte. Plain arrays, for the kernel as well."""

    def __init__(self, layout: Layout, mixer: Mixer) -> None:
        """``mixer`` is one that ``mixer_for`` made for such a layout; it may know samples of others."""
        assert layout.valid(), layout
        self._mixer, self.layout = mixer, layout
        table = layout.kind == "table"
        channels = layout.channels
        self.near = np.zeros((channels, PREDICTORS, NEAR), np.int64)
        """how many samples back those lie that a predictor looks at"""
        self.nears = np.zeros((channels, PREDICTORS), np.int64)
        self.rules = np.array(_RULES[layout.kind])
        for c in range(0 if table else channels):
            for p, distances in enumerate(_distances(layout, c)):
                self.near[c, p, : len(distances)] = distances
                self.nears[c, p] = len(distances)
        reach = max(int(self.near.max()), 2 * (layout.row + channels))
        self.values = np.zeros(1 << (reach + 1).bit_length(), np.int32)
        count = 0 if table else channels
        self.products = np.zeros((count, PREDICTORS, NEAR, NEAR))
        self.sums = np.zeros((count, PREDICTORS, NEAR))
        self.weights = np.zeros((count, PREDICTORS, NEAR))
        self.weights[:, :, 0] = 1
        self.traces = np.zeros((channels, 4), np.int64)
        self.scales = np.zeros((channels, PREDICTORS, CLASSES, 2), np.int64)
        self.scales[..., 0] = [_first_scale(layout.kind, grade) for grade in range(CLASSES)]
        self.rate = np.array([max(65536 // 60, int(65536 / (n + 1.5))) for n in range(256)], np.int32)
        self.shapes, self.spread = _SHAPES, spread()
        self.predicted = np.zeros(PREDICTORS, np.int64)
        self.frequencies = np.ones((0 if table else len(_SHAPES), 256), np.uint32)
        self.numbers = np.zeros(16, np.int64)
        kind = KINDS.index(layout.kind) + 1
        self.numbers[:6] = kind, channels, layout.width, layout.row, len(self.values) - 1, len(self.frequencies)
        self.numbers[6] = -layout.start

    @property
    def given(self) -> NDArray[np.uint64]:
        """Where contexts go: the ``State.given`` of the mixer."""
        return self._mixer.state.given

    def code(self, coder: BitCoder, data: UInt8[np.ndarray, " n"]) -> None:
        """Code the next n bytes, or fill them in; learn them."""
        mixer = self._mixer
        if isinstance(mixer.engine, Kernel):
            mixer.engine.code_samples(self.addresses, data, coder.numbers, coder.buffer)
            return
        plain = SampleReference(self)
        for i in range(len(data)):
            plain.foresee()
            mixer.begin(self.frequencies[None])
            data[i] = code_byte(mixer, coder, int(data[i]))
            mixer.learn(data[i : i + 1])
            plain.learn(int(data[i]))

    @functools.cached_property
    def addresses(self) -> NDArray[np.int64]:
        """Where the arrays lie, for the kernel."""
        arrays = (
            self.numbers, self.values, self.near, self.nears, self.rules, self.products, self.sums, self.weights,
            self.traces, self.scales, self.rate, self.shapes, self.spread, self.predicted, self.frequencies, self.given,
        )  # fmt: skip
        return np.array([array.ctypes.data for array in arrays], np.int64)


_RULES: dict[Kind, list[tuple[float, float, float]]] = {
    "picture": [(0.005, 0.5, 3), (0.02, 0.5, 2), (0, 1, 1)],
    "sound": [(0.006, 0.05, 8), (0.03, 0.05, 4), (0.0015, 0.05, 16)],
    "table": [(0, 1, 1)] * 3,
}
"""Of each predictor: how much the last sample weighs, what is added to each square, samples between two solutions."""


def _distances(layout: Layout, channel: int) -> list[list[int]]:
    """How far back the samples lie that each predictor of a channel looks at; none for the median."""
    count, row = layout.channels, layout.row
    if layout.kind == "sound":
        own = [count * i for i in range(1, 33)]
        others = [i for i in range(1, 4 * count) if i % count]
        long = own[: 24 if others else 32] + others[:8]
        return [long, own[:8] + others[:4], long]
    west, north = count, row
    own = [west, north, north + west, north - west, 2 * west, 2 * north, 2 * north - west, north - 2 * west]
    own += [2 * north + west, north + 2 * west, 3 * west]
    before = [
        i for j in range(1, min(channel, 2) + 1) for i in (j, j + west, j + north, j + north + west, j + north - west)
    ]
    after = [i - j for j in range(1, min(count - channel, 3)) for i in (west, north)]
    small = own[:6] + [i for i in before if i < west + 2 or north < i < north + 2][:6]
    return [[i for i in own + before + after if i > 0][:NEAR], [i for i in small if i > 0], []]


def _first_scale(kind: Kind, grade: int) -> int:
    """The mean error in a place of a class before any was seen, in 2⁻⁸ of a ``UNIT``."""
    size = grade if grade < 2 else (2 + grade % 2) << grade // 2 - 1
    return (size * UNIT // 6 + UNIT // 2) * 256 if kind == "picture" else max(size * UNIT // 8, UNIT // 4) * 256


@functools.cache
def spread() -> NDArray[np.int32]:
    """2²⁸/(1 + e^−x) at x = −12, −12 + 1/64, … 12."""
    return np.array([round((1 << 28) / (1 + math.exp(12 - i / 64))) for i in range(24 * 64 + 2)], np.int32)
