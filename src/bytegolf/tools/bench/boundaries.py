"""Where chunks begin, against gold segmentations: words of a text, and morphemes within words.

A *place* is a byte where a chunk could begin: those of the text but its first; for morphemes, those within a word but
its first. Chance puts as many boundaries as the model has at places drawn at random.

Legend: N bytes of a text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from bytegolf.api.model import Model
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.boundaries import ratio
from bytegolf.files import read_input
from bytegolf.tools.bench.results import BoundaryMatch

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
CARRIER = ("It is ", ", as they say.")
"""The text around a word whose morphemes are asked for: a word by itself is no text."""
RESAMPLED = 200
"""How often texts are drawn again for a standard error."""


@dataclass(frozen=True)
class Marked:
    """A text with gold boundaries."""

    data: bytes
    gold: Bool[np.ndarray, " N"]
    """bytes at which a part begins"""
    places: Bool[np.ndarray, " N"]
    """bytes that count"""


def words_in(text: str) -> tuple[Marked, Marked]:
    """The text with its word starts as gold, and with the bytes behind its words."""
    data = text.encode()
    starts, ends = (np.zeros(len(data) + 1, np.bool_) for _ in range(2))
    for found in _WORD.finditer(text):
        start = len(text[: found.start()].encode())
        starts[start], ends[start + len(found.group().encode())] = True, True
    places = np.ones(len(data), np.bool_)
    places[:1] = False
    return tuple(Marked(data, gold[: len(data)] & places, places) for gold in (starts, ends))  # type: ignore[return-value]


def morphemes_in(parts: Sequence[str]) -> Marked:
    """A word, in a sentence that carries it, with its morphemes' starts within it as gold.

    >>> marked = morphemes_in(["un", "kind"])
    >>> marked.data, marked.gold.nonzero()[0].tolist(), int(marked.places.sum())
    (b'It is unkind, as they say.', [8], 5)
    """
    before, word = CARRIER[0].encode(), "".join(parts).encode()
    data = before + word + CARRIER[1].encode()
    gold, places = (np.zeros(len(data), np.bool_) for _ in range(2))
    at = len(before)
    places[at + 1 : at + len(word)] = True
    for part in parts[:-1]:
        at += len(part.encode())
        gold[at] = True
    return Marked(data, gold, places)


def read_morphemes(path: Path | None = None) -> list[list[str]]:
    """The words of a file, a word per line with its parts separated by spaces (None: the English words of the package).

    A first column that ends in a tab, as Morpho Challenge has it, is the word itself and is left out.

    Raises BytegolfError for a file without a word.
    """
    if path is None:
        text = (resources.files("bytegolf.tools.bench") / "assets" / "morphemes.txt").read_text(encoding="utf-8")
    else:
        text = read_input(path).decode("utf-8", errors="replace")
    lines = (line.rpartition("\t")[2] for line in text.splitlines() if line.strip() and not line.startswith("#"))
    words = [line.split() for line in lines]
    if not words:
        raise BytegolfError(f"{path} has no words: give one on each line, its morphemes separated by spaces")
    return words


def matches(model: Model, texts: Sequence[str], words: Sequence[Sequence[str]]) -> list[BoundaryMatch]:
    """Every level's chunks against the words of ``texts``, and against the morphemes of ``words``."""
    marked = [words_in(text) for text in texts if text]
    gold = {
        "words": [starts for starts, _ in marked],
        "word ends": [ends for _, ends in marked],
        "morphemes": [morphemes_in(word) for word in words],
    }
    found: list[BoundaryMatch] = []
    for level in range(model.levels):
        cuts: dict[bytes, Bool[np.ndarray, " N"]] = {}
        for name, some in gold.items():
            for one in some:
                if one.data not in cuts:
                    cuts[one.data] = _boundaries(model, one.data, level)
            if some:
                found.append(_match(name, level, some, [cuts[one.data] for one in some]))
    return found


def _boundaries(model: Model, data: bytes, level: int) -> Bool[np.ndarray, " N"]:
    read = model.segment(data, level)
    if read.data != data:  # a subword tokenizer normalises: compare what is there
        padded = np.zeros(len(data), np.bool_)
        size = min(len(data), len(read.boundaries))
        padded[:size] = read.boundaries[:size]
        return padded
    return read.boundaries


def _match(name: str, level: int, marked: Sequence[Marked], cuts: Iterable[NDArray[np.bool_]]) -> BoundaryMatch:
    """Sums over the texts: (hits, the model's boundaries, gold ones, places)."""
    rows = np.array(
        [
            [(cut & one.gold).sum(), (cut & one.places).sum(), one.gold.sum(), one.places.sum()]
            for one, cut in zip(marked, cuts, strict=True)
        ],
        np.int64,
    )
    both, chosen, wanted, places = (int(value) for value in rows.sum(0))
    precision, density = ratio(both, chosen), ratio(wanted, places)
    draw = random.Random(0)
    again = (
        [rows[draw.choices(range(len(rows)), k=len(rows))].sum(0) for _ in range(RESAMPLED)] if len(rows) > 1 else []
    )
    scores = [2 * hits / (mine + theirs) for hits, mine, theirs, _ in again if mine + theirs]
    return BoundaryMatch(
        gold=name,
        level=level,
        f1=ratio(2 * both, chosen + wanted),
        standard_error=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        # of b boundaries at places drawn at random b·g/p fall on one of the g gold ones
        chance=ratio(2 * chosen * wanted, (chosen + wanted) * places),
        precision=precision,
        recall=ratio(both, wanted),
        enrichment=precision / density if precision is not None and density else None,
        n=wanted,
        boundaries=chosen,
        texts=len(marked),
    )
