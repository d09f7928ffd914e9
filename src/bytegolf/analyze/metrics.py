"""What the chunks of one level have to do with tokens, surprisal and words, beside what chance would give.

Everywhere a *boundary* is one that the router chose, a *position* is a byte where it had the choice (``candidates``),
and *chance* puts the same number of boundaries at positions drawn at random. Ratios are None without data.

Legend: N bytes of a text.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from bytegolf.analyze.reading import LevelReading, Reading
from bytegolf.analyze.results import Agreement, ChunkCount, Frequent, Level, Surprisal, WordClass
from bytegolf.analyze.segment import visible
from bytegolf.evaluate.boundaries import ratio

_WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+")
"""A word: ASCII letters and digits and whatever is not ASCII, without a break."""

FREQUENCIES = (1, 2, 5, 17, 65, 257)
"""Where the classes of words begin, by how often a word occurs in the text."""

IN_CHUNK = 16
"""How far into a chunk surprisal is followed, in bytes."""


def describe(reading: Reading, level: int, starts: Bool[np.ndarray, " N"] | None = None) -> Level:
    """Everything about one level of chunking; ``starts`` is where the tokens of a BPE tokenizer start, if known."""
    found = reading.level(level)
    stats = reading.stats(level)
    return Level(
        **vars(stats.figures()),
        boundaries_per_256_bytes=ratio(256 * int(found.chosen.sum()), len(reading.data)),
        lengths=sorted(stats.lengths.items()),
        bpe=None if starts is None else agreement(found, starts),
        surprisal=surprisal(reading, level),
        words=words(reading, level),
        frequent=frequent(reading, level),
    )


def agreement(found: LevelReading, starts: Bool[np.ndarray, " N"]) -> Agreement:
    """How the boundaries meet the token ``starts`` of a reference, over the positions.

    Chance, with b boundaries and e token starts among n positions: a random boundary is a token start with probability
    e/n (precision), a token start gets a boundary with probability b/n (recall), b·e/n of them coincide, and so
    F1 = 2·(b·e/n) / (b + e).
    """
    free = found.candidates
    chosen, wanted, positions = int(found.chosen.sum()), int((starts & free).sum()), int(free.sum())
    both = int((starts & found.chosen).sum())
    return Agreement(
        precision=ratio(both, chosen),
        recall=ratio(both, wanted),
        f1=ratio(2 * both, chosen + wanted),
        random_precision=ratio(wanted, positions),
        random_recall=ratio(chosen, positions),
        random_f1=ratio(2 * chosen * wanted, (chosen + wanted) * positions),
    )


def surprisal(reading: Reading, level: int) -> Surprisal:
    """Whether chunks begin at bytes that are hard to predict."""
    found = reading.level(level)
    known = found.candidates & np.isfinite(reading.bits)
    bits, chosen = reading.bits[known], found.boundary[known]
    order = np.argsort(bits, kind="stable")  # ties as they come in the text
    tenths = [chosen[part] for part in np.array_split(order, 10)]
    top = ratio(len(tenths[-1]), len(order))
    into = _bytes_into_chunk(found.boundary)
    scored = np.isfinite(reading.bits)
    return Surprisal(
        enrichment=ratio(int(tenths[-1].sum()), int(chosen.sum()) * (top or 0)),
        bits_at_boundaries=mean(bits[chosen]),
        bits_elsewhere=mean(bits[~chosen]),
        rate_by_decile=[mean(tenth) for tenth in tenths],
        bits_in_chunk=[mean(reading.bits[scored & (into == place)]) for place in range(IN_CHUNK)],
    )


def words(reading: Reading, level: int) -> list[WordClass]:
    """Which words chunks cut, by how often the word occurs in this text, the rarest first.

    A word is cut if a boundary lies behind its first byte and before its end, and opened if one lies at its first byte
    or at the space before it: in "a|b c" the word "ab" is cut, in "ab| c" and "ab |c" the word "c" is opened.

    Rarer words are longer, so chance would cut them more often, too: with the rate r of boundaries per position, a word
    with k positions inside stays whole with probability (1 − r)^k. ``random_cut`` is the mean of 1 − (1 − r)^k over the
    words of a class; ``random_opened`` likewise.
    """
    found = reading.level(level)
    spans = np.array([match.span() for match in _WORD.finditer(reading.data)], np.int64).reshape(-1, 2)
    counts = Counter(reading.data[start:end] for start, end in spans.tolist())
    times = np.array([counts[reading.data[start:end]] for start, end in spans.tolist()], np.int64)
    start, end = spans.T
    rate = float(found.chosen.sum()) / max(1, int(found.candidates.sum()))
    # sums from the text's start: total[j] − total[i] counts what lies at bytes i … j − 1, for all words at once
    chosen, free = (np.concatenate(([0], np.cumsum(mask))) for mask in (found.chosen, found.candidates))
    cuts, inside = (total[end] - total[start + 1] for total in (chosen, free))
    text = np.frombuffer(reading.data, np.uint8)
    before = start - ((start > 0) & (text[start - 1] == ord(" ")))
    opened, places = (total[start + 1] - total[before] for total in (chosen, free))
    rows = []
    for low, high in itertools.pairwise([*FREQUENCIES, 1 << 62]):
        these = (low <= times) & (times < high)
        if these.any():
            row = WordClass(
                from_=low,
                to=high - 1 if high < 1 << 62 else None,
                words=int(these.sum()),
                mean_bytes=mean((end - start)[these]),
                cut=mean(cuts[these] > 0),
                random_cut=mean(1 - (1 - rate) ** inside[these]),
                opened=mean(opened[these] > 0),
                random_opened=mean(1 - (1 - rate) ** places[these]),
                pieces=mean(cuts[these] + 1),
            )
            rows.append(row)
    return rows


def frequent(reading: Reading, level: int, most: int = 30) -> Frequent:
    """The most frequent complete chunks."""
    boundary = reading.level(level).boundary
    counts: Counter[bytes] = Counter()
    for part in reading.parts():
        places = part.start + 1 + np.flatnonzero(boundary[part][1:])
        counts.update(reading.data[start:end] for start, end in itertools.pairwise(places.tolist()))
    return Frequent(len(counts), [ChunkCount(visible(chunk), count) for chunk, count in counts.most_common(most)])


def _bytes_into_chunk(boundary: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each byte, how many bytes of its chunk come before it."""
    order = np.arange(len(boundary))
    return order - np.maximum.accumulate(np.where(boundary, order, 0))


def mean(values: NDArray[Any]) -> float | None:
    """None where there are no values."""
    return float(values.mean()) if values.size else None
