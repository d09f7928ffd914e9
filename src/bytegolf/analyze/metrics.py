"""What chunks have to do with tokens, surprise and words, as plain JSON data, beside what chance would give.

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
from bytegolf.analyze.render import visible
from bytegolf.results import to_json

_WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+")
"""A word: ASCII letters and digits and whatever is not ASCII, without a break."""

FREQUENCIES = (1, 2, 5, 17, 65, 257)
"""Where the classes of words begin, by how often a word occurs in the text."""

IN_CHUNK = 16
"""How far into a chunk surprisal is followed, in bytes."""


def describe(reading: Reading, level: int, edges: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Everything about one level of chunking.

    Keys: those of ``BoundaryStats.to_dict``; boundaries_per_256_bytes (of text, whatever the positions are); lengths
    (pairs of a length in bytes and the number of complete chunks); edges (``agreement`` with the BPE token starts
    ``edges``, or None); surprisal (see ``surprisal``); words (see ``words``); frequent (see ``frequent``).
    """
    found = reading.level(level)
    stats = reading.stats(level)
    return {
        **to_json(stats.figures()),
        "boundaries_per_256_bytes": _share(256 * int(found.chosen.sum()), len(reading.data)),
        "lengths": [[length, count] for length, count in sorted(stats.lengths.items())],
        "edges": None if edges is None else agreement(found, edges),
        "surprisal": surprisal(reading, level),
        "words": words(reading, level),
        "frequent": frequent(reading, level),
    }


def agreement(found: LevelReading, edges: Bool[np.ndarray, " N"]) -> dict[str, float | None]:
    """How the boundaries meet a reference: precision (share of boundaries at an edge), recall (share of edges that
    are boundaries), F1, each also by chance (``random_…``), over the positions.

    With b the rate of boundaries and e that of edges, chance has precision e, recall b and F1 2be/(b + e).
    """
    free = found.candidates
    chosen, wanted, positions = int(found.chosen.sum()), int((edges & free).sum()), int(free.sum())
    both = int((edges & found.chosen).sum())
    return {
        "precision": _share(both, chosen),
        "recall": _share(both, wanted),
        "f1": _share(2 * both, chosen + wanted),
        "random_precision": _share(wanted, positions),
        "random_recall": _share(chosen, positions),
        "random_f1": _share(2 * chosen * wanted, (chosen + wanted) * positions),
    }


def surprisal(reading: Reading, level: int) -> dict[str, Any]:
    """Whether chunks begin at bytes that are hard to predict.

    Keys: enrichment (share of the boundaries among the tenth of positions with the highest surprisal, by its share of
    the positions; chance has 1, at most 10), bits_at_boundaries and bits_elsewhere (mean bits of a byte at a position),
    rate_by_decile (boundaries a position, from the least to the most surprising tenth), bits_in_chunk (mean bits of a
    chunk's first, second, … byte; None beyond the longest).
    """
    found = reading.level(level)
    known = found.candidates & np.isfinite(reading.bits)
    bits, chosen = reading.bits[known], found.boundary[known]
    order = np.argsort(bits, kind="stable")  # ties as they come in the text
    tenths = [chosen[part] for part in np.array_split(order, 10)]
    top = _share(len(tenths[-1]), len(order))
    into = _bytes_into_chunk(found.boundary)
    scored = np.isfinite(reading.bits)
    return {
        "enrichment": _share(int(tenths[-1].sum()), int(chosen.sum()) * (top or 0)),
        "bits_at_boundaries": _mean(bits[chosen]),
        "bits_elsewhere": _mean(bits[~chosen]),
        "rate_by_decile": [_mean(tenth) for tenth in tenths],
        "bits_in_chunk": [_mean(reading.bits[scored & (into == place)]) for place in range(IN_CHUNK)],
    }


def words(reading: Reading, level: int) -> list[dict[str, Any]]:
    """Which words chunks cut, by how often the word occurs in this text, the rarest first.

    A word is cut if a boundary lies behind its first byte and before its end, and opened if one lies at its first byte
    or at the space before it. Rarer words are longer, so they would be cut more often by chance too: random_cut is the
    mean of 1 − (1 − rate)^k over words with k positions inside, random_opened likewise.

    Keys: from, to (occurrences; to is None in the last class), words (of the text, repeated ones too), mean_bytes, cut,
    random_cut, opened, random_opened, pieces (mean number of chunks that the word lies in).
    """
    found = reading.level(level)
    spans = np.array([match.span() for match in _WORD.finditer(reading.data)], np.int64).reshape(-1, 2)
    counts = Counter(reading.data[start:end] for start, end in spans.tolist())
    times = np.array([counts[reading.data[start:end]] for start, end in spans.tolist()], np.int64)
    start, end = spans.T
    rate = float(found.chosen.sum()) / max(1, int(found.candidates.sum()))
    chosen, free = (np.concatenate(([0], np.cumsum(mask))) for mask in (found.chosen, found.candidates))
    cuts, inside = (total[end] - total[start + 1] for total in (chosen, free))
    text = np.frombuffer(reading.data, np.uint8)
    before = start - ((start > 0) & (text[start - 1] == ord(" ")))
    opened, places = (total[start + 1] - total[before] for total in (chosen, free))
    rows = []
    for low, high in itertools.pairwise([*FREQUENCIES, 1 << 62]):
        these = (low <= times) & (times < high)
        if these.any():
            rows.append(
                {
                    "from": low,
                    "to": high - 1 if high < 1 << 62 else None,
                    "words": int(these.sum()),
                    "mean_bytes": _mean((end - start)[these]),
                    "cut": _mean(cuts[these] > 0),
                    "random_cut": _mean(1 - (1 - rate) ** inside[these]),
                    "opened": _mean(opened[these] > 0),
                    "random_opened": _mean(1 - (1 - rate) ** places[these]),
                    "pieces": _mean(cuts[these] + 1),
                }
            )
    return rows


def frequent(reading: Reading, level: int, most: int = 30) -> dict[str, Any]:
    """The most frequent complete chunks: distinct (how many different ones), top (chunk, count)."""
    boundary = reading.level(level).boundary
    counts: Counter[bytes] = Counter()
    for part in reading.parts():
        edges = part.start + 1 + np.flatnonzero(boundary[part][1:])
        counts.update(reading.data[start:end] for start, end in itertools.pairwise(edges.tolist()))
    top = [{"chunk": visible(chunk), "count": count} for chunk, count in counts.most_common(most)]
    return {"distinct": len(counts), "top": top}


def _bytes_into_chunk(boundary: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each byte, how many bytes of its chunk come before it."""
    order = np.arange(len(boundary))
    return order - np.maximum.accumulate(np.where(boundary, order, 0))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None
