"""The parts of what was read: texts, and writing systems (Latin, Cyrillic, Han, …).

A letter's script is told by its Unicode name ("CYRILLIC SMALL LETTER A"), which agrees with the Script property but
for rare letters that are named after what they are. Whatever is no letter (spaces, digits, marks) goes with the letter
before it, at a text's beginning with the one behind it. Bytes that are not UTF-8 are "no UTF-8".

Legend: N bytes of a text.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from bytegolf.analyze.reading import Reading
from bytegolf.analyze.results import Part, ScriptPart, TextPart
from bytegolf.bpb import bits_per_byte
from bytegolf.evaluate.boundaries import BoundaryStats, is_continuation

BROKEN, NONE = "no UTF-8", "no letters"


def by_script(reading: Reading, level: int | None) -> list[ScriptPart]:
    """A row for each script, the one with most bytes first; the boundaries are those of ``level``, if there is one.

    The first byte of a run, where another script ends, is counted as a window's first: as no position.
    """
    text = np.frombuffer(reading.data, np.uint8)
    spans: dict[str, list[slice]] = defaultdict(list)
    for script, start, end in runs(reading.data):
        spans[script].append(slice(start, end))
    rows = []
    for script, parts in spans.items():
        stats = BoundaryStats()
        if level is not None:
            found = reading.level(level)
            for part in parts:
                stats.add(text[part], found.boundary[part], candidates=found.candidates[part])
        size = sum(part.stop - part.start for part in parts)
        characters = size if script == BROKEN else sum(count_characters(text[part]) for part in parts)
        predicted = sum(int(np.isfinite(reading.bits[part]).sum()) for part in parts)
        bits = sum(float(np.nansum(reading.bits[part])) for part in parts)
        bpb = bits_per_byte(bits * math.log(2), predicted) if predicted else None
        rows.append(ScriptPart(**vars(part_of(stats, size, characters, bpb)), script=script))
    return sorted(rows, key=lambda row: -row.bytes)


def by_text(reading: Reading, level: int | None, name: str) -> TextPart:
    """A text's own row."""
    stats = BoundaryStats() if level is None else reading.stats(level)
    characters = count_characters(np.frombuffer(reading.data, np.uint8))
    return TextPart(**vars(part_of(stats, len(reading.data), characters, reading.bpb)), text=name)


def part_of(stats: BoundaryStats, size: int, characters: int, bpb: float | None) -> Part:
    """The row of a part of ``size`` bytes."""
    figures = dataclasses.replace(stats.figures(), bytes=size)
    mean = figures.mean_chunk_bytes
    in_characters = None if mean is None else mean * characters / size
    return Part(**vars(figures), characters=characters, bpb=bpb, mean_chunk_characters=in_characters)


def count_characters(text: UInt8[np.ndarray, " N"]) -> int:
    """The characters of UTF-8 text: its bytes but for the later ones of a character."""
    return int((~is_continuation(text)).sum())


def runs(data: bytes) -> Iterator[tuple[str, int, int]]:
    """``data`` as stretches of one script: its name, where it starts and ends.

    >>> [(script, end) for script, _, end in runs("A nice слово.".encode())]
    [('Latin', 7), ('Cyrillic', 18)]
    """
    characters = data.decode("utf-8", "surrogateescape")
    names = [script_of(character) for character in characters]
    current = next((name for name in names if name and name != BROKEN), NONE)
    told = []
    for name in names:
        if name and name != BROKEN:
            current = name
        told.append(BROKEN if name == BROKEN else current)
    at = 0
    for script, group in itertools.groupby(zip(told, characters, strict=True), key=lambda pair: pair[0]):
        size = sum(1 if script == BROKEN else len(character.encode("utf-8")) for _, character in group)
        yield script, at, at + size
        at += size


@functools.cache
def script_of(character: str) -> str:
    """The script of a letter; "" of anything else; BROKEN of a byte that "surrogateescape" smuggled in."""
    if "\udc80" <= character <= "\udcff":
        return BROKEN
    if not character.isalpha():
        return ""
    words = [word for word in unicodedata.name(character, "").split() if word not in _MANNERS]
    if not words:
        return ""
    return _NAMES.get(words[0], words[0].capitalize())


_NAMES = {"CJK": "Han", "MATHEMATICAL": "", "FEMININE": "Latin", "MASCULINE": "Latin", "MICRO": "Greek"}
_MANNERS = {"FULLWIDTH", "HALFWIDTH", "MODIFIER", "OLD", "SUPERSCRIPT", "SUBSCRIPT"}
