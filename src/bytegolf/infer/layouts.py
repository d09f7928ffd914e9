"""Where samples lie in a file: the headers of pictures and sounds that are not compressed.

Only an encoder asks; what it found is in the file that it writes, so a wrong guess costs bytes and never the original.
Numbers of a header are believed once they fit each other. Formats: BMP and the bitmaps of icons (BITMAPINFOHEADER), PNM
and PAM, TGA, TIFF, WAV, AIFF, AU, NPY.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from bytegolf.mixing.samples import Layout

LITTLE, SIGNED, MU_LAW = 1, 2, 4
"""How samples are written, in an ``order``: the lowest byte first; around 0, in two's complement; in mu-law."""

LEAST, LEAST_WITHIN = 256, 2048
"""Bytes of samples that are worth a layout of their own, at a file's beginning and within a file, where they are one
more block."""

TAIL = 64
"""Bytes at a file's end, behind samples, that are not worth a block of another kind."""


@dataclass(frozen=True)
class Found:
    """Samples: ``begin`` is where their header begins, ``size`` the bytes from there to their end."""

    begin: int
    size: int
    layout: Layout
    order: int = 0


def in_order(data: UInt8[np.ndarray, " n"], layout: Layout, order: int, back: bool = False) -> UInt8[np.ndarray, " n"]:
    """A copy with each sample's highest byte first, as a number from 0 on; ``back``: as it was before that."""
    changed = data.copy()
    count = max(0, len(data) - layout.start) // layout.width
    samples = changed[layout.start : layout.start + count * layout.width].reshape(count, layout.width)
    if order & MU_LAW:  # 00 … 7F is from the lowest to 0, 80 … FF from the highest to 0
        samples[:] = np.where(samples < 128, samples, 127 - samples)  # 127 − 255 is 128 modulo 256
    if order & SIGNED and back:
        samples[:, 0] ^= 128
    if order & LITTLE:
        samples[:] = samples[:, ::-1].copy()
    if order & SIGNED and not back:
        samples[:, 0] ^= 128
    return changed


def find(data: bytes, first: bool = False) -> Found | None:
    """The first samples in ``data``, which may go on behind its end. ``first``: it is the beginning of a file."""
    if first and (found := _tga(data)) and _likely(data, found):
        return found
    for match in _MARKS.finditer(data):
        found = _READERS[match.lastgroup or ""](data, match.start())
        if found and _likely(data, found):
            return found
    return None


def _likely(data: bytes, found: Found) -> bool:
    """Whether these may be samples: enough of them, and no text that speaks of such a header."""
    if not found.layout.valid() or found.size - found.layout.start < (LEAST_WITHIN if found.begin else LEAST):
        return False
    begin = found.begin + found.layout.start
    some = data[begin : begin + min(4096, found.size)]
    return bool(some) and no_text(some) > len(some) // 50


def no_text(some: bytes) -> int:
    """How many bytes are not of ASCII text."""
    return len(some.translate(None, _TEXT))


_TEXT = bytes([9, 10, 13, *range(32, 127)])


# ------------------------------------------------------------------------------------------------------- pictures


def _bitmap(data: bytes, at: int) -> Found | None:
    """A BITMAPINFOHEADER: of a BMP behind its first 14 bytes, of an icon or a cursor by itself."""
    if len(data) < at + 40:
        return None
    _, wide, high, _, bits, packing, _, _, _, used, _ = struct.unpack_from("<IiiHHIIiiII", data, at)
    if (
        bits not in (1, 4, 8, 16, 24, 32)
        or packing not in (0, 3)
        or not 0 < wide < 1 << 20
        or not 0 < abs(high) < 1 << 20
    ):
        return None
    row = (wide * bits + 31) // 32 * 4
    whole = data[at - 14 : at - 12] == b"BM" if at >= 14 else False
    if whole:
        begin, pixels = at - 14, int.from_bytes(data[at - 4 : at], "little")
        if not 54 <= pixels <= 1 << 16:
            return None
    else:
        colors = used or 1 << bits if bits <= 8 else 0
        begin, pixels = at, 40 + 4 * min(colors, 256) + 12 * (packing == 3)
        high = high // 2 if high == 2 * wide else high  # an icon's mask counts
    channels = max(1, bits // 8)
    return Found(begin, pixels + row * abs(high), Layout("picture", channels, 1, row, pixels))


_NUMBER = rb"(?:\s|#[^\n]{0,200}\n)+(\d{1,6})"
_PNM = re.compile(rb"P([56])" + _NUMBER * 3 + rb"\s")
_PAM = re.compile(rb"P7\n((?:[^\n]{0,200}\n){2,20}?)ENDHDR\n")


def _pnm(data: bytes, at: int) -> Found | None:
    if found := _PNM.match(data, at):
        wide, high, most = (int(number) for number in found.groups()[1:])
        depth = 3 if found.group(1) == b"6" else 1
    elif found := _PAM.match(data, at):
        fields = dict(line.split(None, 1) for line in found.group(1).split(b"\n") if len(line.split(None, 1)) == 2)
        try:
            wide, high, depth, most = (int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
        except (KeyError, ValueError):
            return None
    else:
        return None
    return _raster(at, found.end() - at, wide, high, depth, 1 if most < 256 else 2, 0)


def _raster(begin: int, start: int, wide: int, high: int, channels: int, width: int, order: int) -> Found | None:
    row = wide * channels
    return Found(begin, start + row * high * width, Layout("picture", channels, width, row, start), order)


def _tga(data: bytes) -> Found | None:
    """It has no mark: 18 numbers that fit each other, of a whole file."""
    if len(data) < 18:
        return None
    named, mapped, kind, first, colors, color_bits, _, _, wide, high, bits, _ = struct.unpack_from(
        "<BBBHHBHHHHBB", data
    )
    if kind not in (1, 2, 3) or mapped != (kind == 1) or bits not in (8, 16, 24, 32) or not (wide and high) or first:
        return None
    if (colors, color_bits) != (0, 0) if not mapped else color_bits not in (16, 24, 32):
        return None
    start = 18 + named + colors * color_bits // 8
    return _raster(0, start, wide, high, bits // 8, 1, 0)


def _tiff(data: bytes, at: int) -> Found | None:
    """One picture in strips that lie one behind the other, its directory within ``data``."""
    way = "<" if data[at : at + 2] == b"II" else ">"
    try:
        (where,) = struct.unpack_from(way + "I", data, at + 4)
        (count,) = struct.unpack_from(way + "H", data, at + where)
        tags: dict[int, list[int]] = {}
        for i in range(min(count, 200)):
            tag, kind, many = struct.unpack_from(way + "HHI", data, place := at + where + 2 + 12 * i)
            code = {3: "H", 4: "I"}.get(kind)
            if code is None or not 0 < many <= 1 << 16:
                continue
            size = struct.calcsize(code) * many
            place = place + 8 if size <= 4 else at + struct.unpack_from(way + "I", data, place + 8)[0]
            tags[tag] = list(struct.unpack_from(f"{way}{many}{code}", data, place))
        wide, high, bits, strips = tags[256][0], tags[257][0], tags.get(258, [1]), tags[273]
        sizes, packing, depth = tags[279], tags.get(259, [1])[0], tags.get(277, [1])[0]
    except (struct.error, KeyError):
        return None
    ends = [begin + size for begin, size in zip(strips, sizes, strict=False)]
    if packing != 1 or tags.get(284, [1]) != [1] or bits[0] not in (8, 16) or strips[1:] != ends[:-1]:
        return None
    found = _raster(at, strips[0], wide, high, depth, bits[0] // 8, LITTLE if way == "<" and bits[0] == 16 else 0)
    return found if found and found.size == ends[-1] else None


# --------------------------------------------------------------------------------------------------------- sounds


def _sound(at: int, start: int, size: int, channels: int, bits: int, order: int) -> Found | None:
    width = (bits + 7) // 8
    if width > 3:  # 32 bits are fp32 or noise below 24 bits: what they have in common is their place
        return Found(at, start + size, Layout("table", 1, 1, max(2, channels * width), start)) if width == 4 else None
    return Found(at, start + size, Layout("sound", channels, width, 0, start), order if width > 1 else order & ~LITTLE)


def _wav(data: bytes, at: int) -> Found | None:
    place, kind, channels, bits = at + 12, 0, 0, 0
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        if name == b"fmt " and size >= 16 and place + 24 <= len(data):
            kind, channels, _, _, _, bits = struct.unpack_from("<HHIIHH", data, place + 8)
            if kind == 0xFFFE and size >= 26 and place + 34 <= len(data):
                (kind,) = struct.unpack_from("<H", data, place + 32)
        if name == b"data":
            if kind not in (1, 3, 7) or (kind == 7 and bits != 8):
                return None
            order = MU_LAW if kind == 7 else LITTLE | (SIGNED if bits > 8 else 0)
            return _sound(at, place + 8 - at, size, channels, bits, order)
        place += 8 + size + size % 2
    return None


def _aiff(data: bytes, at: int) -> Found | None:
    place, channels, bits, order = at + 12, 0, 0, SIGNED
    while place + 8 <= len(data):
        name, size = struct.unpack_from(">4sI", data, place)
        if name == b"COMM" and size >= 18 and place + 30 <= len(data):
            channels, _, bits = struct.unpack_from(">HIH", data, place + 8)
            packing = data[place + 26 : place + 30] if data[at + 8 : at + 12] == b"AIFC" else b"NONE"
            if packing not in (b"NONE", b"twos", b"sowt", b"ulaw", b"ULAW"):
                return None
            order = {b"sowt": SIGNED | LITTLE, b"ulaw": MU_LAW, b"ULAW": MU_LAW}.get(packing, SIGNED)
            bits = 8 if order == MU_LAW else bits
        if name == b"SSND":
            return _sound(at, place + 16 - at, size - 8, channels, bits, order) if size > 8 else None
        place += 8 + size + size % 2
    return None


def _au(data: bytes, at: int) -> Found | None:
    if len(data) < at + 24:
        return None
    start, size, kind, _, channels = struct.unpack_from(">5I", data, at + 4)
    if kind not in (1, 2, 3, 4, 5) or not 24 <= start <= 4096:
        return None
    return _sound(at, start, size, channels, 8 * max(1, kind - 1), MU_LAW if kind == 1 else SIGNED)


# ---------------------------------------------------------------------------------------------------------- arrays

_NPY = re.compile(rb"'descr': '([<>|])([uif])(\d)', 'fortran_order': False, 'shape': \(([\d, ]*)\)")


def _npy(data: bytes, at: int) -> Found | None:
    (size,) = struct.unpack_from("<H", data, at + 8) if len(data) >= at + 10 else (0,)
    found = _NPY.search(data, at + 10, at + 10 + size)
    if not found:
        return None
    way, kind, width = found.group(1), found.group(2), int(found.group(3))
    shape = [int(number) for number in found.group(4).replace(b" ", b"").split(b",") if number]
    count, start = int(np.prod([1, *shape], dtype=object)), 10 + size
    if kind != b"f" and width <= 2 and len(shape) >= 2:
        channels = shape[-1] if len(shape) >= 3 and shape[-1] <= 4 else 1
        row = shape[-1] * (shape[-2] if channels > 1 else 1)
        order = (LITTLE if way == b"<" else 0) | (SIGNED if kind == b"i" else 0)
        return Found(at, start + count * width, Layout("picture", max(1, channels), width, row, start), order)
    return Found(at, start + count * width, Layout("table", 1, 1, max(2, width), start))


_READERS: dict[str, Callable[[bytes, int], Found | None]] = {
    "bitmap": _bitmap, "pnm": _pnm, "tiff": _tiff, "wav": _wav, "aiff": _aiff, "au": _au, "npy": _npy
}  # fmt: skip
_MARKS = re.compile(
    rb"(?P<bitmap>\x28\0\0\0..[\0-\x0f]\0..[\0\xff\x01-\x0f][\0\xff]\x01\0[\x01\x04\x08\x10\x18\x20]\0)|(?P<pnm>P[567][\s#])"
    rb"|(?P<tiff>II\*\0|MM\0\*)|(?P<wav>RIFF....WAVE)|(?P<aiff>FORM....AIF[FC])|(?P<au>\.snd)|(?P<npy>\x93NUMPY\x01)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file: samples, if any were ``found``."""

    data: bytes
    found: Found | None = None
    goes_on: bool = False
    """whether the samples are those of the piece before"""

    @property
    def layout(self) -> Layout | None:
        """How samples lie in these very bytes."""
        if self.found is None:
            return None
        return dataclasses.replace(self.found.layout, start=0) if self.goes_on else self.found.layout


def pieces(blocks: Callable[[int], bytes], most: int) -> Iterator[Piece]:
    """A file cut where samples begin and end, in pieces of up to ``most`` bytes.

    ``blocks`` gives the next so many bytes, less at the end. Samples that go on in another piece are cut behind a row.
    """
    rest, found, left, place = b"", None, 0, 0
    while data := rest + blocks(most - len(rest)):
        whole, goes_on = len(data) < most, found is not None
        if found is None:
            found = find(data, not place)
            size = left = found.size if found else len(data)
            if found and found.begin:  # what lies before it comes first
                size, found = found.begin, None
        if found and whole and left < len(data) <= left + TAIL:
            left = len(data)
        size = min(left, len(data)) if found else min(size, len(data))
        if found and size < left and not whole:
            layout = found.layout
            row, begin = (layout.row or layout.channels) * layout.width, 0 if goes_on else layout.start
            size = begin + max(0, size - begin) // row * row or size
        yield Piece(data[:size], found, goes_on)
        place, left, rest = place + size, left - size, data[size:]
        if left <= 0 or not found:
            found = None
