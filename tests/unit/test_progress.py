"""Progress of long reads where there is no terminal."""

from __future__ import annotations

import time

import pytest

from bytegolf import progress
from bytegolf.progress import ProgressBar


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
    lines = ["reading: 10.0 MB at 0.5 MB/s, 25%, 60 s left", "reading: 40.0 MB at 1.6 MB/s, 100%, done"]
    assert capsys.readouterr().err.splitlines() == lines


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY", 0.0)
    with ProgressBar(quiet=True).task("reading", None) as advance:
        advance(5)
    assert capsys.readouterr().err == ""
