"""Boundaries counted, shifted and quantised: against constructed readings, `eval`'s own counts and real exports."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TinyRun, good, refused
from conftest import ModelMaker
from streams import BYTES, random_tokens, stream_of

from bytegolf.analyze.stability import Cuts, capacities, flips, read_cuts, room, shifted
from bytegolf.analyze.stability_results import Flips
from bytegolf.artifact.loading import load_own
from bytegolf.data.dataset import open_split
from bytegolf.evaluate.boundaries import TruncationStats
from bytegolf.evaluate.score import score
from bytegolf.evaluate.sliding import router_receptive_field
from bytegolf.model.hnet import HNet


def cuts(*rows: str) -> Cuts:
    """| a boundary, . none, ! a forced boundary, blank no position."""
    marks = np.array([list(row) for row in rows])
    return Cuts(np.isin(marks, ("|", "!")), np.isin(marks, ("|", ".")))


def test_flips_are_what_differs() -> None:
    found = flips(cuts("!.|..|", "!....."), cuts("!||...", "!....."))
    assert found == Flips(flips=2, appeared=1, per_window=1.0, per_position=2 / 10, per_boundary=2 / 2)
    assert flips(cuts("!..."), cuts("!...")).per_boundary is None


def test_a_chunk_that_is_gone_outside_is_a_flip_inside() -> None:
    """To an inner level positions are the outer chunk starts of either reading; what is forced in one is none."""
    assert flips(cuts("! | . !"), cuts("!   | |")).flips == 2
    assert flips(cuts("!  .  "), cuts("!     ")).per_position == 0


def test_a_shift_compares_the_same_tokens_by_distance() -> None:
    found = shifted(cuts("!.|.|..|."), cuts("!..|.||.."), 2)
    # tokens 2 … 8: before |.|..|.  after !..|.||  the first of them is forced
    assert found.by == 2
    assert found.flips == 3
    assert [(row.from_, row.to, row.flips) for row in found.distances] == [(1, 1, 0), (2, 3, 2), (4, 6, 1)]
    assert sum(row.positions for row in found.distances) == 6
    assert found.per_position == pytest.approx(3 / 6)


def test_room() -> None:
    found = room(cuts("!|||||||", "!......|", "!......."), 4, (2.0, 8.0))
    assert found.mean == pytest.approx(11 / 3)
    assert found.counts == [(1, 1), (2, 1), (8, 1)]
    assert found.cut_windows == pytest.approx(1 / 3)
    assert found.cut_boundaries == pytest.approx(4 / 11)
    assert [(one.limit, one.cut_windows) for one in found.divisors] == [  # type: ignore[comparison-overlap]
        (4, pytest.approx(1 / 3)),
        (1, pytest.approx(2 / 3)),
    ]


@pytest.mark.parametrize("name", ["one-level", "two-level"])
def test_what_is_cut_is_what_a_score_truncates(name: str, make_model: ModelMaker, tmp_path: Path) -> None:
    model, length = make_model(name), 64
    tokens = random_tokens(10 * length + 1)
    model.levels()[0].capacity = dataclasses.replace(model.levels()[0].capacity, mode="fixed", divisor=12.0)
    counted = TruncationStats(model)
    score(
        model,
        stream_of(tmp_path, tokens),
        BYTES,
        length,
        observe=lambda window, ids, traces, row: counted.add(traces, row),
    )
    found = read_cuts(model, np.array(tokens), range(0, 10 * length, length), length)[0]
    told = room(found, capacities(model, length)[0], ())
    wanted = counted.figures()[0]
    assert wanted.truncated_boundaries > 0
    assert told.limit == length // 12
    assert round(told.cut_boundaries * found.boundary.sum()) == wanted.truncated_boundaries
    assert round(told.cut_windows * 10) == wanted.truncated_windows
    assert model.levels()[0].capacity.mode == "fixed", "as it was"


def test_the_room_of_an_inner_level_is_a_share_of_the_outer_ones(make_model: ModelMaker) -> None:
    model = make_model("two-level")
    assert capacities(model, 60) == [None, None]
    model.set_capacity("fixed", 3.0)
    assert capacities(model, 60) == [20, 6]


@pytest.mark.parametrize("name", ["one-level", "tables", "two-level"])
def test_a_shift_moves_nothing_beyond_the_encoders_reach(name: str, make_model: ModelMaker) -> None:
    model, length, by = make_model(name), 96, 8
    model.precision = torch.float64
    assert isinstance(model.network, HNet)
    reach = router_receptive_field(model, model.network)
    assert reach is not None
    assert reach < 40
    ids = np.array(random_tokens(20 * length + by))
    starts = range(0, 20 * length, length)
    before = read_cuts(model, ids, starts, length)[0]
    after = read_cuts(model, ids, [start + by for start in starts], length)[0]
    changed = before.boundary[:, by:] != after.boundary[:, :-by]
    assert changed[:, 1:reach].any()
    assert not changed[:, reach:].any()
    # one token further and the test would see it, as encoders of full attention do
    assert changed[:, 1:reach].sum() == shifted(before, after, by).flips


@pytest.mark.parametrize("run_name", ["tiny_run", "two_level_run"])
def test_quantised_weights_are_those_of_an_export(
    run_name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: TinyRun = request.getfixturevalue(run_name)
    result = good("analyze", run.folder, "--data", run.data, "--stability", "--limit", 3000, "--json").json
    found = result["models"][0]["stability"]
    good("export", run.folder, "export.bits=6", "--out", tmp_path / "six.bgolf")
    by_bits = [{row["weights"]: row for row in level["weights"]} for level in found["levels"]]
    assert [list(rows) for rows in by_bits] == [["8 bits", "6 bits", "the artifact"]] * len(by_bits)
    length = found["length"]
    stream = open_split(run.data, "byte260", "val", 260)
    starts = range(0, found["windows"] * length, length)
    ids = stream.slice(0, 3000).astype(np.int64)
    shipped, six = (
        read_cuts(load_own(path, run.data).model, ids, starts, length) for path in (run.folder, tmp_path / "six.bgolf")
    )
    for one, other, rows in zip(shipped, six, by_bits, strict=True):
        assert rows["8 bits"]["flips"] == rows["the artifact"]["flips"], "which is of 8 bits, and of these weights"
        moved = rows["8 bits"]["flips"] + rows["6 bits"]["flips"]
        assert abs(rows["8 bits"]["flips"] - rows["6 bits"]["flips"]) <= flips(one, other).flips <= moved


def test_the_verb(tiny_run: TinyRun, flat_run: TinyRun, tmp_path: Path) -> None:
    here = ("--data", tiny_run.data, "--limit", 3000, "--stability", "--json")
    page = tmp_path / "page.html"
    ran = good("analyze", tiny_run.folder / "artifact.bgolf", flat_run.folder, *here, "--html", page)
    firm, flat = (model["stability"] for model in ran.json["models"])
    assert flat is None
    assert firm["checkpoint"] is None
    assert firm["levels"][0]["weights"] == []
    assert firm["windows"] == (3000 - 64) // 128
    assert "room for boundaries" in ran.err
    assert "Boundaries that move" in page.read_text()
    (tmp_path / "short.txt").write_text("short")
    said = refused("analyze", tiny_run.folder, "--file", tmp_path / "short.txt", "--stability")
    assert "192 tokens" in said
