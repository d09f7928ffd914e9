"""A run goes on with what it was made of, or says what is otherwise; and it is found from any folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import TinyRun, cli, good, refused, small, text

from bytegolf.artifact import checkpoint as store
from bytegolf.config import Config

FIGURES = ("bpb", "validation_bpb_unquantised_sample", "validation_bpb_sample", "steps")


@pytest.fixture(scope="module")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers, of which a model of sentences knows nothing."""
    home = tmp_path_factory.mktemp("numbers")
    for name, first in (("a.txt", 1), ("b.txt", 3000)):
        (home / name).write_text("\n".join(map(str, range(first, first + 2000))))
    good("prepare", home / "a.txt", home / "b.txt", "--val", "first:1", "--out", home / "data")
    return home / "data"


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_run.folder, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resumed(run: Path, *more: object) -> tuple[object, ...]:
    return "train", run / "config.toml", "--out", run, "--resume", *more


@pytest.mark.parametrize("budget", [[], ["train.max_steps=14"]], ids=["nothing left", "longer"])
def test_other_data_are_refused_and_nothing_is_written(run: Path, other_data: Path, budget: list[str]) -> None:
    before = contents(run)
    said = refused(*resumed(run, *budget, "--data", other_data))
    assert "other data" in said
    assert str(other_data) in said
    assert contents(run) == before


def test_data_that_were_prepared_anew_in_the_same_folder_are_other_data(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text(3000, 1))
    (tmp_path / "b.txt").write_text(text(3000, 2))
    sources, data, run = (tmp_path / "a.txt", tmp_path / "b.txt"), tmp_path / "data", tmp_path / "run"
    options = ("--val", "first:1", "--out", data)
    good("prepare", *sources, *options)
    good("train", "cpu-demo", *small(), "train.max_steps=1", "--data", data, "--out", run)
    (tmp_path / "a.txt").write_text(text(3000, 3))
    shutil.rmtree(data)
    good("prepare", *sources, *options)
    assert "is not that any more" in refused(*resumed(run))
    assert "another validation split" in refused("eval", run), "whose score would be compared with the run's"
    good("eval", run, "--data", data)


def test_the_same_data_in_another_folder_are_the_same(run: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_run.data, tmp_path / "moved")
    found = good(*resumed(run, "--data", moved, "--json")).json
    assert [found[key] for key in FIGURES] == [tiny_run.ran.json[key] for key in FIGURES]
    assert Config.load(run / "config.toml").data.path == str(moved)


@pytest.mark.parametrize(
    ("change", "said"), [("train.max_steps=4", "10 steps"), ("train.max_seconds=0.0001", "seconds")]
)
def test_a_budget_that_is_used_up_is_refused(run: Path, change: str, said: str) -> None:
    before = contents(run)
    assert said in refused(*resumed(run, change))
    assert contents(run) == before


def test_what_goes_on_otherwise_is_said(run: Path) -> None:
    ran = good(*resumed(run, "train.max_steps=12", "eval.stride=64", "--json"))
    assert "train.max_steps = 12 (was 10)" in ran.err
    assert "eval.stride = 64 (was 0)" in ran.err
    assert "resuming with" not in good(*resumed(run)).err
    assert Config.load(run / "config.toml").train.max_steps == ran.json["steps"] == 12


def test_a_checkpoint_that_cannot_be_read_leaves_the_configuration(run: Path) -> None:
    (weights,) = run.glob("checkpoints/*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    before = contents(run)
    refused(*resumed(run, "train.max_steps=12"))
    assert contents(run) == before


def test_what_quantisation_costs_is_of_one_sample(run: Path) -> None:
    """Also where another one is asked for and nothing is left to train."""
    few, many = (good(*resumed(run, f"train.validate_tokens={size}", "--json")).json for size in (256, 4096))
    for found in (few, many):
        before, after = found["validation_bpb_unquantised_sample"], found["validation_bpb_sample"]
        assert after == pytest.approx(before, abs=0.05)
    assert few["validation_bpb_sample"] != many["validation_bpb_sample"]


def test_the_best_checkpoint_is_best_on_the_sample_of_the_latest(tmp_path: Path) -> None:
    for step, (bpb, tokens) in enumerate([(1.0, 64), (2.0, 128), (3.0, 128), (2.5, 128)], start=1):
        told = {"step": step, "validation_bpb": bpb, store.SAMPLE: tokens}
        store.save(tmp_path, store.Checkpoint(told, {}, {}, {}))
    store.prune(tmp_path, 1)
    assert [store.step_of(path) for path in store.checkpoints(tmp_path)] == [2, 4]


# ---------------------------------------------------------------------------------------------- what is left of a run


def test_a_run_that_was_killed_before_its_first_checkpoint_says_so(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "artifact.bgolf").unlink()
    assert "ended before its first checkpoint" in good(*resumed(run)).err
    shutil.rmtree(run / "checkpoints")
    (run / "artifact.bgolf").unlink()
    assert "before its first checkpoint" in good("train", run / "config.toml", "--out", run).err


def test_an_artifact_without_a_checkpoint_is_not_trained_over(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    before = contents(run)
    assert "no checkpoint to go on from" in refused(*resumed(run))
    assert contents(run) == before


def test_a_damaged_record_of_the_data_is_said(run: Path) -> None:
    for content in ("{", "[]", '{"folder": 3}'):
        (run / "data.json").write_text(content)
        assert "data.json" in refused(*resumed(run))
        assert cli("check", run).code == 1


# ---------------------------------------------------------------------------------------------- from any folder


@pytest.fixture
def home(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run in `runs/x` on `data`, both named as seen from it."""
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    shutil.copytree(tiny_run.data, home / "data")
    monkeypatch.chdir(home)
    config = json.dumps(str(tiny_run.folder / "config.toml"))[1:-1]
    good("train", config, "train.max_steps=1", "--data", "data", "--out", "runs/x")
    return home


def from_inside(home: Path) -> tuple[Path, Path]:
    return home / "runs" / "x", Path()


def from_elsewhere(home: Path) -> tuple[Path, Path]:
    (home.parent / "elsewhere").mkdir()
    return home.parent / "elsewhere", home / "runs" / "x"


def when_moved(home: Path) -> tuple[Path, Path]:
    home.rename(home.parent / "moved")
    return home.parent, Path("moved/runs/x")


def when_other_data_are_called_so(home: Path) -> tuple[Path, Path]:
    place, run = from_elsewhere(home)
    (place / "a.txt").write_text(text(3000, 5))
    (place / "b.txt").write_text(text(3000, 6))
    good("prepare", place / "a.txt", place / "b.txt", "--val", "first:1", "--out", place / "data")
    return place, run


@pytest.mark.parametrize("where", [from_inside, from_elsewhere, when_moved, when_other_data_are_called_so])
def test_a_run_works_from_any_folder(
    where: Callable[[Path], tuple[Path, Path]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = json.loads((home / "runs" / "x" / "summary.json").read_text())["bpb"]
    place, run = where(home)
    monkeypatch.chdir(place)
    assert good("eval", run, "--json").json["bpb"] == wanted
    good("analyze", run, "--limit", 500, "--history")
    good("export", run, "export.gptq=true", "export.gptq_tokens=256", "--out", place / "gptq.bgolf")
    ran = cli(*resumed(run, "train.max_steps=2"))
    assert (ran.code, "other data" in ran.err) == ((2, True) if where is when_other_data_are_called_so else (0, False))


def test_data_that_are_nowhere_are_asked_for_by_name(home: Path, tmp_path: Path) -> None:
    (home / "data").rename(tmp_path / "gone")
    for verb in ("eval", "verify", "analyze"):
        assert "--data" in refused(verb, "runs/x")
    assert "--data" in refused("probe", "runs/x")
    good("eval", "runs/x", "--data", tmp_path / "gone")
    assert "no data folder" in refused("train", "runs/x/config.toml", "--data", "typo", "--out", "runs/x", "--resume")
