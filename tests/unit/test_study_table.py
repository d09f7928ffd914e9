"""Tables of studies: the arithmetic against figures worked out by hand, verdicts, and what is written."""

from __future__ import annotations

import csv
import io
import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytegolf.errors import BytegolfError
from bytegolf.tools.study.definition import Study, read_study
from bytegolf.tools.study.picture import draw
from bytegolf.tools.study.plan import Job, jobs
from bytegolf.tools.study.results import Row
from bytegolf.tools.study.statistics import Difference, paired, spread, t_95
from bytegolf.tools.study.table import Table, as_csv, markdown, notes, plain, tabulate, verdict

STUDY = """
name = "s"
question = "Which | one?"
preset = "cpu-demo"
control = "a"
seeds = [1, 2, 3]
compare = [["c", "b"]]
budget = {seconds = 9, clock = "processor"}
[variants.a]
[variants.b.overrides]
optim.muon_lr = 0.02
[variants.c.overrides]
optim.muon_lr = 0.03
eval.stride = 3
"""
BOUNDARIES = {"rate": 0.2, "whitespace_agreement": 0.9, "cv": 0.5, "mean_chunk_bytes": 5.0}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "s.toml").write_text(STUDY)
    return read_study(tmp_path / "s.toml")


def summary(bpb: float, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"bpb": bpb + 0.1, "bpb_original": bpb, "subset": False, "total_bytes": 900, "fits": True}
    run = {"params": 10, "train_seconds": 9.0, "steps": 7, "train_bytes": 70, "train_bytes_per_second": 8}
    return {**base, **run, "boundaries": BOUNDARIES, **more}


def rows(study: Study, scores: dict[str, list[float | None]], **more: Any) -> dict[Job, Row]:
    """A row for every score; None is a failure, and what is left out is missing."""
    found: dict[Job, Row] = {}
    made = {"git": {"commit": "c" * 40, "modified": False}, "versions": {"torch": "2.0"}}
    for job in jobs(study, without_data=True):
        own = scores.get(job.variant.name, [])
        if job.seed > len(own):
            continue
        score = own[job.seed - 1]
        if score is None:
            found[job] = {"status": "failed", "error": "it broke"}
        else:
            found[job] = {"status": "done", "summary": summary(score, **more), **made}
    return found


def table(study: Study, **scores: list[float | None]) -> Table:
    return tabulate(study, rows(study, scores))


# ---------------------------------------------------------------------------------------------- statistics


def test_t_is_that_of_the_tables() -> None:
    published = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}
    for freedom, value in published.items():
        assert t_95(freedom) == pytest.approx(value, abs=6e-4)


def test_a_paired_difference_by_hand() -> None:
    """Differences −0.1, −0.2, −0.3: mean −0.2, deviation 0.1, half 4.3027 · 0.1 / √3 = 0.24841."""
    found = paired([1.0, 2.0, 3.0], [0.9, 1.8, 2.7])
    assert found.mean == pytest.approx(-0.2)
    assert found.half == pytest.approx(0.248414, abs=1e-5)
    assert not found.told_apart
    assert paired([1.0, 2.0, 3.0], [0.9, 1.9, 2.9]).told_apart
    assert paired([1.0], [0.5]) == Difference(-0.5, None, 1, (-0.5,))
    assert spread([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 3)))
    assert spread([1.5]) == (1.5, None)


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=2, max_size=8),
    st.floats(-3, 3),
)
def test_what_both_share_does_not_matter(pairs: list[tuple[float, float]], shift: float) -> None:
    """A seed that is hard for both moves both; and the other way round is the same with its sign turned."""
    first, second = ([pair[index] for pair in pairs] for index in (0, 1))
    plainly = paired(first, second)
    moved = paired([a + shift * n for n, a in enumerate(first)], [b + shift * n for n, b in enumerate(second)])
    assert moved.mean == pytest.approx(plainly.mean, abs=1e-9)
    assert moved.half == pytest.approx(plainly.half, abs=1e-6)
    back = paired(second, first)
    assert (back.mean, back.half) == (pytest.approx(-plainly.mean), pytest.approx(plainly.half))


def test_verdicts() -> None:
    assert verdict(None) == ""
    assert verdict(Difference(-0.5, None, 1)) == "?"
    assert [verdict(Difference(mean, 0.1, 3)) for mean in (-0.2, -0.1, 0.0, 0.1, 0.2)] == [
        "better",
        "=",
        "=",
        "=",
        "worse",
    ]


# ---------------------------------------------------------------------------------------------- tables


def test_a_full_table(study: Study) -> None:
    found = table(study, a=[1.0, 1.1, 1.2], b=[0.9, 1.0, 1.1], c=[1.0, 1.2, 1.1])
    a, b, c = found.lines
    assert (a.n, a.missing, a.difference, a.verdict, a.best) == (3, 0, None, "", False)
    assert a.bpb == (pytest.approx(1.1), pytest.approx(0.1))
    assert b.best
    assert b.difference is not None
    assert (b.difference.mean, b.difference.half) == (pytest.approx(-0.1), pytest.approx(0, abs=1e-12))
    assert (b.verdict, c.verdict) == ("better", "=")
    assert [(one.variant, one.other, one.verdict) for one in found.comparisons] == [
        ("b", "a", "better"),
        ("c", "a", "="),
        ("c", "b", "="),
    ]
    assert found.score == "bpb_original"
    assert found.commits == ["c" * 12]


def test_a_row_need_not_say_what_code_made_it(study: Study) -> None:
    known = rows(study, {"a": [1.0]})
    del next(iter(known.values()))["git"]
    assert tabulate(study, known).commits == ["no git checkout"]


def test_the_score_over_original_bytes_is_compared_where_all_know_it(study: Study) -> None:
    known = rows(study, {"a": [1.0], "b": [1.0]})
    assert tabulate(study, known).lines[0].bpb == (1.0, None)
    next(iter(known.values()))["summary"]["bpb_original"] = None
    found = tabulate(study, known)
    assert found.score == "bpb"
    assert found.lines[0].bpb == (pytest.approx(1.1), None)
    assert "bits per byte of the tokens' text" in notes(found)[0]


def test_pairs_are_of_the_same_seed_and_best_is_only_who_is_complete(study: Study) -> None:
    found = table(study, a=[1.0, 1.1, 1.3], b=[None, 1.0, 1.1], c=[0.5])
    _, b, c = found.lines
    assert b.difference is not None
    assert (b.difference.n, b.difference.mean) == (2, pytest.approx(-0.15))
    assert (b.failed, b.missing, c.missing, c.verdict) == (1, 1, 2, "?")
    assert [line.variant for line in found.lines if line.best] == ["a"]
    text = markdown(found)
    assert "| 2 (1 failed) |" in text
    assert "Failed: b, seed 1: it broke" in text
    assert "Missing: 2 of 3 seeds of 'c'." in text


def test_what_is_written(study: Study) -> None:
    known = rows(study, {"a": [1.0, 1.1, 1.2], "b": [0.9, 1.0, 1.1]}, subset=True)
    found = tabulate(study, known)
    text = markdown(found)
    assert text.startswith("# s\n\nWhich | one?\n")
    assert "| b | 3 | **1.0000 ± 0.1000** | -0.1000 ± 0.0000 | better | 900 | yes | 9 | 7 | 8 | 0.200 | 90.0% |" in text
    assert "SUBSET" in text
    assert "9 processor seconds of training, 1 thread." in text
    assert "| c | b | - |  |" in text
    read = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["variant"] for row in read] == ["a", "b", "c"]
    assert float(read[1]["difference"]) == pytest.approx(-0.1)
    assert read[2]["bpb"] == ""
    assert list(read[0]) == list(plain(found)[0])


def test_too_large_is_shown(study: Study) -> None:
    text = markdown(tabulate(study, rows(study, {"a": [1.0]}, fits=False, total_bytes=17_000_000)))
    assert "| 17,000,000 | NO |" in text


def test_flat_models_have_no_chunks(study: Study) -> None:
    found = tabulate(study, rows(study, {"a": [1.0]}, boundaries=None))
    assert found.lines[0].means["rate"] is None
    assert "| - | - | - | - |" in markdown(found)


def test_nothing_yet(study: Study) -> None:
    found = table(study)
    assert not any(line.best for line in found.lines)
    assert "nothing yet" in markdown(found)


def test_the_picture(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    names = [variant.name for variant in study.variants]
    drawn = table(study, **{name: [1.0 + 0.1 * at, 1.01, 1.02] for at, name in enumerate(names)})
    draw(drawn, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    gaps = [line.difference for line in drawn.lines if line.difference]
    assert gaps
    assert all(fmean(gap.each) == pytest.approx(gap.mean) for gap in gaps), "a ring a seed"
    with pytest.raises(BytegolfError, match="can be compared with its control yet"):
        draw(table(study), tmp_path / "none.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BytegolfError, match="pip install matplotlib"):
        draw(drawn, tmp_path / "plot.png")


def test_scores_before_quantisation(study: Study) -> None:
    known = rows(study, {"a": [1.0, 1.1, 1.2], "b": [0.9, 1.0, 1.1], "c": [1.0, 1.2, 1.1]})
    assert "float" not in markdown(tabulate(study, known))
    for job, row in known.items():
        if job.variant.name != "a":  # pieces' text is 0.1 more a byte
            row["summary"]["bpb_unquantised"] = row["summary"]["bpb"] * (0.5 if job.variant.name == "b" else 0.25)
    found = tabulate(study, known)
    a, b, c = found.lines
    assert (a.means["bpb_float"], b.means["bpb_float"]) == (None, pytest.approx(0.5))
    assert c.means["bpb_float"] == pytest.approx(0.275)
    last = found.comparisons[-1]
    assert (last.variant, last.other) == ("c", "b")
    assert last.float_difference is not None
    assert last.float_difference.mean == pytest.approx(-0.225)
    assert found.comparisons[0].float_difference is None
    text = markdown(found)
    assert "| variant | n | BPB | float |" in text
    assert "| c | b | +0.1000 ± 0.2484 | = | -0.2250 ± 0.1076 |" in text
