"""Studies as planned: what a file says, what identifies a run, and what wrong files are told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from commands import good

from bytegolf.config import Config, HNetConfig, OptimConfig
from bytegolf.data.dataset import data_hash
from bytegolf.errors import BytegolfError
from bytegolf.tools.study.definition import BudgetConfig, Job, Study, bytes_per_token, definition_hash, jobs, read_study
from bytegolf.tools.study.results import latest, read_rows

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


def test_variants_are_scored_on_one_text(tmp_path: Path, tiny_data: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"some other text, {name}\n" * 300)
    good("prepare", tmp_path / "a.txt", tmp_path / "b.txt", "--val", "first:1", "--out", tmp_path / "other")
    body = f'[variants.one]\n[variants.two]\ndata = "{tmp_path / "other"}"\n'
    with pytest.raises(BytegolfError, match="different validation texts"):
        jobs(study(tmp_path, tiny_data, body))


def by_name(found: list[Job], seed: int = 1) -> dict[str, Job]:
    return {job.variant.name: job for job in found if job.seed == seed}


def test_every_variant_with_every_seed(tiny_data: Path, tmp_path: Path) -> None:
    read = study(tmp_path, tiny_data)
    found = jobs(read)
    assert [(job.variant.name, job.seed) for job in found] == [("one", 1), ("two", 1), ("one", 2), ("two", 2)]
    trains = [job.config.train for job in found]
    assert [(train.seed, train.max_steps, train.max_seconds) for train in trains] == [
        (s, 10, 0.0) for s in (1, 1, 2, 2)
    ]
    assert [job.config.optim.muon_lr for job in found[:2]] == [Config.load("cpu-demo").optim.muon_lr, 0.02]
    assert len({job.folder for job in found}) == 4
    assert all(job.config.data.path == str(tiny_data) for job in found)
    assert [job.seed for job in jobs(read, ["two"])] == [1, 2]
    with pytest.raises(BytegolfError, match=r"'three'.*'one', 'two'"):
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
    networks = [found[name].config.model.network for name in list(found)[3:5]]
    routers = [network.router for network in networks if isinstance(network, HNetConfig)]
    assert [(router.target, router.loss_weight) for router in routers] == [(9.5, 0.05), (12, 0.03)]
    body = "[grid.model.network]\nencoder.layers = [0, 1]\nmain.layers = [2]\n"  # axes of one ending are told apart
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
        trained, scored = (bytes_per_token(tiny_data, job.config.data.tokenizer, split) for split in ("train", "val"))
        assert job.config.train.max_steps * job.config.train.batch_tokens * trained == pytest.approx(2e6, rel=0.01)
        assert job.config.eval.limit * scored == pytest.approx(3000, rel=0.01)
    assert found["subwords"].config.train.max_steps < 0.6 * found["bytes"].config.train.max_steps


def test_seconds_on_the_processor_and_a_preset_beside_the_file(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(Path(__file__).parents[2] / "src/bytegolf/presets/cpu-gpt.toml", tmp_path / "models/flat.toml")
    body = PAIR.replace("[variants.one]", '[variants.one]\npreset = "models/flat.toml"')
    read = study(tmp_path, tiny_data, body, budget_steps='budget = {seconds = 5, clock = "processor"}')
    found = by_name(jobs(read))["one"].config
    assert (found.train.max_seconds, found.train.max_steps, found.train.clock) == (5.0, 0, "processor")
    assert found.name == "cpu-gpt"
    assert (read.folder, read.runs) == (tmp_path / "s", Path("runs/s"))


# ---------------------------------------------------------------------------------------------- identity


def hashed(*changes: str, budget: BudgetConfig | None = None, threads: int = 1, limit: int = 0) -> str:
    return definition_hash(Config.load("cpu-demo", changes), budget or BudgetConfig(steps=3), threads, limit)


def test_a_run_is_known_by_what_decides_its_outcome() -> None:
    decide = [
        "optim.muon_lr=0.021",
        "model.network.main.layers=3",
        "train.seq_len=512",
        "data.tokenizer=x",
        "eval.stride=64",
    ]
    do_not = ["data.path=x", "train.seed=3", "train.log_every=3", "train.checkpoint_every=9", "name=x", "about=x"]
    budgets = [
        hashed(budget=BudgetConfig(steps=4)),
        hashed(budget=BudgetConfig(bytes=3)),
        hashed(threads=2),
        hashed(limit=9),
    ]
    others = [*map(hashed, decide), *budgets]
    assert len({hashed(), *others}) == 1 + len(others)
    assert {hashed(change) for change in do_not} == {hashed()}


def test_a_field_at_its_default_is_as_one_that_is_not_there() -> None:
    """So that a new field with a default leaves all earlier results valid."""
    for field in dataclasses.fields(OptimConfig):
        value = f"optim.{field.name}={json.dumps(field.default)}"
        assert hashed(value) == hashed(value, value)
        if field.name != "muon_lr":  # which the preset sets
            assert hashed(value) == hashed()


def test_other_data_are_other_runs(tiny_data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_data, tmp_path / "copy")
    before = data_hash(copy, "byte260")
    assert before == data_hash(tiny_data, "byte260") != data_hash(tiny_data, "sp400")
    manifest = json.loads((copy / "manifest.json").read_text())
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
    assert [job.identity for job in away] == [job.identity._replace(data="") for job in here]
    with pytest.raises(BytegolfError, match="bytegolf prepare"):
        jobs(study(tmp_path, tmp_path / "nowhere"))


# ---------------------------------------------------------------------------------------------- wrong files

WRONG: list[tuple[dict[str, str], str, str]] = [
    ({"question": ""}, PAIR, "question is missing"),
    ({"seeds": "seed = [1]"}, PAIR, "did you mean seeds"),
    ({"seeds": "seeds = []"}, PAIR, "seeds is []"),
    ({"seeds": "seeds = [1, 1]"}, PAIR, "twice"),
    ({"seeds": 'seeds = ["a"]'}, PAIR, "seeds[0] is 'a'"),
    ({"seeds": "seeds = 3"}, PAIR, "seeds is 3"),
    ({"seeds": "seeds = [-1]"}, PAIR, "seeds[0] is -1"),
    ({"name": 'name = "../x"'}, PAIR, "name is '../x'"),
    ({"budget_steps": "budget.step = 3"}, PAIR, "did you mean budget.steps"),
    ({"budget_steps": "budget = {steps = 3, bytes = 2}"}, PAIR, "one of seconds, steps and"),
    ({"budget_steps": "budget.steps = -3"}, PAIR, "budget.steps is -3"),
    ({"preset": 'preset = "cpu-dem"'}, PAIR, "did you mean cpu-demo"),
    ({"control": "three"}, PAIR, "control names 'three'"),
    ({"x": 'compare = [["one", "x"]]'}, PAIR, "compare names 'x'"),
    ({"x": 'compare = [["one"]]'}, PAIR, "pairs of names"),
    ({"x": "threads = 0"}, PAIR, "threads is 0"),
    ({"x": "overrides = 3"}, PAIR, "overrides is 3"),
    ({"x": "overrides.train.seed = 3"}, PAIR, "overrides sets train.seed"),
    ({}, "[variants.one]\noverrides.train.max_steps = 3", "variants.one.overrides sets train.max_steps"),
    ({}, "[variants.one]\noverride.x = 3", "variants.one.override: did you mean"),
    ({}, "[variants.one]\noverrides.optim.mu_lr = 3", "optim.mu_lr"),
    ({}, "[variants.one]\noverrides.optim.muon_lr = -3", "variant 'one': optim.muon_lr is -3"),
    ({}, "[grid]\noptim.muon_lr = 3", "grid.optim.muon_lr is 3"),
    ({"control": "muon_lr=0.1"}, "[grid]\noptim.muon_lr = [0.1, 0.1]", "two variants are called"),
    ({}, "", "nothing to compare"),
    ({}, "[variants.one", "not valid TOML"),
    ({}, '[variants.one]\noverrides.data.tokenizer = "sp9"', "no data for the tokenizer 'sp9'"),
]


def test_wrong_files_are_told_what_is_wrong(tiny_data: Path, tmp_path: Path) -> None:
    """In one line that names the file."""
    for swap, body, words in WRONG:
        with pytest.raises(BytegolfError) as caught:
            jobs(study(tmp_path, tiny_data, body, **dict(swap)))
        said = str(caught.value)
        assert words in said
        assert said.startswith(str(tmp_path / "s.toml"))
        assert "\n" not in said
    with pytest.raises(BytegolfError, match=r"nowhere\.toml: no such file"):
        read_study(tmp_path / "nowhere.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff")
    with pytest.raises(BytegolfError, match="UTF-8"):
        read_study(tmp_path / "x.toml")


def test_the_studies_that_come_with_the_project_can_be_planned_and_have_their_results() -> None:
    """Each study file resolves to valid configurations, whatever data are at hand, and most runs have results."""
    files = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))
    assert files
    for file in files:
        read = read_study(file)
        found = jobs(read, without_data=True)
        # steps, or seconds that do not depend on what else the machine does
        assert all(job.config.train.clock == "processor" or not job.config.train.max_seconds for job in found)
        assert len({job.seed for job in found}) >= 3
        assert len({job.identity.definition for job in found}) == len({job.variant.name for job in found}), file
        if (read.folder / "results.jsonl").exists():
            assert len(latest(read_rows(read), found)) >= len(found) / 2, f"{file}: its results are of other runs"
