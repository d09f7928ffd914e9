"""Public H-Nets in and out: opened, imported, exported, used by every verb; what does not fit is named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import public_hnet
import pytest
import torch
from commands import good, refused, text
from local_hub import Hub
from safetensors.torch import load_file, save_file
from test_golden import FOLDER, error

import bytegolf
from bytegolf.artifact.exchange import public_config
from bytegolf.artifact.pack import read_artifact
from bytegolf.artifact.public.opening import BUDGET, RELEASED
from bytegolf.config import Config, to_dict
from bytegolf.config.public_hnet import from_public
from bytegolf.model.layers import float_state, widen
from bytegolf.model.lm import count_parameters, outline

SENTENCE = "The people of the United States — naïve café."

CONFIGS: dict[str, dict[str, Any]] = {
    "one stage": public_hnet.public(),
    "two stages": public_hnet.public(["m1", ["T1m1", ["T1"], "m1T1"], "m1"], (64, 64, 96)),
    "other blocks": public_hnet.public(
        ["M1t1", ["m1T1"], "t1M1"], d_conv=3, d_state=8, rotary_emb_dim=[0, 12], window_size=[-1, 7]
    ),
    "tied": public_hnet.public(tied=True, expand=1),
    "flat": public_hnet.public(["T1m1"], (64,)),
}


TINY = (
    "train.seq_len=64",
    "train.batch_tokens=64",
    "train.max_steps=1",
    "train.max_seconds=0",
    "train.precision=fp32",
    "train.warmup_steps=0",
    "train.validate_tokens=0",
    "eval.limit=64",
)
STILL = ("optim.muon_lr=0", "optim.embed_lr=0", "optim.scalar_lr=0", "export.quantizer=fp32")
"""One step that changes nothing."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("raw")
    rows = [json.dumps({"text": text(500, seed)}) for seed in range(40)]
    (home / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    good("prepare", home / "corpus.jsonl", "--out", home / "data", "--tokenizer", "byte256", "--val", "first:1")
    return home / "data"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two stages in bf16, imported; with windows of 64, as the published ones of 8,192 take long."""
    home = tmp_path_factory.mktemp("imported")
    config = CONFIGS["two stages"]
    source = public_hnet.write(home / "public", config, public_hnet.weights(config, torch.bfloat16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGET, "seq_len", 64)
        good("import", source, "--out", home / "model")
        yield home / "model"


# ---------------------------------------------------------------------------------------------- in and out


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden vectors in {FOLDER}")
@pytest.mark.parametrize("name", ["s4_one_stage", "s4_two_stage"])
def test_golden_vectors_by_import_of_a_public_file(tmp_path: Path, name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    numbers = load_file(FOLDER / f"{name}.safetensors")
    tensors = {key.removeprefix("param."): value for key, value in numbers.items() if key.startswith("param.")}
    good("import", public_hnet.write(tmp_path, golden["config"], tensors), "--out", tmp_path / "model")
    model = bytegolf.load(tmp_path / "model", precision="fp32")
    assert error(model.logits(numbers["ids"][:, :-1]), numbers["logits"]) < 1e-4
    module = model.module.train()
    out = module(numbers["ids"][:, :-1])
    for level, trace in enumerate(out.traces):
        there = trace.valid if trace.valid is not None else torch.ones_like(trace.boundary)
        assert error(trace.p[there].detach(), numbers[f"level{level}.boundary_prob"]) < 1e-4
        assert torch.equal(trace.boundary[there], numbers[f"level{level}.boundary_mask"].bool())
    losses = module.losses(out, numbers["ids"][:, 1:])
    assert float(losses.detach().mean()) == pytest.approx(golden["loss"], rel=1e-5)
    total = module.objective(out, losses)
    if golden["target_chunk_sizes"] in ([6.0], [3.0, 3.0]):  # as the paper's, which a public file does not say
        assert float(total.detach()) == pytest.approx(golden["total"], rel=1e-5)
        total.backward()
        from bytegolf.model.public_names import public_names

        for ours, there in public_names(model.config.model).items():
            gradient = module.get_parameter(ours).grad
            assert gradient is not None
            assert error(gradient, there.ours(numbers[f"grad.{there.name}"])) < 1e-4, ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_imported_is_exported_again_as_it_was(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    tensors = public_hnet.weights(config, dtype)
    source = public_hnet.write(tmp_path / "public", config, tensors)
    done = good("import", source, "--out", tmp_path / "model", "--json").json
    assert done["params"] == sum(tensor.numel() for tensor in tensors.values())
    assert done["dtypes"] == [str(dtype).removeprefix("torch.")]
    good("export", tmp_path / "model", "--format", "hnet", "--out", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert again[key].dtype == dtype
        assert torch.equal(again[key], tensor), key
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config
    ids = [[254, *SENTENCE.encode()]]
    direct, mine, back = (bytegolf.load(each, precision="fp32").logits(ids)
                          for each in (source, tmp_path / "model", tmp_path / "again"))  # fmt: skip
    assert torch.equal(direct, mine)
    assert torch.equal(direct, back)


def test_weights_stay_in_their_dtype_and_in_the_file(imported: Path) -> None:
    model = bytegolf.load(imported, precision="fp32")
    matrices = {p.dtype for p in model.module.parameters() if p.ndim == 2 and p.numel() > 1000}
    assert matrices == {torch.bfloat16}
    whole = bytegolf.load(imported, precision="fp32").module.float()
    ids = torch.tensor([[254, *SENTENCE.encode()]])
    assert error(model.module(ids).logits.detach(), whole(ids).logits.detach()) < 1e-5
    again = good("import", imported.parent / "public" / "model.pt", "--out", imported.parent / "again", "--json").json
    assert model.sha256 == again["sha256"], "the same weights give the same file"


def test_a_model_trained_here_is_the_same_after_export_and_import(data: Path, tmp_path: Path) -> None:
    tables = {
        "name": "toy",
        "about": "S4's options",
        "model": to_dict(from_public(CONFIGS["two stages"])),
        "train": {"seq_len": 64, "batch_tokens": 128, "max_steps": 3, "warmup_steps": 0, "precision": "fp32"},
        "data": {"tokenizer": "byte256"},
    }
    (tmp_path / "toy.toml").write_text(Config.from_tables(tables).to_toml())
    good("train", tmp_path / "toy.toml", "--data", data, "--out", tmp_path / "run")
    good("export", tmp_path / "run", "--format", "hnet", "--out", tmp_path / "public")
    good("import", tmp_path / "public", "--out", tmp_path / "model")
    from bytegolf.artifact.export import latest
    from bytegolf.artifact.loading import build

    saved = latest(tmp_path / "run")
    ids = torch.tensor([[254, *SENTENCE.encode()]])
    wanted = build(saved.config, saved.state, "the run").eval()(ids).logits
    assert torch.equal(bytegolf.load(tmp_path / "model", precision="fp32").module(ids).logits, wanted)


def test_training_begins_with_imported_weights(imported: Path, data: Path, tmp_path: Path) -> None:
    change = (*TINY, *STILL)
    good("train", "cpu-hnet-2stage", *change, f"train.init={imported}", "--data", data, "--out", tmp_path / "run")
    tuned, before = (bytegolf.load(each, precision="fp32") for each in (tmp_path / "run", imported))
    assert tuned.config.model == before.config.model
    assert np.abs(tuned.log_probs(SENTENCE) - before.log_probs(SENTENCE)).max() < 1e-3, "no learning rate, no change"


def test_training_begins_with_public_weights_from_the_hub(
    imported: Path, data: Path, tmp_path: Path, local_hub: Hub
) -> None:
    """As they are published; the run names the commit, and its own configuration trains again."""
    folder = imported.parent / "public"
    commit = local_hub.add("a/b", {path.name: path.read_bytes() for path in folder.iterdir()})
    change = (*TINY, *STILL)
    good("train", "cpu-hnet-2stage", *change, "train.init=hf:a/b", "--data", data, "--out", tmp_path / "run")
    tuned, before = (bytegolf.load(each, precision="fp32") for each in (tmp_path / "run", imported))
    assert np.abs(tuned.log_probs(SENTENCE) - before.log_probs(SENTENCE)).max() < 1e-3, "no learning rate, no change"
    assert tuned.config.train.init == f"hf:a/b@{commit}"
    good("train", tmp_path / "run" / "config.toml", "--out", tmp_path / "again")


@pytest.mark.parametrize("preset", ["cpu-hnet-1stage", "cpu-hnet-2stage", "hnet-2stage-L"])
def test_presets_over_raw_bytes_can_be_expressed(preset: str) -> None:
    """Their outer stacks have no heads to count, which the public layout asks for."""
    model = Config.load(preset).with_("data.tokenizer=byte256", "model.vocab_size=256").model
    back = from_public(public_config(model, {"kind": "byte", "vocab_size": 256}))
    mine, theirs = ({n: p.shape for n, p in outline(each).named_parameters()} for each in (model, back))
    assert mine == theirs


def test_released_configurations_have_the_published_numbers_of_parameters() -> None:
    published = {
        "hnet_1stage_L": 679_405_312,
        "hnet_1stage_XL": 1_270_833_920,
        "hnet_2stage_L": 874_315_264,
        "hnet_2stage_XL": 1_603_492_224,
        "hnet_2stage_XL_chinese": 1_755_285_888,
        "hnet_2stage_XL_code": 1_654_090_112,
    }
    assert {name: count_parameters(outline(from_public(config))) for name, config in RELEASED.items()} == published


# ---------------------------------------------------------------------------------------------- every verb


def test_every_verb_takes_an_imported_model(imported: Path, data: Path, tmp_path: Path) -> None:
    found = good("eval", imported, "--data", data, "--json").json
    assert 4 < found["bpb"] < 12
    for level in (0, 1):
        assert good("segment", imported, SENTENCE, "--level", level).out
    good("analyze", imported, "--data", data)
    good("sample", imported, "The ", "--bytes", 8)
    (tmp_path / "text").write_text(SENTENCE)
    good("compress", "-m", imported, tmp_path / "text", "-o", tmp_path / "packed")
    good("decompress", "-m", imported, tmp_path / "packed", "-o", tmp_path / "back")
    assert (tmp_path / "back").read_text() == SENTENCE


@pytest.mark.skipif("BYTEGOLF_SLOW_TESTS" not in os.environ, reason="half a minute: set BYTEGOLF_SLOW_TESTS=1")
def test_an_imported_model_is_verified(imported: Path, data: Path) -> None:
    assert good("verify", imported, "--data", data, "--json").json["passed"]


def test_quantised_exports_of_imported_weights(imported: Path, data: Path, tmp_path: Path) -> None:
    whole = good("eval", imported, "--data", data, "--json").json
    for bits, most in ((8, 0.02), (4, 0.5)):
        path = tmp_path / f"{bits}.bgolf"
        good("export", imported, f"export.bits={bits}", "--out", path)
        small = good("eval", path, "--data", data, "--json").json
        assert abs(small["bpb"] - whole["bpb"]) < most
        assert path.stat().st_size < (imported / "model.safetensors").stat().st_size
    assert "is weights and no run" in refused("export", imported)


def test_codes_stay_codes_when_an_artifact_is_read(
    imported: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights as dequantised, for every use: steps, scores, learning at test time, a start of training."""
    monkeypatch.setattr("bytegolf.artifact.quantize.SMALL_NUMEL", 1000)  # else all of so small a model is fp16
    path = tmp_path / "model.bgolf"
    good("export", imported, "export.bits=8", "--out", path)
    model = bytegolf.load(path, precision="fp32")
    blocks = {p.dtype for name, p in model.module.named_parameters() if ".blocks." in name and p.numel() > 1000}
    assert blocks == {torch.int8}
    numbers = read_artifact(path).state
    assert all(torch.equal(tensor, numbers[name]) for name, tensor in float_state(model.module).items())
    wide = bytegolf.load(path, precision="fp32")
    widen(wide.module)
    np.testing.assert_allclose(model.log_probs(SENTENCE), wide.log_probs(SENTENCE), atol=1e-4)
    assert model.score(SENTENCE).bpb == pytest.approx(wide.score(SENTENCE).bpb, abs=1e-5)
    assert model.decompress(model.compress(SENTENCE.encode())) == SENTENCE.encode()
    assert model.save(tmp_path / "same.bgolf").read_bytes() == path.read_bytes()
    for mode in ("lora", "sgd"):
        good("eval", path, "--data", data, "--limit", "300", "--ttt", mode, "--ttt-chunk", "64")
    good("train", "cpu-hnet-2stage", *TINY, *STILL, f"train.init={path}", "--data", data, "--out", tmp_path / "run")
    tuned = bytegolf.load(tmp_path / "run", precision="fp32")
    np.testing.assert_allclose(tuned.log_probs(SENTENCE), model.log_probs(SENTENCE), atol=1e-3)


# ---------------------------------------------------------------------------------------------- what does not fit


def changed(change: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config = public_hnet.public()
    tensors = public_hnet.weights(config)
    name = "backbone.encoder.layers.0.mixer.in_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["backbone.encoder.layers.7.mixer.D"] = torch.ones(2)
    elif change == "shape":
        tensors[name] = tensors[name][:-1]
    elif change == "integers":
        tensors[name] = tensors[name].long()
    elif change == "nan":
        tensors[name][3, 3] = torch.nan
    elif change == "other widths":
        config["d_model"] = [64, 128]
    elif change == "other layout":
        config["arch_layout"] = ["m2", ["T1"], "m1"]
    elif change == "billions of blocks":
        config["arch_layout"] = ["m1", ["T4000"], "m1"]
    elif change == "untied":
        del tensors["lm_head.weight"]
    elif change == "tied":
        config["tie_embeddings"] = True
    elif change == "no layout":
        del config["arch_layout"]
    elif change == "alphabet":
        config["vocab_size"] = 260
    elif change == "unknown key":
        config["ssm_cfg"]["ngroups"] = 8
    return config, tensors


WORDS = {
    "missing": "it lacks backbone.encoder.layers.0.mixer.in_proj.weight",
    "extra": "unknown to it, backbone.encoder.layers.7.mixer.D",
    "shape": "has the shape (289, 64), not (290, 64)",
    "integers": "is of torch.int64",
    "nan": "NaN",
    "other widths": "has the shape",
    "other layout": "it lacks backbone.encoder.layers.1",
    "billions of blocks": "more blocks than there are tensors",
    "untied": "it lacks lm_head.weight",
    "tied": "its lm_head.weight is not its embeddings.weight",
    "no layout": "has no arch_layout",
    "alphabet": "give 256",
    "unknown key": "ngroups",
}


@pytest.mark.parametrize("change", WORDS)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path: Path, change: str) -> None:
    config, tensors = changed(change)
    source = public_hnet.write(tmp_path / "public", config, tensors)
    said = refused("import", source, "--config", source.with_suffix(".json"), "--out", tmp_path / "model")
    assert WORDS[change] in said
    assert not (tmp_path / "model").exists()


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_hostile_files_missing_configurations_and_full_places(tmp_path: Path, imported: Path) -> None:
    config = public_hnet.public()
    tensors: dict[str, Any] = dict(public_hnet.weights(config))
    hostile = public_hnet.write(tmp_path / "hostile", config, tensors | {"x": Attack(tmp_path / "canary")})
    for verb in (["import", hostile, "--out", tmp_path / "model"], ["segment", hostile, "text"]):
        assert "nothing in it was executed" in refused(*verb)
    torch.save(tensors, tmp_path / "alone.pt")
    assert "name its JSON with --config" in refused("import", tmp_path / "alone.pt", "--out", tmp_path / "model")
    (tmp_path / "bad.json").write_text("{")
    wrong = refused("import", tmp_path / "alone.pt", "--config", tmp_path / "bad.json", "--out", tmp_path / "model")
    assert "not valid JSON" in wrong
    assert "no such file" in refused("import", tmp_path / "none.pt", "--out", tmp_path / "model").lower()
    assert "is there already" in refused("import", hostile.parent, "--out", imported)
    assert "load it as it is" in refused("import", imported, "--out", tmp_path / "model")
    artifact = hostile.parent / "model.bgolf"
    artifact.write_bytes(b"BYTEGOLF")
    assert "no .pt or .safetensors file" in refused("import", artifact, "--out", tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.pt", "bad.json", "hostile"]


@pytest.mark.parametrize(
    ("preset", "words"),
    [("cpu-demo", "byte260 tokens"), ("soft", "n-gram"), ("qk_norm", "qk_norm"), ("fixed", "router")],
)
def test_what_the_layout_cannot_express_is_refused_with_a_reason(preset: str, words: str) -> None:
    from bytegolf.errors import BytegolfError

    raw, shifted = ({"kind": "byte", "vocab_size": size, "name": f"byte{size}"} for size in (256, 260))
    if preset == "cpu-demo":
        model, tokenizer = Config.load("cpu-demo").model, shifted
    else:
        base = Config.from_tables(
            {
                "name": "toy",
                "about": "a test",
                "model": to_dict(from_public(CONFIGS["one stage"])),
                "train": {"seq_len": 64, "batch_tokens": 128, "max_steps": 3},
            }
        )
        change = {
            "soft": "model.soft.layers=1",
            "qk_norm": "model.network.main.qk_norm=true",
            "fixed": "model.network.router.cosine.strict=false",
        }[preset]
        model, tokenizer = base.with_(change).model, raw
    with pytest.raises(BytegolfError, match=f"cannot express this model: .*{words}"):
        public_config(model, tokenizer)


# ---------------------------------------------------------------------------------------------- the hub


def test_a_public_repository_is_loaded_in_one_step(local_hub: Hub, tmp_path: Path) -> None:
    config = CONFIGS["two stages"]
    source = public_hnet.write(tmp_path, config, public_hnet.weights(config, torch.bfloat16), "pytorch_model")
    files = {"pytorch_model.pt": source.read_bytes(), "README.md": b"hello" * 1000}
    commit = local_hub.add("lab/toy", {**files, "config.json": source.with_suffix(".json").read_bytes()})
    model = bytegolf.load("hf:lab/toy", precision="fp32")
    assert model.origin == f"hf:lab/toy@{commit}"
    assert "README.md" not in " ".join(asked for asked in local_hub.asked if "resolve" in asked)
    assert model.score(SENTENCE).bpb == bytegolf.load(source, precision="fp32").score(SENTENCE).bpb
    done = good("import", "hf:lab/toy", "--out", tmp_path / "model", "--json").json
    assert done["commit"] == commit
    good("segment", f"hf:lab/toy@{commit}", SENTENCE)
    local_hub.add("lab/bad", {"a.pt": b"1" * 3000, "b.pt": b"2" * 3000})
    assert "a.pt, b.pt, any of which" in refused("segment", "hf:lab/bad", SENTENCE)
    local_hub.add("lab/none", {"README.md": b"hello"})
    assert "holds no model" in refused("segment", "hf:lab/none", SENTENCE)


def test_safetensors_in_parts_are_one_model(tmp_path: Path) -> None:
    config = CONFIGS["one stage"]
    tensors = public_hnet.weights(config)
    names = sorted(tensors)
    for part, chosen in enumerate((names[:9], names[9:])):
        save_file({name: tensors[name] for name in chosen}, tmp_path / f"model-{part}.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = public_hnet.write(tmp_path / "whole", config, tensors)
    ids = [[254, *SENTENCE.encode()]]
    assert torch.equal(bytegolf.load(tmp_path).logits(ids), bytegolf.load(whole).logits(ids))
    save_file({names[0]: tensors[names[0]]}, tmp_path / "model-2.safetensors")
    assert "in two files" in refused("segment", tmp_path, SENTENCE)


def test_saving_as_weights_and_as_an_artifact(imported: Path, tmp_path: Path) -> None:
    model = bytegolf.load(imported, precision="fp32")
    found = bytegolf.load(model.save(tmp_path / "kept.safetensors"), precision="fp32")
    assert np.array_equal(found.log_probs(SENTENCE), model.log_probs(SENTENCE))
    packed = bytegolf.load(model.save(tmp_path / "kept.bgolf"), precision="fp32")
    assert packed.score(SENTENCE).bpb == pytest.approx(model.score(SENTENCE).bpb, abs=0.1)
