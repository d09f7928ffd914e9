"""A model of S4's kind through the whole chain: trained, exported, scored, verified, read, compressed, planned."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import TinyRun, good, small, stages, text

from bytegolf.artifact.loading import load_own
from bytegolf.config import Config
from bytegolf.model.layers import storage_kinds


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Two stages with blocks of both kinds, after ten steps."""
    changes = [change for change in small("cpu-hnet-2stage") if change.startswith("train.")]
    for path, stage in stages(Config.load("cpu-hnet-2stage")):
        changes += [f"{path}.dim={stage.dim // 64 * 16}", f"{path}.mlp_hidden={stage.mlp_hidden // 8}"]
        if stage.heads:
            changes += [f"{path}.heads=2", f"{path}.kv_heads=2", f"{path}.rotary_dim=4", f"{path}.window=8"]
        if "m" in stage.layout:
            changes.append(f"{path}.options={{d_state = 6, headdim = 16, d_conv = 3}}")
    folder = tmp_path_factory.mktemp("runs") / "paper"
    ran = good("train", "cpu-hnet-2stage", *changes, "--data", tiny_data, "--out", folder, "--json")
    return TinyRun(folder, tiny_data, ran)


def test_training_lowers_the_loss(run: TinyRun) -> None:
    assert run.ran.json["bpb"] < 7.5  # log2 of the alphabet is 8.02
    assert len(load_own(run.folder / "artifact.bgolf").model.levels()) == 2


@pytest.mark.parametrize("options", [[], ["export.gptq=true", "export.bits=6", "export.gptq_tokens=2048"]])
def test_an_artifact_scores_as_reloaded(run: TinyRun, options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "model.bgolf"
    good("export", run.folder, *options, "--out", out)
    scored = good("eval", out, "--data", run.data, "--json").json
    assert scored["bpb"] == pytest.approx(run.ran.json["bpb"], abs=0.0 if not options else 0.05)


def test_every_tensor_is_stored_for_what_it_is(run: TinyRun) -> None:
    model = load_own(run.folder / "artifact.bgolf").model
    kinds = storage_kinds(model)
    for name, parameter in model.named_parameters():
        if name.endswith((".conv", "norm.weight")):
            assert kinds[name] == "control", name
        elif parameter.ndim == 2:
            assert kinds.get(name, "weight") in ("weight", "embedding"), name


def test_it_segments_at_both_levels_and_compresses(run: TinyRun, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text(text(600), encoding="utf-8")
    for level in ("0", "1"):
        assert good("segment", run.folder, "the state of the union", "--level", level).out
    model = ("--model", run.folder)
    good("compress", *model, source, "-o", tmp_path / "text.bgz")
    good("decompress", *model, tmp_path / "text.bgz", "-o", tmp_path / "back.txt")
    assert (tmp_path / "back.txt").read_bytes() == source.read_bytes()


def test_plans_know_the_published_shapes() -> None:
    for preset in ("hnet-1stage-L", "hnet-2stage-L"):
        assert good("plan", preset, "--json").json
