"""Configurations: overrides, unions, ranges, and errors that name the dotted key."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bytegolf.config import (
    Config,
    HNetConfig,
    ModelConfig,
    RouterConfig,
    StackConfig,
    TrainConfig,
    flatten,
    from_dict,
    levels,
    outer_dim,
    preset_chain,
    preset_names,
    to_dict,
)
from bytegolf.config.reading import DEPTH, doc
from bytegolf.errors import BytegolfError


def error(*overrides: str, source: str | Path = "cpu-demo") -> str:
    """What ``Config.load`` says against these overrides."""
    with pytest.raises(BytegolfError) as caught:
        Config.load(source, overrides)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.muon_lr=0.5", 0.5),
        ("optim.muon_lr=1", 1.0),
        ("train.max_steps=7", 7),
        ("train.max_steps=1_000", 1000),
        ("train.precision=fp32", "fp32"),
        ('train.precision="fp32"', "fp32"),
        ("data.path=/a b/c=d", "/a b/c=d"),
        ("data.path=", ""),
        ("model.reset_at_bos=true", True),
        ("eval.stride=64", 64),  # a section that the preset does not have
        ("model.network.main.layers=9", 9),
        ("about=x\nname = 1", "x\nname = 1"),  # no way to slip a second key in
    ],
)
def test_an_override_sets_its_key(override: str, value: object) -> None:
    found: object = Config.load("cpu-demo", [override])
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins_and_others_stay() -> None:
    before, after = Config.load("cpu-demo"), Config.load("cpu-demo", ["train.seed=1", "train.seed=2"])
    assert after == dataclasses.replace(before, train=dataclasses.replace(before.train, seed=2))


def test_a_changed_configuration_is_what_the_same_overrides_load() -> None:
    before = Config.load("cpu-demo")
    wanted = Config.load("cpu-demo", ["train.seed=2", "data.path=here", "optim.muon_lr=1"])
    assert before.with_("train.seed=2", "data.path=here", "optim.muon_lr=1") == wanted
    assert before.with_({"train.seed": 2, "data.path": Path("here")}, "optim.muon_lr=1") == wanted
    assert Config.load("cpu-demo", {"train.seed": 2, "data.path": "here", "optim.muon_lr": 1}) == wanted
    stage = StackConfig(1, 8, 2, 1)
    assert before.with_({"model.network": stage}).model.network == stage
    assert before.with_() == before == Config.load("cpu-demo")
    with pytest.raises(BytegolfError, match=r"train\.seed is 'two', a str"):
        before.with_({"train.seed": "two"})


def test_an_override_can_replace_a_whole_network() -> None:
    config = Config.load("cpu-demo", ["model.network={layers=1, dim=8, heads=2, kv_heads=1}"])
    assert config.model.network == StackConfig(1, 8, 2, 1)


@pytest.mark.parametrize("override", ["train.seed", "=3", "train"])
def test_what_is_no_override_is_refused(override: str) -> None:
    assert "section.key=value" in error(override)


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.sed=1", "train.sed: did you mean train.seed?"),
        ("trian.seed=1", "trian: did you mean train?"),
        ("model.network.encoder.dims=8", "model.network.encoder.dims: did you mean model.network.encoder.dim?"),
        ("optim.zzz=1", "optim.zzz: known keys: algorithm, muon_lr,"),
        ("train.seq_len.x=1", "train.seq_len.x: seq_len is a value"),
        ("train.seed=1.5", "train.seed is 1.5, a float: give a value of type int"),
        ("train.seed=true", "train.seed is True, a bool: give a value of type int"),
        ("train.seed=abc", "train.seed is 'abc', a str: give a value of type int"),
        ("optim.muon_lr=fast", "optim.muon_lr is 'fast', a str: give a value of type float"),
        ("optim.muon_lr=true", "optim.muon_lr is True, a bool: give a value of type float"),
        ("optim.muon_lr=[1]", "optim.muon_lr is [1], a list"),
        ("model.reset_at_bos=1", "model.reset_at_bos is 1, a int: give a value of type bool"),
        ("name=3", "name is 3"),
        ("train.precision=fp8", "train.precision is 'fp8': choose one of 'auto', 'bf16', 'fp32'"),
        ("train=3", "train must be a table"),
        ("model.network=3", "model.network must be a table"),
        ("model.network={layers=1}", "model.network.dim is missing: model width"),
        (
            "model.network.main.router={target=2}",
            "unknown configuration key model.network.main.layers: known keys: encoder",
        ),
        ("model.network={encoder={layers=1, dim=8, heads=2, kv_heads=1}}", "model.network.router is missing"),
    ],
)
def test_errors_name_the_dotted_key(override: str, said: str) -> None:
    assert said in error(override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.seed=-1", "train.seed is -1: give a number of at least 0"),
        ("optim.muon_lr=nan", "optim.muon_lr is nan"),
        ("optim.muon_lr=inf", "optim.muon_lr is inf"),
        ("model.network.encoder.qk_gain=inf", "model.network.encoder.qk_gain is inf: give a finite number"),
        ("train.decay_fraction=1.5", "train.decay_fraction is 1.5: give a number of at least 0 and up to 1"),
        ("train.ema_decay=1", "train.ema_decay is 1.0: give a number of at least 0 and below 1"),
        ("train.log_every=0", "train.log_every is 0"),
        ("train.keep_checkpoints=0", "train.keep_checkpoints is 0"),
        ("eval.stride=-1", "eval.stride is -1"),
        ("eval.batch=-1", "eval.batch is -1"),
        ("eval.capacity_divisor=0.5", "eval: capacity_divisor is 0.5: give 1 or more, or 0 for as trained"),
        ("eval.capacity=all", "eval.capacity is 'all': choose one of '', 'exact', 'bucketed', 'fixed'"),
        ("model.network.router.capacity_divisor=0.5", "model.network.router.capacity_divisor is 0.5"),
        ("model.network.router.capacity_buckets=0", "model.network.router.capacity_buckets is 0"),
        ("model.vocab_size=70000", "model.vocab_size is 70000"),
        ("model.network.router.target=1", "model.network.router.target is 1.0: give a number above 1"),
        ("model.network.router.grad_scale=0", "model.network.router.grad_scale is 0.0"),
        ("model.network.main.layers=-1", "model.network.main.layers is -1"),
        ("model.network.main.heads=0", "model.network.main: heads is 0"),
        ("model.network.main.heads=3", "model.network.main: dim 256 does not split into 3 heads"),
        ("model.network.main.heads=256", "model.network.main: dim 256 does not split into 256 heads of even width"),
        ("model.network.main.kv_heads=3", "model.network.main: 4 heads do not share 3 kv_heads"),
        ("model.network.decoder.dim=128", "model.network: encoder.dim 256 and decoder.dim 128 differ"),
        ("model.network.main.dim=128", "model.network: main.dim 128 is below encoder.dim 256"),
        ("train.batch_tokens=1000", "train: batch_tokens 1000 is no multiple of seq_len"),
        ("train.max_seconds=0", "train: training has no end"),
    ],
)
def test_values_out_of_range_are_refused(override: str, said: str) -> None:
    assert said in error(override)


@pytest.mark.parametrize("key", ["model.network.router.capacity", "eval.capacity"])
def test_a_fixed_capacity_is_refused_where_documents_must_not_see_each_other(key: str) -> None:
    said = error("model.reset_at_bos=true", f"{key}=fixed")
    assert f"{key.removeprefix('model.network.')} is 'fixed' and reset_at_bos is on" in said
    Config.load("cpu-demo", ["model.reset_at_bos=true", f"{key}=bucketed"])
    Config.load("cpu-demo", [f"{key}=fixed"])


def test_a_fixed_capacity_is_refused_within_another() -> None:
    inner, outer = "model.network.main.router.capacity=fixed", "model.network.router.capacity=fixed"
    assert "model.network: main.router.capacity is 'fixed' inside a level of 'exact'" in error(
        inner, source="hnet-2stage"
    )
    Config.load("hnet-2stage", [inner, outer])
    Config.load("hnet-2stage", [outer])


def test_ranges_hold_without_a_file_too() -> None:
    with pytest.raises(BytegolfError, match="layers is -1"):
        StackConfig(-1, 8, 2, 1)
    with pytest.raises(BytegolfError, match="no end"):
        TrainConfig(seq_len=8, batch_tokens=8)


def test_every_error_is_one_line() -> None:
    assert "\n" not in error("train.seed=1.5", source="cpu-gpt")
    assert "\n" not in error("nothing")


# ---------------------------------------------------------------------------------------------- sources


def test_an_unknown_preset_gets_a_suggestion_or_the_list() -> None:
    assert "did you mean cpu-demo?" in error(source="cpu-dem")
    assert all(name in error(source="zzzzzz") for name in preset_names())


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    assert f"cannot read the configuration {file}: no such file" in error(source=file)
    file.write_text("name = \n")
    assert f"{file} is not valid TOML" in error(source=file)
    assert "line 1" in error(source=file)
    file.write_bytes(b'name = "\xff"\n')
    assert f"{file} is not UTF-8 (byte 8)" in error(source=file)
    file.write_text('name = "x"\n')
    assert "configuration key about is missing" in error(source=file)
    assert f"{tmp_path} is a folder" in error(source=tmp_path)


@pytest.mark.parametrize("name", preset_names())
def test_a_saved_configuration_loads_as_it_was(name: str, tmp_path: Path) -> None:
    config = Config.load(name, ["train.ema_decay=0.5", 'data.path="a \\"quoted\\" höhle"'])
    file = tmp_path / "saved.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    assert Config.load(file) == config
    assert Config.load(file).to_toml() == config.to_toml(), "a default of 0 for a float is another text when read back"
    assert from_dict(Config, to_dict(config)) == config


def test_the_union_of_networks_is_told_apart_at_every_depth() -> None:
    stage = StackConfig(1, 8, 2, 1)
    inner = HNetConfig(stage, RouterConfig(2.0), stage, stage)
    for network in (stage, inner, HNetConfig(stage, RouterConfig(3.0), inner, stage)):
        model = ModelConfig(network)
        assert from_dict(ModelConfig, to_dict(model)) == model
        assert outer_dim(network) == 8
    assert [level.router.target for level in levels(HNetConfig(stage, RouterConfig(3.0), inner, stage))] == [3.0, 2.0]
    assert levels(stage) == []


# ---------------------------------------------------------------------------------------------- one extends another


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_extends_a_preset_key_by_key(tmp_path: Path) -> None:
    text = 'extends = "cpu-demo"\nname = "mine"\n[train]\nseed = 3\n[model.network.main]\nlayers = 1\n'
    file = write(tmp_path / "mine.toml", text)
    changes = ["name=mine", "train.seed=3", "model.network.main.layers=1"]
    assert Config.load(file) == Config.load("cpu-demo", changes)
    assert Config.load(file, ["train.seed=4"]).train.seed == 4, "overrides come last"


def test_a_file_extends_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "base.toml", 'extends = "cpu-gpt"\n[train]\nseed = 1\nlog_every = 7\n')
    middle = write(tmp_path / "inner" / "middle.toml", 'extends = "../base.toml"\n[train]\nseed = 2\n')
    top = write(tmp_path / "top.toml", 'extends = "inner/middle.toml"\nname = "top"\n')
    monkeypatch.chdir(tmp_path / "inner")
    assert Config.load(top) == Config.load("cpu-gpt", ["name=top", "train.seed=2", "train.log_every=7"])
    assert preset_chain("middle.toml") == ["middle.toml", "../base.toml", "cpu-gpt"]
    assert Config.load(middle).name == "cpu-gpt"


def test_what_cannot_be_extended_is_said_in_a_sentence(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    write(one, 'extends = "two.toml"\n')
    write(two, 'extends = "one.toml"\n')
    assert error(source=one) == f"{two} extends {one}, which extends it: take one `extends` out"
    write(one, 'extends = "one.toml"\n')
    assert error(source=one) == f"{one} extends {one}, which extends it: take one `extends` out"
    write(one, "extends = 3\n")
    assert error(source=one) == f"extends is 3 in {one}: give the name of one preset or TOML file"
    write(one, 'extends = "cpu-dem"\n')
    assert "did you mean cpu-demo?" in error(source=one)
    write(one, 'extends = "gone.toml"\n')
    assert f"cannot read the configuration {tmp_path / 'gone.toml'}: no such file" in error(source=one)
    for number in range(DEPTH):
        write(tmp_path / f"{number}.toml", f'extends = "{number + 1}.toml"\n')
    write(tmp_path / f"{DEPTH}.toml", 'extends = "cpu-demo"\n')
    assert f"extends more than {DEPTH - 1} others" in error(source=tmp_path / "0.toml")
    assert Config.load(tmp_path / "2.toml") == Config.load("cpu-demo")


# ---------------------------------------------------------------------------------------------- lists and tables


@dataclasses.dataclass(frozen=True)
class Parts:
    """A configuration with every kind of container."""

    numbers: tuple[int, ...] = doc("numbers")
    pairs: tuple[tuple[str, ...], ...] = doc("pairs", ())
    named: dict[str, float] = doc("numbers by name", {})
    free: dict[str, Any] = doc("anything by name", {})


def test_lists_and_tables() -> None:
    read = from_dict(Parts, {"numbers": [1, 2], "pairs": [["a"], []], "named": {"x": 1}, "free": {"y": [None]}})
    assert read == Parts((1, 2), (("a",), ()), {"x": 1.0}, {"y": [None]})
    first, second = Parts(()), Parts(())
    assert first.named == {}
    assert first.named is not second.named, "a default belongs to one configuration"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "configuration key numbers is missing: numbers"),
        ({"numbers": 3}, "numbers is 3: give a list"),
        ({"numbers": [1, "2"]}, "numbers[1] is '2', a str: give a value of type int"),
        ({"numbers": [], "pairs": [["a", 3]]}, "pairs[0][1] is 3, a int: give a value of type str"),
        ({"numbers": [], "named": [1]}, "named is [1]: give a table of keys"),
        ({"numbers": [], "named": {"x": "1"}}, "named.x is '1', a str: give a value of type float"),
    ],
)
def test_wrong_lists_and_tables(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(BytegolfError) as caught:
        from_dict(Parts, raw)
    assert str(caught.value) == said


def test_nested_tables_are_dotted_keys() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2]}
