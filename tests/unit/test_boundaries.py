"""Boundary metrics: examples by hand, and a slow reference in plain Python."""

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.evaluate.boundaries import (
    BoundaryStats,
    is_continuation,
    is_whitespace,
    token_boundaries_to_bytes,
    touching_whitespace,
)


def window(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def at(size: int, *places: int) -> np.ndarray:
    mask = np.zeros(size, np.bool_)
    mask[list(places)] = True
    return mask


def test_words_with_the_space_after_or_before_agree_alike() -> None:
    text = b"the cat sat"
    for places in (
        (0, 4, 8),
        (0, 3, 7),
        (4, 8),
    ):  # "the |cat |sat", "the| cat| sat", and without the forced one
        stats = BoundaryStats()
        stats.add(window(text), at(11, *places), whole=True)
        found = stats.figures()
        assert stats.boundaries == 2
        assert found.whitespace_agreement == 1.0
        assert found.random_agreement == 4 / 10
        assert found.rate == 2 / 10
        assert found.boundaries_per_256 == 51.2
        assert found.mean_chunk_bytes == 11 / 3
        assert found.chunks == 3


def test_boundaries_within_words_do_not_agree() -> None:
    stats = BoundaryStats()
    stats.add(window(b"the cat sat"), at(11, 1, 4, 6, 10))
    assert stats.figures().whitespace_agreement == 1 / 4


def test_cut_chunks_are_left_out_unless_the_text_is_whole() -> None:
    text, mask = window(b"abcdefghij"), at(10, 2, 3, 7)
    cut, whole = BoundaryStats(), BoundaryStats()
    cut.add(text, mask)
    assert cut.lengths == {1: 1, 4: 1}  # c and defg
    assert cut.figures().mean_chunk_bytes == 2.5
    assert cut.figures().cv == 1.5 / 2.5
    whole.add(text, mask, whole=True)
    assert whole.lengths == {2: 1, 1: 1, 4: 1, 3: 1}


def test_fixed_stride_has_no_variation() -> None:
    stats = BoundaryStats()
    for _ in range(3):
        stats.add(window(bytes(64)), at(64, *range(0, 64, 4)))
    assert stats.figures().cv == 0
    assert stats.figures().mean_chunk_bytes == 4
    assert stats.boundaries == 3 * 15


def test_all_ascii_whitespace_and_no_other() -> None:
    every = np.arange(256, dtype=np.uint8)
    assert np.flatnonzero(is_whitespace(every)).tolist() == [9, 10, 11, 12, 13, 32]
    assert np.flatnonzero(touching_whitespace(every)).tolist() == [9, 10, 11, 12, 13, 14, 32, 33]
    assert np.flatnonzero(is_continuation(every)).tolist() == list(range(128, 192))


def test_utf8_splits() -> None:
    text = "aé€𝄞".encode()  # a, 2, 3 and 4 bytes
    stats = BoundaryStats()
    stats.add(window(text), at(10, 1, 2, 3, 5, 6))  # inside é at 2, inside € at 5
    assert stats.figures().utf8_splits == 2 / 5


def test_candidates_limit_what_counts_but_not_what_cuts() -> None:
    text = window(b"ab cd ef")
    stats = BoundaryStats()
    stats.add(text, at(8, 3, 4, 6), candidates=at(8, 0, 3, 6), whole=True)
    assert stats.positions == 2
    assert stats.boundaries == 2
    assert stats.figures().rate == 1
    assert stats.figures().random_agreement == 1
    assert stats.figures().chunks == 4


def test_ratios_without_data_are_none() -> None:
    stats = BoundaryStats()
    stats.add(window(b""), at(0))
    assert stats == BoundaryStats()
    stats.add(window(b"a"), at(1, 0))
    found = stats.figures()
    assert (found.whitespace_agreement, found.cv, found.mean_chunk_bytes, found.bytes) == (None, None, None, 1)


def test_wrong_arrays_are_refused() -> None:
    stats = BoundaryStats()
    with pytest.raises(ValueError, match="common length"):
        stats.add(window(b"abc"), at(2))
    with pytest.raises(TypeError):
        stats.add(np.zeros(3, np.int64), at(3))
    with pytest.raises(TypeError):
        stats.add(window(b"abc"), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="token sizes"):
        token_boundaries_to_bytes([1, 2], [True])


WINDOWS = st.lists(
    st.lists(st.tuples(st.sampled_from(b" \n\tabc\xc3\xa9\xe2\x82\xac"), st.booleans(), st.booleans()), max_size=24),
    max_size=4,
)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(WINDOWS, st.booleans())
def test_against_plain_python(windows: list[list[tuple[int, bool, bool]]], whole: bool) -> None:
    stats = BoundaryStats()
    chosen, touching, splitting, positions, possible, lengths = 0, 0, 0, 0, 0, []
    for rows in windows:
        text = bytes(row[0] for row in rows)
        marks = [row[1] for row in rows]
        candidates = [row[2] for row in rows]
        stats.add(window(text), np.array(marks, np.bool_), candidates=np.array(candidates, np.bool_), whole=whole)
        for t in range(1, len(text)):
            touches = text[t : t + 1].isspace() or text[t - 1 : t].isspace()
            if candidates[t]:
                positions += 1
                possible += touches
                if marks[t]:
                    chosen += 1
                    touching += touches
                    splitting += 0x80 <= text[t] < 0xC0
        pieces: list[int] = []
        for t in range(len(text)):
            if t == 0 or marks[t]:
                pieces.append(0)
            pieces[-1] += 1
        lengths += pieces if whole else pieces[1:-1]
    found = stats.figures()
    assert stats.boundaries == chosen
    assert stats.positions == positions
    if chosen:
        assert found.whitespace_agreement == touching / chosen
        assert found.utf8_splits == splitting / chosen
    if positions:
        assert found.random_agreement == possible / positions
        assert found.rate == chosen / positions
    assert found.chunks == len(lengths)
    if lengths:
        assert found.mean_chunk_bytes == pytest.approx(statistics.mean(lengths))
        assert found.cv == pytest.approx(statistics.pstdev(lengths) / statistics.mean(lengths))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_token_boundaries_against_plain_python(tokens: list[tuple[int, bool]]) -> None:
    expected = [False] * sum(size for size, _ in tokens)
    place = 0
    for size, starts in tokens:
        if starts and place < len(expected):
            expected[place] = True
        place += size
    mask = token_boundaries_to_bytes([size for size, _ in tokens], [starts for _, starts in tokens])
    assert mask.tolist() == expected


def test_the_random_baseline_is_what_random_boundaries_score() -> None:
    rng = np.random.default_rng(0)
    text = window(b"the quick brown fox jumps over the lazy dog " * 2000)
    stats = BoundaryStats()
    stats.add(text, rng.random(len(text)) < 0.2)
    assert stats.figures().whitespace_agreement == pytest.approx(stats.figures().random_agreement, abs=0.01)


def test_behind_and_at_whitespace_are_told_apart() -> None:
    stats = BoundaryStats()
    stats.add(window(b"the cat  sat"), at(12, 3, 4, 8, 10))  # at; behind; both, between two spaces; neither
    found = stats.figures()
    assert (found.whitespace_at, found.whitespace_behind) == (2 / 4, 2 / 4)
    assert found.whitespace_agreement == 3 / 4
    assert (found.random_at, found.random_behind) == (3 / 11, 3 / 11)
    assert found.random_utf8_splits == 0
