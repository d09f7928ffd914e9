"""Evaluation windows: every target exactly once, with the context that the stride promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytegolf.errors import BytegolfError
from bytegolf.evaluate.score import Window, windows


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, int, int]:
    """Targets, sequence length and stride that fit together."""
    seq_len = draw(st.integers(1, 40))
    return draw(st.integers(seq_len, 300)), seq_len, draw(st.integers(0, seq_len))


def scored(plan: list[Window]) -> list[int]:
    """The targets that the windows score, in their order."""
    return [i for w in plan for i in range(w.start + w.length - w.scored, w.start + w.length)]


@given(plans())
def test_every_target_is_scored_once_and_in_order(sizes: tuple[int, int, int]) -> None:
    targets, seq_len, stride = sizes
    plan = list(windows(targets, seq_len, stride))
    assert scored(plan) == list(range(targets))


@given(plans())
def test_drop_tail_leaves_out_exactly_what_fills_no_stride(sizes: tuple[int, int, int]) -> None:
    targets, seq_len, stride = sizes
    plan = list(windows(targets, seq_len, stride, drop_tail=True))
    tail = (targets - seq_len) % (stride or seq_len)
    assert scored(plan) == list(range(targets - tail))


@given(plans(), st.booleans())
def test_windows_lie_in_the_stream_and_give_the_promised_context(sizes: tuple[int, int, int], drop: bool) -> None:
    targets, seq_len, stride = sizes
    first, *later = windows(targets, seq_len, stride, drop)
    assert first == Window(0, seq_len, seq_len)
    for window in later:
        assert window.length == seq_len
        assert 0 <= window.start <= targets - seq_len
        assert 0 < window.scored <= (stride or seq_len)
        # tokens of the window before the one from which the first scored target is predicted
        assert window.length - window.scored >= seq_len - (stride or seq_len)


def test_the_tail_is_not_counted_twice() -> None:
    """Study 2's sliding evaluation did (systems.md, S3): here one of 9 is left over."""
    assert list(windows(9, 4, 2)) == [Window(0, 4, 4), Window(2, 4, 2), Window(4, 4, 2), Window(5, 4, 1)]


@pytest.mark.parametrize(
    ("targets", "stride", "words"),
    [(100, 9, "stride 9"), (100, -1, "stride -1"), (7, 0, "7 tokens to score"), (-1, 0, "0 tokens to score")],
)
def test_what_does_not_fit_is_said_at_once(targets: int, stride: int, words: str) -> None:
    with pytest.raises(BytegolfError, match=words):
        windows(targets, 8, stride)  # before the first window is asked for
