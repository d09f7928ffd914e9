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
from bytegolf.tools.study.definition import Job, Study, jobs, read_study
from bytegolf.tools.study.report import draw
from bytegolf.tools.study.results import Row
from bytegolf.tools.study.table import Difference, Table, as_csv, markdown, notes, paired, spread, t_95, tabulate

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


def rows(study: Study, scores: dict[str, list[float | None]], git: bool = True, **more: Any) -> dict[Job, Row]:
    """A row for every score; None is a failure, and what is left out is missing."""
    found: dict[Job, Row] = {}
    made: dict[str, Any] = {"versions": {"torch": "2.0"}}
    made |= {"git": {"commit": "c" * 40, "modified": False}} if git else {}
    for job in jobs(study, without_data=True):
        own = scores.get(job.variant.name, [])
        if job.seed > len(own):
            continue
        score = own[job.seed - 1]
        if score is None:
            line: dict[str, Any] = {"status": "failed", "error": "it broke"}
        else:
            own_more = {key: value(job, score) if callable(value) else value for key, value in more.items()}
            line = {"status": "done", "summary": summary(score, **own_more), **made}
        found[job] = Row.of({**job.identity._asdict(), **line}, "a row")
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
    assert spread([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 3)))  # type: ignore[comparison-overlap]
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
    assert (back.mean, back.half) == (pytest.approx(-plainly.mean), pytest.approx(plainly.half))  # type: ignore[comparison-overlap]


def test_verdicts() -> None:
    assert Difference(-0.5, None, 1).verdict == "?"
    found = [Difference(mean, 0.1, 3).verdict for mean in (-0.2, -0.1, 0.0, 0.1, 0.2)]
    assert found == ["better", "=", "=", "=", "worse"]


# ---------------------------------------------------------------------------------------------- tables


def test_a_full_table(study: Study) -> None:
    found = table(study, a=[1.0, 1.1, 1.2], b=[0.9, 1.0, 1.1], c=[1.0, 1.2, 1.1])
    a, b, c = found.variants
    assert (a.n, a.missing, a.difference, a.verdict, a.best) == (3, 0, None, None, False)
    assert (a.bpb, a.bpb_std) == (pytest.approx(1.1), pytest.approx(0.1))  # type: ignore[comparison-overlap]
    assert b.best
    assert (b.difference, b.difference_half_interval) == (pytest.approx(-0.1), pytest.approx(0, abs=1e-12))  # type: ignore[comparison-overlap]
    assert (b.verdict, c.verdict) == ("better", "=")
    pairs = [(one.variant, one.with_, one.verdict) for one in found.comparisons]
    assert pairs == [("b", "a", "better"), ("c", "a", "="), ("c", "b", "=")]
    assert (found.score, found.commits) == ("bpb_original", ["c" * 12])


def test_a_row_need_not_say_what_code_made_it(study: Study) -> None:
    assert tabulate(study, rows(study, {"a": [1.0]}, git=False)).commits == ["no git checkout"]


def test_the_score_over_original_bytes_is_compared_where_all_know_it(study: Study) -> None:
    scores: dict[str, list[float | None]] = {"a": [1.0], "b": [1.0]}
    assert tabulate(study, rows(study, scores)).variants[0].bpb == 1.0
    found = tabulate(study, rows(study, scores, bpb_original=lambda job, bpb: bpb if job.variant.name == "b" else None))
    assert found.score == "bpb"
    assert found.variants[0].bpb == pytest.approx(1.1)
    assert "tokens' text" in notes(found)[0]


def test_pairs_are_of_the_same_seed_and_best_is_only_who_is_complete(study: Study) -> None:
    found = table(study, a=[1.0, 1.1, 1.3], b=[None, 1.0, 1.1], c=[0.5])
    _, b, c = found.variants
    assert (found.gaps["b"].n, b.difference) == (2, pytest.approx(-0.15))  # type: ignore[comparison-overlap]
    assert (b.failed, b.missing, c.missing, c.verdict) == (1, 1, 2, "?")
    assert [one.variant for one in found.variants if one.best] == ["a"]
    text = markdown(found)
    assert "| 2 (1 failed) |" in text
    assert "b, seed 1: it broke" in text
    assert "2 of 3 seeds of 'c'" in text


def test_what_is_written(study: Study) -> None:
    known = rows(study, {"a": [1.0, 1.1, 1.2], "b": [0.9, 1.0, 1.1]}, subset=True, fits=False, total_bytes=17_000_000)
    found = tabulate(study, known)
    text = markdown(found)
    assert text.startswith("# s\n\nWhich | one?\n")
    row = "| b | 3 | **1.0000 ± 0.1000** | -0.1000 ± 0.0000 | better | 17,000,000 | NO | 9 | 7 | 8 | 0.200 | 90.0% |"
    assert row in text
    assert "SUBSET" in text
    assert "9 processor seconds of training, 1 thread." in text
    assert "| c | b | - |  |" in text
    read = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [one["variant"] for one in read] == ["a", "b", "c"]
    assert float(read[1]["difference"]) == pytest.approx(-0.1)
    assert read[2]["bpb"] == ""


def test_flat_models_have_no_chunks(study: Study) -> None:
    found = tabulate(study, rows(study, {"a": [1.0]}, boundaries=None))
    assert found.variants[0].rate is None
    assert "| - | - | - | - |" in markdown(found)


def test_nothing_yet(study: Study) -> None:
    found = table(study)
    assert not any(one.best for one in found.variants)
    assert "nothing yet" in markdown(found)


def test_the_picture(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    names = [variant.name for variant in study.variants]
    scores: dict[str, list[float | None]] = {name: [1.0 + 0.1 * at, 1.01, 1.02] for at, name in enumerate(names)}
    drawn = table(study, **scores)
    draw(drawn, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert list(drawn.gaps) == names[1:]
    assert all(fmean(gap.each) == pytest.approx(gap.mean) for gap in drawn.gaps.values()), "a ring per seed"
    with pytest.raises(BytegolfError, match="can be compared"):
        draw(table(study), tmp_path / "none.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BytegolfError, match=r"\[plots\]"):
        draw(drawn, tmp_path / "plot.png")


def test_scores_before_quantisation(study: Study) -> None:
    scores: dict[str, list[float | None]] = {"a": [1.0, 1.1, 1.2], "b": [0.9, 1.0, 1.1], "c": [1.0, 1.2, 1.1]}
    assert "float" not in markdown(tabulate(study, rows(study, scores)))
    shares = {"b": 0.5, "c": 0.25}

    def before(job: Job, bpb: float) -> float | None:  # the tokens' text costs 0.1 bits per byte more
        return (bpb + 0.1) * shares[job.variant.name] if job.variant.name in shares else None

    found = tabulate(study, rows(study, scores, bpb_unquantised=before))
    assert [one.bpb_float for one in found.variants] == [None, pytest.approx(0.5), pytest.approx(0.275)]
    last = found.comparisons[-1]
    assert (last.variant, last.with_) == ("c", "b")
    assert last.float_difference == pytest.approx(-0.225)
    assert found.comparisons[0].float_difference is None
    text = markdown(found)
    assert "| variant | n | BPB | float |" in text
    assert "| c | b | +0.1000 ± 0.2484 | = | -0.2250 ± 0.1076 |" in text
