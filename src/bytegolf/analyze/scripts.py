"""Chunks by the writing system of the text: Latin, Cyrillic, Han, …

A letter's script is told by its Unicode name ("CYRILLIC SMALL LETTER A"), which agrees with the Script property but
for rare letters that are named after what they are. Whatever is no letter (spaces, digits, marks) goes with the letter
before it, at a text's beginning with the one behind it. Bytes that are not UTF-8 are "no UTF-8".

Legend: N bytes of a text.
"""

from __future__ import annotations

import functools
import itertools
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from bytegolf.analyze.reading import Reading
from bytegolf.bpb import bits_per_byte
from bytegolf.evaluate.boundaries import BoundaryStats
from bytegolf.results import to_json

BROKEN, NONE = "no UTF-8", "no letters"


def by_script(reading: Reading, level: int | None) -> list[dict[str, Any]]:
    """A row for each script, the one with most bytes first.

    Keys: script, characters, bpb, mean_chunk_characters, and those of ``BoundaryStats.to_dict`` over runs of the script
    (their first bytes, where another script ends, are not counted). Without a level (flat models) only the first three
    and bytes.
    """
    text = np.frombuffer(reading.data, np.uint8)
    totals: dict[str, BoundaryStats] = defaultdict(BoundaryStats)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])  # bits, bytes predicted, characters, bytes
    for script, start, end in runs(reading.data):
        bits = reading.bits[start:end]
        letters = int(((text[start:end] & 0xC0) != 0x80).sum()) if script != BROKEN else end - start
        figures = (float(np.nansum(bits)), int(np.isfinite(bits).sum()), letters, end - start)
        sums[script] = [a + b for a, b in zip(sums[script], figures, strict=True)]
        if level is not None:
            found = reading.level(level)
            totals[script].add(text[start:end], found.boundary[start:end], candidates=found.candidates[start:end])
    rows = []
    for script, (cost, predicted, characters, size) in sorted(sums.items(), key=lambda item: -item[1][3]):
        row: dict[str, Any] = {"script": script, "bytes": size, "characters": characters}
        row["bpb"] = bits_per_byte(cost * math.log(2), int(predicted)) if predicted else None
        if level is not None:
            figures_of = to_json(totals[script].figures())
            mean = figures_of["mean_chunk_bytes"]
            row |= {**figures_of, "bytes": size}
            row["mean_chunk_characters"] = None if mean is None else mean * characters / size
        rows.append(row)
    return rows


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
