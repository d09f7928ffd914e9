"""Boundaries against tokens, surprise, words and scripts: examples worked out by hand, and chance against drawing."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytegolf.analyze import metrics
from bytegolf.analyze.parts import BROKEN, NONE, by_script, runs, script_of
from bytegolf.analyze.reading import LevelReading, Reading, join
from bytegolf.analyze.results import ChunkCount, Frequent


def reading(data: bytes, *places: int, bits: list[float] | None = None, free: np.ndarray | None = None) -> Reading:
    """A one-level reading in one window, with chunks that start at ``places``."""
    boundary = np.zeros(len(data), np.bool_)
    boundary[[0, *places]] = True
    candidates = np.arange(len(data)) > 0 if free is None else free
    cost = np.array(bits if bits else [1.0] * len(data), np.float32)
    level = LevelReading(np.zeros(len(data), np.float32), boundary, candidates)
    return Reading(data, cost, np.zeros(1, np.int64), [level], float(cost.sum()) * np.log(2), len(data))


def test_agreement_by_hand() -> None:
    edges = np.zeros(11, np.bool_)
    edges[[0, 4, 8]] = True
    found = metrics.agreement(reading(b"the cat sat", 4, 6).levels[0], edges)
    assert found.precision == 1 / 2
    assert found.recall == 1 / 2  # the forced first byte is not counted
    assert found.f1 == 1 / 2
    assert found.random_precision == found.random_recall == found.random_f1 == 2 / 10


def test_chance_is_what_random_boundaries_get() -> None:
    draw = np.random.default_rng(1)
    text = b"a cat or thirteen " * 3000
    boundary, edges = draw.random(len(text)) < 0.3, draw.random(len(text)) < 0.1
    bits = draw.exponential(size=len(text)).astype(np.float32)
    one = reading(text, *np.flatnonzero(boundary).tolist(), bits=bits.tolist())
    found = metrics.agreement(one.levels[0], edges)
    for key in ("precision", "recall", "f1"):
        assert getattr(found, key) == pytest.approx(getattr(found, f"random_{key}"), abs=0.02)
    assert metrics.surprisal(one, 0).enrichment == pytest.approx(1, abs=0.05)
    for row in metrics.words(one, 0):
        assert row.cut == pytest.approx(row.random_cut, abs=0.02)
        assert row.opened == pytest.approx(row.random_opened, abs=0.02)


def test_boundaries_at_the_most_surprising_bytes() -> None:
    bits = [0.0] + [1.0] * 18 + [5.0, 7.0]
    found = metrics.surprisal(reading(bytes(21), 19, 20, bits=bits), 0)
    assert found.enrichment == 10  # both in the top tenth of 20 positions
    assert found.bits_at_boundaries == 6
    assert found.bits_elsewhere == 1
    assert found.rate_by_decile == [0] * 9 + [1]
    assert found.bits_in_chunk[:2] == [pytest.approx((0 + 5 + 7) / 3), 1]
    assert metrics.surprisal(reading(bytes(5), 2), 0).bits_in_chunk[5:] == [None] * (metrics.IN_CHUNK - 5)


def test_words_are_cut_inside_and_opened_at_their_space() -> None:
    text = b"to be or not to be, reborn"
    cuts = (text.index(b"be") - 1, text.index(b"not") + 1, text.index(b"reborn"), text.index(b"born"))
    once, twice = metrics.words(reading(text, *cuts), 0)
    assert (once.from_, once.to, once.words) == (1, 1, 3)  # or, not, reborn
    assert (twice.from_, twice.to, twice.words) == (2, 4, 4)  # to, be, to, be
    assert (once.cut, twice.cut) == (2 / 3, 0)
    assert (once.opened, twice.opened) == (1 / 3, 1 / 4)
    assert once.pieces == 5 / 3
    rate = 4 / 25
    assert once.random_cut == pytest.approx(1 - np.mean([(1 - rate) ** inside for inside in (1, 2, 5)]))


def test_frequent_chunks_are_whole_ones() -> None:
    found = metrics.frequent(reading(b"-ab-ab-c-", 1, 3, 4, 6, 7, 8), 0)
    assert found == Frequent(3, [ChunkCount("ab", 2), ChunkCount("-", 2), ChunkCount("c", 1)])


def test_nothing_to_divide_by_is_none() -> None:
    found = metrics.describe(reading(b"a"), 0, np.ones(1, np.bool_))
    assert found.bpe.f1 is None  # type: ignore[union-attr]
    assert found.surprisal.enrichment is None
    assert found.boundaries_per_256_bytes == 0
    assert metrics.describe(reading(b"?!"), 0).words == []


@given(st.lists(st.tuples(st.text(max_size=8) | st.just("абв гд"), st.binary(max_size=3)), max_size=5))
def test_runs_cover_every_byte_in_order(parts: list[tuple[str, bytes]]) -> None:
    data = b"".join(text.encode() + raw for text, raw in parts)
    at = 0
    for script, start, end in runs(data):
        assert start == at < end
        at = end
        for character in data[start:end].decode("utf-8", "surrogateescape"):
            assert script_of(character) in (script, "")
    assert at == len(data)


def test_scripts() -> None:
    names = {"a": "Latin", "é": "Latin", "б": "Cyrillic", "你": "Han", "ひ": "Hiragana", "ｱ": "Katakana", "ａ": "Latin"}
    assert {character: script_of(character) for character in names} == names
    assert script_of("7") == script_of(" ") == script_of("\u0301") == ""
    assert [name for name, *_ in runs(b"12 \xff a")] == ["Latin", BROKEN, "Latin"]
    assert [name for name, *_ in runs(b"12 .")] == [NONE]
    assert unicodedata.name("你").startswith("CJK")


def test_by_script_counts_bytes_characters_and_bits() -> None:
    data = "abc 你好吗".encode()
    rows = {row.script: row for row in by_script(reading(data, 7, 10, bits=[2.0] * 4 + [3.0] * 9), 0)}
    assert (rows["Han"].bytes, rows["Han"].characters, rows["Han"].bpb) == (9, 3, pytest.approx(3))  # type: ignore[comparison-overlap]
    assert (rows["Latin"].bytes, rows["Latin"].bpb) == (4, pytest.approx(2))  # type: ignore[comparison-overlap]
    assert rows["Han"].boundaries == 2
    assert rows["Han"].utf8_splits == 0
    assert rows["Han"].random_utf8_splits == 6 / 8
    assert rows["Han"].mean_chunk_bytes == 3
    assert rows["Han"].mean_chunk_characters == 1


def test_joined_texts_are_counted_one_by_one() -> None:
    one, two = reading(b"the cat", 4), reading(b"sat on", 4)
    both = join([one, two])
    assert both.data == b"the catsat on"
    assert both.bpb == pytest.approx(1)
    stats = both.stats(0)
    assert (stats.windows, stats.boundaries, stats.positions) == (2, 2, 6 + 5)
