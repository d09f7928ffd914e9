"""Samples without a header: what a few statistics of some bytes say they may be.

Cheap enough to be asked of every block. Whether a layout pays is tried out on some of the bytes, so that a wrong guess
costs time only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from bytegolf.config import MixConfig
from bytegolf.infer.layouts import LITTLE, SIGNED, Found, Piece, in_order, no_text
from bytegolf.mixing.coding import BitCoder, code_bytes
from bytegolf.mixing.mixer import Mixer
from bytegolf.mixing.samples import ALL_KINDS, Layout, Samples, mixer_for

LEAST, SOME = 1 << 13, 1 << 16
"""Bytes of which it is worth while, and bytes that are looked at."""

GUESSED = 1 << 40
"""The bytes that guessed samples have: no one knows."""

LONGEST, NARROWEST = 1024, 48
"""Bytes of a record at most, and of a picture's row at least."""


TRIED, GAIN = 3 << 13, 0.98
"""Bytes that are compressed both ways, and to what share a layout must bring them."""


class Guessing:
    """The guesses of one file."""

    def __init__(self) -> None:
        self._last: Found | None = None

    def piece(self, piece: Piece) -> Piece:
        """The same bytes, with samples if they seem to be some; then those of the piece before may go on."""
        last, self._last = self._last, None
        if piece.found is not None:
            return piece
        if not (guesses := list(guess(piece.data))):
            return piece
        if last in guesses:
            self._last = last
            return dataclasses.replace(piece, found=last, goes_on=True)
        self._last = best(piece.data, guesses)
        return dataclasses.replace(piece, found=self._last)


def best(data: bytes, guesses: list[Found]) -> Found | None:
    """The layout by which some of ``data`` get smallest; None if they do not without one."""
    begin = (len(data) - min(TRIED, len(data))) // 2 & ~63
    some = np.frombuffer(data, np.uint8)[begin : begin + TRIED]
    plain = BitCoder(room=2 * TRIED)
    code_bytes(Mixer(MixConfig(megabytes=16, contexts=ALL_KINDS), experts=0), plain, some[:, None].copy())
    least, chosen = GAIN * len(plain.payload() or some), None
    for found in guesses:
        laid = BitCoder(room=2 * TRIED)
        Samples(found.layout, mixer_for(found.layout, 16)).code(laid, in_order(some, found.layout, found.order))
        if (size := len(laid.payload() or some)) < least:
            least, chosen = size, found
    return chosen


def guess(data: bytes) -> Iterator[Found]:
    """Layouts that ``data`` may have, the likelier ones first; mostly none."""
    if len(data) < LEAST:
        return
    begin = (len(data) - min(SOME, len(data))) // 2 & ~63
    some = np.frombuffer(data, np.uint8)[begin : begin + SOME]
    if no_text(some.tobytes()) < len(some) // 50:
        return
    bits = entropy(some)
    if bits < 7.9:  # what is compressed has nothing of the kind
        yield from _sounds(data, some, bits)
        yield from _pictures(data, some)
    if bits < 7.5:
        yield from _tables(data, some)


def entropy(some: UInt8[np.ndarray, " n"]) -> float:
    """Bits per byte of single bytes."""
    p = np.bincount(some, minlength=256) / len(some)
    return float(-(p * np.log2(np.maximum(p, 1e-9))).sum())


def _sounds(data: bytes, some: UInt8[np.ndarray, " n"], bits: float) -> Iterator[Found]:
    """Voices of 8 or 16 bits: where two samples before foretell one so well that its bytes' entropy would be beaten."""
    best: tuple[float, Layout, int] | None = None
    for width, order in ((2, SIGNED | LITTLE), (2, SIGNED), (1, 0), (1, SIGNED)):
        kind = "<i2" if order & LITTLE else ">i2" if width == 2 else "i1" if order else "u1"
        samples = some[: len(some) // 2 * 2].view(kind).astype(np.int64)
        for channels in (1, 2):
            one, two = samples[channels:-channels], samples[: -2 * channels]
            off = np.abs(samples[2 * channels :] - 2 * one + two).mean()
            cost = (np.log2(1 + min(off, np.abs(samples[channels:] - samples[:-channels]).mean())) + 1.5) / width
            if cost < 0.9 * bits and (best is None or cost < best[0] - 0.02):
                best = cost, Layout("sound", channels, width, 0, 0), order
    if best is not None:
        yield Found(0, GUESSED, best[1], best[2])


def _pictures(data: bytes, some: UInt8[np.ndarray, " n"]) -> Iterator[Found]:
    """Rows: the distance at which steps from one pixel to the next go together most."""
    channels = max((1, 3, 4), key=lambda count: _together(some, count) - 0.02 * count)
    if _together(some, channels) < 0.5:
        return
    steps = some[channels:].astype(np.float64) - some[:-channels]
    power = np.abs(np.fft.rfft(steps, 2 * len(some))) ** 2
    shares = np.fft.irfft(power)[NARROWEST : len(some) // 4] / (float(steps @ steps) + 1)
    row = NARROWEST + int(np.argmax(shares))
    if shares.max() > 0.1:
        yield Found(0, GUESSED, Layout("picture", channels, 1, row, 0))


def _together(some: UInt8[np.ndarray, " n"], distance: int) -> float:
    """The correlation of bytes with those so far back."""
    one, two = some[distance:] - some.mean(), some[:-distance] - some.mean()
    return float(one @ two) / (float(one @ one) + 1)


def _tables(data: bytes, some: UInt8[np.ndarray, " n"]) -> Iterator[Found]:
    """Records of one length: at which distance the same byte stands more often than at others around."""
    few = some[: 1 << 14]
    same = np.array([np.count_nonzero(few[d:] == few[:-d]) / (len(few) - d) for d in range(1, LONGEST + 1)])
    usual = float(np.median(same))
    at = int(np.argmax(same > max(0.9 * same[1:].max(), 1.5 * usual + 0.03))) + 1
    if at > 1 and same[at - 1] > 1.5 * usual + 0.03:
        yield Found(0, GUESSED, Layout("table", 1, 1, at, 0))
