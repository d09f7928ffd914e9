"""From text to a scored artifact through the command line, on a tiny corpus: what each part leaves behind."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import SUBWORDS, TinyRun, good, refused, small

from bytegolf.artifact.pack import read_artifact
from bytegolf.config import Config
from bytegolf.ops import native

# what the score of one file must agree on, whoever computes it; times differ
EXACT = (
    "bpb",
    "bpb_original",
    "val_loss",
    "tokens",
    "bytes",
    "tokens_dropped",
    "artifact_sha256",
    "boundaries",
    "params",
)

MODELS = ("tiny_run", "flat_run", "two_level_run", "subword_run")


@pytest.fixture(params=MODELS)
def any_run(request: pytest.FixtureRequest) -> TinyRun:
    """A finished run of each kind of model."""
    run = request.getfixturevalue(request.param)
    assert isinstance(run, TinyRun)
    return run


def exact(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in EXACT}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------- a run's folder


def test_a_run_leaves_what_the_readme_lists(any_run: TinyRun) -> None:
    folder = any_run.folder
    names = {path.name for path in folder.iterdir()}
    always = {
        "config.toml",
        "data.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "artifact.bgolf",
        "summary.json",
    }
    subwords = Config.load(folder / "config.toml").data.tokenizer == SUBWORDS
    assert names == always | ({"tokenizer.model"} if subwords else set())
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert {path.name for path in checkpoint.iterdir()} >= {
        "model.safetensors",
        "optimizer.safetensors",
        "progress.json",
        "checksums.json",
    }


def test_the_summary_is_what_json_prints(any_run: TinyRun) -> None:
    assert any_run.ran.json == read(any_run.folder / "summary.json")


def test_the_saved_configuration_is_the_resolved_one(tiny_run: TinyRun) -> None:
    wanted = Config.load("cpu-demo", [*small(), f"data.path={tiny_run.data}"])
    assert Config.load(tiny_run.folder / "config.toml") == wanted
    assert read_artifact(tiny_run.folder / "artifact.bgolf").config == wanted


def test_the_environment_says_what_a_run_was_made_with(tiny_run: TinyRun) -> None:
    found = read(tiny_run.folder / "environment.json")
    assert {"bytegolf", "python", "packages", "platform", "cpus", "git", "command"} <= found.keys()
    assert found["command"][1:3] == ["train", "cpu-demo"]
    assert {"torch", "numpy"} <= found["packages"].keys()


def test_the_metrics_tell_the_way_of_the_loss(any_run: TinyRun) -> None:
    rows = [json.loads(line) for line in (any_run.folder / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == [2, 4, 6, 8, 10]
    assert all(math.isfinite(row["loss"]) for row in train)
    assert train[-1]["loss"] < train[0]["loss"], "ten steps do learn something"
    (validation,) = [row for row in rows if row["kind"] == "validation"]
    assert validation["step"] == 10


def test_ten_steps_beat_an_untrained_model_and_fit(any_run: TinyRun) -> None:
    summary = any_run.ran.json
    # a uniform guess over the alphabet needs log2(V) bits a token
    size = Config.load(any_run.folder / "config.toml").model.vocab_size
    assert 0 < summary["val_loss"] < math.log(size)
    assert summary["bpb"] == pytest.approx(summary["val_loss"] / math.log(2) * summary["tokens"] / summary["bytes"])
    assert summary["steps"] == 10
    assert summary["train_tokens"] == 10 * 4 * 128
    assert summary["fits"] is True
    assert summary["artifact_bytes"] == (any_run.folder / "artifact.bgolf").stat().st_size
    assert summary["total_bytes"] == summary["artifact_bytes"] + summary["code_bytes"]
    assert summary["stopped_early"] is False


def test_a_sentence_of_the_validation_split_before_and_after(tiny_run: TinyRun, flat_run: TinyRun) -> None:
    summary = tiny_run.ran.json
    for key in ("chunks_before", "chunks_after"):
        assert summary[key][0] == 0
        assert summary[key] == sorted(set(summary[key]))
        assert summary[key][-1] < len(summary["chunks_of"].encode())
    (shard,) = tiny_run.data.glob("datasets/*byte260/fineweb_val_*.bin")
    text = bytes(id - 4 for id in np.fromfile(shard, "<u2", offset=1024)[:400].tolist() if id >= 4)
    assert text.startswith(summary["chunks_of"].encode())
    assert summary["chunks_before"] != summary["chunks_after"]
    assert good("segment", tiny_run.folder, "--json").json["boundaries"] == summary["chunks_after"]
    assert flat_run.ran.json["chunks_before"] is None
    assert flat_run.ran.json["boundaries"] is None


def test_training_says_why_it_is_slow(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Once, and only where there are no native kernels."""
    words = "plain PyTorch path is slower"
    assert (words in tiny_run.ran.err) == (native.why_not() is not None)
    with native.disabled():
        ran = good("train", tiny_run.folder / "config.toml", "train.max_steps=1", "--out", tmp_path / "plain")
    assert ran.err.count(words) == 1


@pytest.mark.parametrize("units", [True, False])
def test_training_in_bf16_says_that_the_cpu_has_no_units_for_it(
    units: bool, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytegolf.training.setup.has_bf16", lambda device: units)
    overrides = ("train.max_steps=1", "train.precision=bf16")
    ran = good("train", tiny_run.folder / "config.toml", *overrides, "--out", tmp_path / "run")
    assert ran.err.count("many times as long") == (0 if units else 1)


# ---------------------------------------------------------------------------------------------- eval and export


def test_eval_agrees_exactly_with_train(any_run: TinyRun) -> None:
    summary = exact(any_run.ran.json)
    assert exact(good("eval", any_run.folder, "--json").json) == summary
    assert exact(good("eval", any_run.folder / "artifact.bgolf", "--data", any_run.data, "--json").json) == summary


def test_the_score_does_not_depend_on_the_batch(tiny_run: TinyRun) -> None:
    one, many = (good("eval", tiny_run.folder, "--batch", size, "--json").json for size in (1, 64))
    assert one["bpb"] == pytest.approx(many["bpb"], abs=1e-6)


def test_a_stride_scores_every_token_with_more_context(tiny_run: TinyRun) -> None:
    plain = tiny_run.ran.json
    assert plain["stride"] == 0
    sliding = good("eval", tiny_run.folder, "--stride", 32, "--json").json
    assert sliding["tokens_dropped"] == 0
    assert sliding["tokens"] == plain["tokens"] + plain["tokens_dropped"]
    assert sliding["subset"] is False
    # windows that overlap would count bytes many times: the statistics take those that tile the split
    assert 0 < sliding["boundaries"]["bytes"] <= sliding["bytes"] + 1
    whole = good("eval", tiny_run.folder, "--tail", "score", "--json").json
    assert (whole["tokens"], whole["bytes"]) == (sliding["tokens"], sliding["bytes"])
    assert whole["bpb"] != sliding["bpb"]
    assert sliding["bpb"] == pytest.approx(whole["bpb"], rel=0.05)


@pytest.mark.parametrize("tail", ["drop", "score"])
def test_a_subset_is_labelled_as_one(tiny_run: TinyRun, tail: str) -> None:
    ran = good("eval", tiny_run.folder, "--limit", 512, "--tail", tail, "--json")
    assert ran.json["subset"] is True
    assert ran.json["tokens"] == 512
    assert ran.json["bpb_original"] is None
    assert "SUBSET" in ran.err
    full = good("eval", tiny_run.folder, "--limit", 10**9, "--tail", tail, "--json")
    assert full.json["subset"] is False
    assert "SUBSET" not in full.err
    whole = full.json["tokens"] + full.json["tokens_dropped"]
    assert full.json["scored_share"] == full.json["tokens"] / whole
    assert ("over the full validation split" in full.err) == (full.json["scored_share"] >= 0.99)
    almost = whole - 1
    assert good("eval", tiny_run.folder, "--limit", almost, "--tail", "score", "--json").json["subset"] is True


def test_a_split_of_which_much_is_left_over_is_not_called_full(tiny_run: TinyRun) -> None:
    """Plain windows drop what fills none: of a small split in long windows up to half."""
    ran = good("eval", tiny_run.folder, "--length", 2500, "--json")
    share = ran.json["scored_share"]
    assert share < 0.99
    assert ran.json["subset"] is False, "nobody asked for less"
    assert "full validation split" not in ran.err
    assert f"{share:.0%} of the validation split" in ran.err
    assert good("eval", tiny_run.folder, "--length", 2500, "--tail", "score", "--json").json["scored_share"] == 1


def test_export_gives_the_same_bytes_again(any_run: TinyRun, tmp_path: Path) -> None:
    ran = good("export", any_run.folder, "--out", tmp_path / "again.bgolf", "--json")
    assert (tmp_path / "again.bgolf").read_bytes() == (any_run.folder / "artifact.bgolf").read_bytes()
    assert ran.json["sha256"] == any_run.ran.json["artifact_sha256"]
    assert ran.json["model_bytes"] == any_run.ran.json["artifact_bytes"]
    assert ran.json["params"] == any_run.ran.json["params"]
    assert sum(row["packed_bytes"] for row in ran.json["rows"]) == ran.json["total_bytes"]


# ---------------------------------------------------------------------------------------------- tokenizers


def test_a_subword_run_carries_its_tokenizer(subword_run: TinyRun, tmp_path: Path) -> None:
    model = (subword_run.folder / "tokenizer.model").read_bytes()
    assert model in [path.read_bytes() for path in (subword_run.data / "tokenizers").glob("*.model")]
    # its artifact elsewhere lacks it, unless the data is named or the file lies beside it
    shutil.copy(subword_run.folder / "artifact.bgolf", tmp_path / "moved.bgolf")
    alone = tmp_path / "moved.bgolf"
    assert good("segment", alone, "the people", "--data", subword_run.data, "--json").json["bytes"] == 10
    (tmp_path / "tokenizer.model").write_bytes(model)
    assert good("segment", alone, "the people", "--json").json["bytes"] == 10


def test_a_moved_subword_artifact_says_what_it_lacks(
    subword_run: TinyRun, tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good("train", subword_run.folder / "config.toml", "train.max_steps=1", "--data", _link(tiny_data), "--out", "run")
    shutil.copy(tmp_path / "run" / "artifact.bgolf", tmp_path / "alone.bgolf")
    Path("data").unlink()
    for command in (["segment", "alone.bgolf", "x"], ["sample", "alone.bgolf"]):
        said = refused(*command)
        assert "alone.bgolf" in said
        assert "--data" in said
    assert good("sample", "run", "--bytes", 3, "--json").json["bytes"] <= 3, "the run has its own copy"


def _link(data: Path) -> str:
    Path("data").symlink_to(data)
    return "data"


# ---------------------------------------------------------------------------------------------- resuming


def test_a_finished_run_resumed_exports_and_scores_the_same(tiny_run: TinyRun, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run.folder, tmp_path / "run")
    (copy / "artifact.bgolf").unlink()
    (copy / "summary.json").unlink()
    ran = good("train", copy / "config.toml", "--out", copy, "--resume", "--json")
    assert exact(ran.json) == exact(tiny_run.ran.json)
    assert ran.json["steps"] == 10
    assert (copy / "artifact.bgolf").read_bytes() == (tiny_run.folder / "artifact.bgolf").read_bytes()
    metrics = [(folder / "metrics.jsonl").read_text() for folder in (copy, tiny_run.folder)]
    assert metrics[0] == metrics[1]


def test_a_longer_budget_goes_on_with_the_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run.folder, tmp_path / "run")
    ran = good("train", copy / "config.toml", "train.max_steps=14", "--out", copy, "--resume", "--json")
    assert ran.json["steps"] == 14
    assert ran.json["train_tokens"] == 14 * 4 * 128
    assert Config.load(copy / "config.toml").train.max_steps == 14


@pytest.mark.parametrize("change", ["optim.muon_lr=0.5", "train.seed=2", "model.network.main.layers=2"])
def test_a_resumed_run_keeps_its_settings(tiny_run: TinyRun, tmp_path: Path, change: str) -> None:
    copy = shutil.copytree(tiny_run.folder, tmp_path / "run")
    said = refused("train", copy / "config.toml", change, "--out", copy, "--resume")
    assert change.partition("=")[0] in said
    assert "--out" in said
    assert Config.load(copy / "config.toml") == Config.load(tiny_run.folder / "config.toml")


def test_a_run_is_never_overwritten_unasked(tiny_run: TinyRun) -> None:
    before = (tiny_run.folder / "summary.json").read_bytes()
    assert "--resume" in refused("train", tiny_run.folder / "config.toml", "--out", tiny_run.folder)
    assert (tiny_run.folder / "summary.json").read_bytes() == before


def test_a_run_that_failed_at_once_can_be_started_otherwise(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Without a checkpoint nothing can be lost, and its error has just advised another learning rate."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(tiny_run.folder / "config.toml", folder)
    ran = good("train", folder / "config.toml", "optim.muon_lr=0.01", "train.max_steps=1", "--out", folder, "--json")
    assert ran.json["steps"] == 1


def test_the_same_seed_trains_the_same_model(tiny_run: TinyRun, tmp_path: Path) -> None:
    again = good("train", tiny_run.folder / "config.toml", "--out", tmp_path / "again", "--json").json
    first, second = (read_artifact(folder / "artifact.bgolf").state for folder in (tiny_run.folder, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again["bpb"] == tiny_run.ran.json["bpb"]
    other = good("train", tiny_run.folder / "config.toml", "train.seed=1", "--out", tmp_path / "other", "--json").json
    assert other["bpb"] != again["bpb"]
