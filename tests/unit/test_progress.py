"""Progress of long reads where there is no terminal."""

from __future__ import annotations

import time

import pytest

from bytegolf import progress
from bytegolf.progress import Pace, ProgressBar, clock


def test_lines_tell_amount_pace_share_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with ProgressBar().task("reading", 40_000_000) as advance:
        now += 1
        advance(1_000_000)  # too soon for a line
        now += 19
        advance(9_000_000)
        now += 5
        advance(30_000_000)
    lines = ["reading: 10.0 MB at 500.0 kB/s, 25%, 60 s left", "reading: 40.0 MB at 1.6 MB/s, 100%, done"]
    assert capsys.readouterr().err.splitlines() == lines


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY", 0.0)
    with ProgressBar(quiet=True).task("reading", None) as advance:
        advance(5)
    assert capsys.readouterr().err == ""


def test_the_time_left_does_not_count_the_start() -> None:
    """What came before the first line, such as compiling kernels, does not come again."""
    pace = Pace(total=100)
    pace.done = 1
    assert "left" not in pace.line(1000, seconds=30.0)
    for done, seconds in ((2, 31.0), (50, 79.0), (99, 128.0)):
        pace.done = done
        assert pace.line(1000, seconds=seconds).endswith(f"{clock(100 - done)} left")
    assert "left" not in Pace().line(1000, seconds=3.0)
    empty = Pace(total=13)
    assert [empty.left(9.0)] == [""]
    for done in (1, 2):
        empty.done = done
        said = empty.left(10.0 + done)
    assert said == "0:11 left"
