"""Studies as planned: what a file says, what identifies a run, and what wrong files are told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytegolf.config import Config, OptimConfig
from bytegolf.errors import BytegolfError
from bytegolf.tools.study.definition import BudgetConfig, Study, read_study
from bytegolf.tools.study.plan import Job, bytes_per_token, data_hash, definition_hash, jobs

HEAD = """
name = "s"
question = "?"
preset = "cpu-demo"
control = "{control}"
seeds = [1, 2]
data = "{data}"
budget.steps = 10
"""
PAIR = """
[variants.one]
[variants.two.overrides]
optim.muon_lr = 0.02
"""
BYTES = "datasets/fineweb10B_byte260"


def study(tmp_path: Path, data: Path, body: str = PAIR, control: str = "one", **swap: str) -> Study:
    """The study of ``body`` behind a head in which ``swap`` replaces lines by their key."""
    lines = HEAD.format(control=control, data=data).splitlines()
    lines = [swap.pop(line.split(" ")[0].replace(".", "_"), line) for line in lines]
    path = tmp_path / "s.toml"
    path.write_text("\n".join([*swap.values(), *lines]) + "\n" + body, encoding="utf-8")
    return read_study(path)


def refusal(tmp_path: Path, data: Path, body: str = PAIR, control: str = "one", **swap: str) -> str:
    """What a wrong study is told: one line that names the file."""
    with pytest.raises(BytegolfError) as caught:
        jobs(study(tmp_path, data, body, control, **swap))
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "s.toml"))
    assert "\n" not in said
    return said


def by_name(found: list[Job], seed: int = 1) -> dict[str, Job]:
    return {job.variant.name: job for job in found if job.seed == seed}


# ---------------------------------------------------------------------------------------------- what is run


def test_every_variant_with_every_seed(tiny_data: Path, tmp_path: Path) -> None:
    found = jobs(study(tmp_path, tiny_data))
    assert [(job.variant.name, job.seed) for job in found] == [("one", 1), ("two", 1), ("one", 2), ("two", 2)]
    assert [job.config.train.seed for job in found] == [1, 1, 2, 2]
    assert {job.config.train.max_steps for job in found} == {10}
    assert {job.config.train.max_seconds for job in found} == {0.0}
    assert [job.config.optim.muon_lr for job in found[:2]] == [Config.load("cpu-demo").optim.muon_lr, 0.02]
    assert len({job.folder for job in found}) == 4
    assert all(job.config.data.path == str(tiny_data) for job in found)


def test_only_some(tiny_data: Path, tmp_path: Path) -> None:
    read = study(tmp_path, tiny_data)
    assert [job.seed for job in jobs(read, ["two"])] == [1, 2]
    with pytest.raises(BytegolfError, match=r"no variant 'three': there are 'one', 'two'"):
        jobs(read, ["three"])


def test_a_grid_multiplies_the_variants(tiny_data: Path, tmp_path: Path) -> None:
    body = """
[grid]
"model.network.router.target" = [6, 9.5]
model.network.router.loss_weight = [0.03, 0.05]
[variants.a]
[variants.b]
overrides.model.network.router.target = 12
"""
    found = by_name(jobs(study(tmp_path, tiny_data, body, "a target=6 loss_weight=0.03")))
    assert list(found) == [f"{v} target={t} loss_weight={w}" for v in "ab" for t in ("6", "9.5") for w in (0.03, 0.05)]
    network = found["a target=9.5 loss_weight=0.05"].config.model.network
    assert (network.router.target, network.router.loss_weight) == (9.5, 0.05)  # type: ignore[union-attr]
    assert found["b target=6 loss_weight=0.03"].config.model.network.router.target == 12  # type: ignore[union-attr]


def test_axes_of_one_ending_are_told_apart(tiny_data: Path, tmp_path: Path) -> None:
    body = "[grid.model.network]\nencoder.layers = [0, 1]\nmain.layers = [2]\n"
    found = by_name(jobs(study(tmp_path, tiny_data, body, "encoder.layers=0 main.layers=2")))
    assert list(found) == ["encoder.layers=0 main.layers=2", "encoder.layers=1 main.layers=2"]


def test_a_budget_in_bytes_is_the_same_text_for_any_tokenizer(tiny_data: Path, tmp_path: Path) -> None:
    body = """
[variants.bytes]
[variants.subwords]
overrides.data.tokenizer = "sp400"
overrides.model.vocab_size = 400
"""
    read = study(tmp_path, tiny_data, body, "bytes", budget_steps="budget.bytes = 2_000_000", x="eval_limit = 3000")
    found = by_name(jobs(read))
    for job in found.values():
        each = bytes_per_token(tiny_data, job.config.data.tokenizer, "train")
        text = job.config.train.max_steps * job.config.train.batch_tokens * each
        assert text == pytest.approx(2e6, rel=0.01)
        assert job.config.eval.limit * bytes_per_token(tiny_data, job.config.data.tokenizer, "val") == pytest.approx(
            3000, rel=0.01
        )
    assert found["subwords"].config.train.max_steps < 0.6 * found["bytes"].config.train.max_steps


def test_seconds_on_the_processor(tiny_data: Path, tmp_path: Path) -> None:
    read = study(tmp_path, tiny_data, budget_steps='budget = {seconds = 5, clock = "processor"}')
    train = jobs(read)[0].config.train
    assert (train.max_seconds, train.max_steps, train.clock) == (5.0, 0, "processor")


def test_presets_beside_the_file_and_results_too(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(Path(__file__).parents[2] / "src/bytegolf/presets/cpu-gpt.toml", tmp_path / "models/flat.toml")
    read = study(tmp_path, tiny_data, PAIR.replace("[variants.one]", '[variants.one]\npreset = "models/flat.toml"'))
    assert by_name(jobs(read))["one"].config.name == "cpu-gpt"
    assert (read.folder, read.runs) == (tmp_path / "s", Path("runs/s"))


# ---------------------------------------------------------------------------------------------- identity


def hashed(*changes: str, budget: BudgetConfig | None = None, threads: int = 1, limit: int = 0) -> str:
    return definition_hash(Config.load("cpu-demo", changes), budget or BudgetConfig(steps=3), threads, limit)


@pytest.mark.parametrize(
    "change",
    ["optim.muon_lr=0.021", "model.network.main.layers=3", "train.seq_len=512", "data.tokenizer=x", "eval.stride=64"],
)
def test_what_changes_a_run_changes_its_hash(change: str) -> None:
    assert hashed(change) != hashed()


@pytest.mark.parametrize(
    "change",
    ["data.path=x", "train.seed=3", "train.log_every=3", "train.checkpoint_every=9", "name=x", "about=x"],
)
def test_what_changes_nothing_does_not(change: str) -> None:
    assert hashed(change) == hashed()


def test_budget_threads_and_subset_are_hashed() -> None:
    others = [
        hashed(budget=BudgetConfig(steps=4)),
        hashed(budget=BudgetConfig(bytes=3)),
        hashed(threads=2),
        hashed(limit=9),
    ]
    assert len({hashed(), *others}) == 5


@given(st.sampled_from([field.name for field in dataclasses.fields(OptimConfig)]))
def test_a_field_at_its_default_is_as_one_that_is_not_there(name: str) -> None:
    """So that a new field with a default leaves all earlier results valid."""
    default = {field.name: field.default for field in dataclasses.fields(OptimConfig)}[name]
    value = f"optim.{name}={json.dumps(default)}"
    assert hashed(value) == hashed(value, value)
    if name != "muon_lr":  # which the preset sets
        assert hashed(value) == hashed()


def test_other_data_are_other_runs(tiny_data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_data, tmp_path / "copy")
    assert data_hash(copy, "byte260") == data_hash(tiny_data, "byte260") != data_hash(tiny_data, "sp400")
    manifest = json.loads((copy / "manifest.json").read_text())
    before = data_hash(copy, "byte260")
    manifest["datasets"][0]["sha256"]["fineweb_val_000000.bin"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert data_hash(copy, "byte260") != before
    (copy / "manifest.json").unlink()  # a bare folder of shards: the files themselves
    bare = data_hash(copy, "byte260")
    shard = copy / BYTES / "fineweb_val_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\7\0")
    assert data_hash(copy, "byte260") != bare


def test_without_data_there_is_something_to_look_up(tiny_data: Path, tmp_path: Path) -> None:
    here = jobs(study(tmp_path, tiny_data))
    away = jobs(study(tmp_path, tmp_path / "nowhere"), without_data=True)
    assert [job.identity.definition for job in away] == [job.identity.definition for job in here]
    assert {job.identity.data for job in away} == {""}
    assert "bytegolf prepare" in refusal(tmp_path, tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------- wrong files


@pytest.mark.parametrize(
    ("swap", "body", "words"),
    [
        ({"question": ""}, PAIR, "configuration key question is missing: the question, in one line"),
        ({"seeds": "seed = [1]"}, PAIR, "unknown configuration key seed: did you mean seeds?"),
        ({"seeds": "seeds = []"}, PAIR, "seeds is []: give one or more"),
        ({"seeds": "seeds = [1, 1]"}, PAIR, "none of them twice"),
        ({"seeds": 'seeds = ["a"]'}, PAIR, "seeds[0] is 'a', a str: give a value of type int"),
        ({"seeds": "seeds = 3"}, PAIR, "seeds is 3: give a list"),
        ({"seeds": "seeds = [-1]"}, PAIR, "seeds[0] is -1: give a number of at least 0"),
        ({"name": 'name = "../x"'}, PAIR, "name is '../x': it becomes a folder's name"),
        (
            {"budget_steps": "budget.step = 3"},
            PAIR,
            "unknown configuration key budget.step: did you mean budget.steps?",
        ),
        ({"budget_steps": "budget = {steps = 3, bytes = 2}"}, PAIR, "budget: a budget is one of seconds, steps and"),
        ({"budget_steps": "budget.steps = -3"}, PAIR, "budget.steps is -3"),
        (
            {"preset": 'preset = "cpu-dem"'},
            PAIR,
            "variant 'one': no preset is called 'cpu-dem': did you mean cpu-demo?",
        ),
        ({}, PAIR, "control names 'three', which is no variant: there are 'one', 'two'"),
        ({"x": 'compare = [["one", "x"]]'}, PAIR, "compare names 'x', which is no variant"),
        ({"x": 'compare = [["one"]]'}, PAIR, "give pairs of names"),
        ({"x": "threads = 0"}, PAIR, "threads is 0: give a number of at least 1"),
        ({"x": "overrides = 3"}, PAIR, "overrides is 3: give a table of keys"),
        ({"x": "overrides.train.seed = 3"}, PAIR, "overrides sets train.seed, which is the same for all runs"),
        ({}, "[variants.one]\noverrides.train.max_steps = 3", "variants.one.overrides sets train.max_steps"),
        ({}, "[variants.one]\noverride.x = 3", "unknown configuration key variants.one.override: did you mean"),
        ({}, "[variants.one]\noverrides.optim.mu_lr = 3", "variant 'one': unknown configuration key optim.mu_lr"),
        ({}, "[variants.one]\noverrides.optim.muon_lr = -3", "variant 'one': optim.muon_lr is -3"),
        ({}, "[grid]\noptim.muon_lr = 3", "grid.optim.muon_lr is 3: give a list of values"),
        ({}, "[grid]\noptim.muon_lr = [0.1, 0.1]", "two variants are called 'muon_lr=0.1'"),
        ({}, "", "there is nothing to compare"),
        ({}, "[variants.one", "is not valid TOML"),
        ({}, '[variants.one]\noverrides.data.tokenizer = "sp9"', "holds no data for the tokenizer 'sp9'"),
    ],
)
def test_wrong_files_are_told_what_is_wrong(
    tiny_data: Path, tmp_path: Path, swap: dict[str, str], body: str, words: str
) -> None:
    control = "muon_lr=0.1" if "0.1, 0.1" in body else "three" if "'three'" in words else "one"
    assert words in refusal(tmp_path, tiny_data, body, control, **swap)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BytegolfError, match=r"cannot read the study .*nowhere\.toml: no such file"):
        read_study(tmp_path / "nowhere.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff")
    with pytest.raises(BytegolfError, match="is not UTF-8"):
        read_study(tmp_path / "x.toml")


def test_the_studies_that_come_with_the_project_can_be_planned() -> None:
    """Each study file resolves to valid configurations, whatever data are at hand."""
    files = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))
    for file in files:
        found = jobs(read_study(file), without_data=True)
        # steps, or seconds that do not depend on what else the machine does
        assert all(job.config.train.clock == "processor" or not job.config.train.max_seconds for job in found)
        assert len({job.seed for job in found}) >= 3
        assert len({job.identity.definition for job in found}) == len({job.variant.name for job in found}), file
