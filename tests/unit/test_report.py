"""metrics.jsonl, alarms and the live line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bytegolf.progress import Reporter, clock
from bytegolf.training.metrics import PATIENCE, RouterWatch
from bytegolf.training.metrics_file import MetricsFile, TrainRow, ValidationRow, read_metrics


def row(step: int, loss: float = 2.0) -> TrainRow:
    return TrainRow(step, 1.5, 64, 60, loss, 3.1, [0.1 + step], [0], [0.0], 1.0, 40.0, [])


def test_rows_are_appended_and_a_resumed_run_keeps_what_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    metrics = MetricsFile(path)
    for step in range(5):
        metrics.add(row(step))
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2, 3, 4]
    with path.open("a") as file:
        file.write('{"kind": "train", "st')  # a crash in the middle of a row
    resumed = MetricsFile(path, lambda row: row["step"] <= 2)
    resumed.add(ValidationRow(9, 2.5, 3.0, 128))
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2, 9]
    wanted = {"kind": "train", **dataclasses.asdict(row(1))}
    del wanted["soft"]  # of a model without soft chunking
    assert read_metrics(path)[1] == wanted
    assert list(read_metrics(path)[3]) == ["kind", "step", "seconds", "bpb", "tokens"]
    MetricsFile(path)
    assert read_metrics(path) == []
    assert read_metrics(tmp_path / "none") == []


def test_metrics_take_no_nan(tmp_path: Path) -> None:
    """JSON has none, and other readers would stumble."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        MetricsFile(tmp_path / "metrics.jsonl").add(row(1, float("nan")))


def test_a_fixed_rule_has_no_loss_to_weigh_more() -> None:
    watch = RouterWatch()
    said = [watch.see([0.95, 0.95], step, [False, True]) for step in range(PATIENCE)][-1]
    assert "router.kind" in said[0]
    assert "loss_weight" not in said[0]
    assert "loss_weight" in said[1]


def test_a_router_is_reported_once_its_patience_is_out() -> None:
    watch = RouterWatch()
    assert PATIENCE == 5
    for step in range(4):
        assert watch.see([0.003, 0.2], step) == []
    assert watch.see([0.05, 0.2], 4) == []  # it recovers, and counting starts anew
    for step in range(5, 9):
        assert watch.see([0.003, 0.95], step) == []
    low, high = watch.see([0.004, 0.96], 9)
    assert "level 0 opens almost no chunks (rate 0.004 at step 9" in low
    assert "level 1 makes nearly every position a chunk (rate 0.960 at step 9" in high
    for step in range(10, 30):
        assert watch.see([0.003, 0.95], step) == []  # said once
    watch.see([0.2, 0.2], 30)
    said = [watch.see([0.2, 0.95], step) for step in range(31, 37)]
    assert [len(texts) for texts in said] == [0, 0, 0, 0, 1, 0]  # and once more if it happens again


def test_truncation_is_reported_once_it_lasts() -> None:
    watch = RouterWatch()
    for step in range(4):
        assert watch.see_truncation([0, 9000], [0.0, 0.56], step) == []
    assert watch.see_truncation([0, 3], [0.0, 0.004], 4) == []  # hardly any sequence: counting starts anew
    for step in range(5, 9):
        assert watch.see_truncation([0, 9000], [0.0, 0.56], step) == []
    (said,) = watch.see_truncation([0, 9000], [0.0, 0.56], 9)
    assert "the capacity of level 1 truncated 9,000 boundaries in 56% of sequences (the row of step 9" in said
    assert watch.see_truncation([0, 9000], [0.0, 0.56], 10) == []


def test_from_low_to_high_is_not_the_same_collapse() -> None:
    watch = RouterWatch()
    assert not any(watch.see([rate], step) for step, rate in enumerate([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]))


def test_plain_lines_come_now_and_then_and_brackets_stay(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    with reporter:
        reporter.progress("step 1 [bold] is not markup")
        reporter.progress("step 2")
        reporter.progress("step 3", last=True)
        reporter.warn("[low] rate")
        reporter.say("[done]")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["step 1 [bold] is not markup", "step 3", "warning: [low] rate", "[done]"]


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3600, 7325, -3)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "2:02:05",
        "0:00",
    ]
