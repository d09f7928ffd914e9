"""The fit: within the limit, as good as said, and as good as trying everything on a made-up problem."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import TinyRun, good, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.artifact.fit import Options, StorageOption, descend, fill
from bytegolf.artifact.quantize import Storage

pytest.importorskip("matplotlib")


@st.composite
def problems(draw: st.DrawFn) -> dict[str, list[StorageOption]]:
    """Groups of three tensors' ways each, with losses that fall with the bits, or not."""
    found = {}
    for group in "abc":
        sizes = draw(st.lists(st.integers(8, 8000), min_size=1, max_size=4, unique=True))
        found[group] = [
            StorageOption(str(size), {group: Storage("int6_row")}, float(size), draw(st.floats(0, 1))) for size in sizes
        ]
    return found


@settings(deadline=None, derandomize=True)
@given(problems(), st.integers(0, 4000))
def test_the_descent_ends_narrow_and_filling_never_overflows(found: dict[str, list[StorageOption]], room: int) -> None:
    path = descend(Options(found, {"z": Storage("fp32")}, 80.0))
    sizes = [point.payload_bytes for point in path]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == int(np.ceil((80 + sum(min(way.bits for way in ways) for ways in found.values())) / 8))
    assert all(set(point.plan) == {"a", "b", "c", "z"} for point in path)
    for point in path:
        if point.payload_bytes <= room:
            fuller = fill(point, Options(found, {"z": Storage("fp32")}, 80.0), room)
            assert fuller.payload_bytes <= room
            assert fuller.loss <= point.loss


def test_points_of_the_descent_are_the_best_of_their_size() -> None:
    """With losses that are convex in the bits, no plan of all is smaller and better than a point of the descent."""
    rng = np.random.default_rng(0)
    found = {
        group: [StorageOption(str(bits), {}, float(bits * size), scale * 4.0**-bits) for bits in (8, 6, 5, 4, 3)]
        for group, size, scale in zip("abcd", rng.integers(100, 900, 4), rng.uniform(1, 50, 4), strict=True)
    }
    every = [
        (sum(way.bits for way in chosen), sum(way.loss for way in chosen))
        for chosen in itertools.product(*found.values())
    ]
    for point in descend(Options(found, {}, 0.0)):
        better = [
            bits for bits, loss in every if loss < point.loss * (1 - 1e-9) and bits <= 8 * point.payload_bytes - 8
        ]
        assert not better


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few ways to store a group, and a coder of many rows at a time: small matrices take it many steps."""
    monkeypatch.setattr("bytegolf.artifact.fit.WIDTHS", (8, 4))
    monkeypatch.setattr("bytegolf.artifact.fit.PRUNED", ((4, 0.5),))
    monkeypatch.setattr("bytegolf.artifact.weight_coder.rows_at_once", lambda rows, most: max(1, min(rows, 256)))


def export(run: TinyRun, out: Path, *arguments: object) -> dict[str, Any]:
    return good("export", run.folder, *arguments, "--out", out, "--tokens", 512, "--data", run.data, "--json").json


@pytest.mark.slow
def test_a_fit_hits_the_limit_and_scores_what_it_says(flat_run: TinyRun, tmp_path: Path) -> None:
    out, picture = tmp_path / "model", tmp_path / "frontier.png"
    full = export(flat_run, out, "export.coder=range")
    limits = [full["total_bytes"] - share * full["model_bytes"] // 100 for share in (10, 25)]
    found = [export(flat_run, out, "--fit", limits[0], "--points", 2, "--frontier", picture)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(found[0]["frontier"]) >= 2
    assert found[0]["frontier"][0]["model_bytes"] > found[0]["frontier"][-1]["model_bytes"]
    found.append(export(flat_run, out, "--fit", limits[1], "--points", 0))
    assert found[1]["frontier"] == []
    for limit, result in zip(limits, found, strict=True):
        assert result["total_bytes"] <= limit == result["fit_bytes"]
        assert result["coders"][result["coder"]] == min(result["coders"].values())
    assert found[1]["model_bytes"] == out.stat().st_size < found[0]["model_bytes"]
    scored = good("eval", out, "--data", flat_run.data, "--json").json
    # the script that counts holds the run's settings, whose coder is not the one that `full` was asked for
    assert [result["total_bytes"] - result["model_bytes"] for result in found] == [scored["code_bytes"]] * 2
    assert scored["bpb"] == pytest.approx(found[1]["bpb"], abs=1e-9)
    assert scored["total_bytes"] == found[1]["total_bytes"]


def test_what_cannot_be_fitted_is_told(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "model"
    common = ("--out", out, "--tokens", 256, "--data", tiny_run.data)
    answer = refused("export", tiny_run.folder, "--fit", 1000, *common)
    assert "even the smallest artifact" in answer
    assert not out.exists()
    assert "give --fit" in refused("export", tiny_run.folder, "--frontier", tmp_path / "a.png", *common)


def test_a_ledger_of_every_tensor(tiny_run: TinyRun, tmp_path: Path) -> None:
    result = export(tiny_run, tmp_path / "model", "export.coder=range", "--tensors")
    rows = [row for row in result["rows"] if row["tensors"]]
    assert all(row["tensors"] == 1 for row in rows)
    assert sum(row["parameters"] for row in rows) == result["params"]
    assert sum(row["packed_bytes"] for row in result["rows"]) == result["total_bytes"]
    assert any(row["group"] == "embedding.weight (fp16)" for row in rows)
