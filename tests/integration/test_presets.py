"""The presets that come with the package: complete, commented, of the published sizes, and causal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest
import torch
from commands import TinyRun, good, refused, stages
from conftest import scatter

from bytegolf.artifact.quantize import SMALL_NUMEL
from bytegolf.cli.preset_list import SIZES, presets, shape, sizes
from bytegolf.config import Config, flatten, levels, preset_chain, preset_names, to_dict
from bytegolf.model.lm import LanguageModel, count_parameters, outline
from bytegolf.ops.attention import DENSE_LENGTH

PARAMETERS = {
    "baseline-sp1024": 17_059_912,  # S0, published
    "cpu-30min": 16_753_964,
    "cpu-demo": 11_921_940,
    "cpu-gpt": 10_194_712,
    "cpu-hnet-1stage": 1_662_616,
    "cpu-hnet-2stage": 2_040_344,
    "cpu-soft": 1_123_025,
    "cpu-soft-sp1024": 1_269_713,
    "cpu-study1": 4_402_212,
    "cpu-study2": 5_781_808,
    "hnet-100m": 99_765_120,  # S4's shape, as another public checkpoint has it: "about 99.8 M"
    "hnet-1stage-L": 679_405_312,  # S4, published, as the next three
    "hnet-1stage-XL": 1_270_833_920,
    "hnet-2stage": 5_414_118,
    "hnet-2stage-L": 874_315_264,
    "hnet-2stage-XL": 1_603_492_224,
    "soft-sp1024": 17_059_912 + 263_681,  # S1, published: "about 263 K" on top of S0
    "soft-wide": 17_059_912 + 525_313,
    "study1-byte": 17_455_176,  # S2, published
    "study1-sp1024": 17_846_344,  # S2, published
    "study2-byte": 22_966_880,  # S3, published
    "study2-sp1024": 21_520_472,  # S3, published: "21.5M", with 11 blocks
}
FULL_SCALE = {
    "baseline-sp1024": ("10min", "4h"),
    "soft-sp1024": ("10min",),
    "study1-byte": ("10min", "4h"),
    "study1-sp1024": ("10min", "4h"),
    "study2-byte": ("10min", "4h"),
    "study2-sp1024": ("10min", "4h"),
}
"""At the published budgets."""
SECONDS = {"10min": 600.0, "4h": 14_400.0}
AT_SCALE = {f"{name}-{budget}": name for name, budgets in FULL_SCALE.items() for budget in budgets}
PARAMETERS |= {name: PARAMETERS[base] for name, base in AT_SCALE.items()}
PARAMETERS |= {f"{name}-mix": PARAMETERS[name] for name in ("cpu-demo", "cpu-30min")}
ROOTS = [name for name in sorted(PARAMETERS) if len(preset_chain(name)) == 1]
"""Those that extend no other: the others have their kind of model."""
every_preset = pytest.mark.parametrize("name", sorted(PARAMETERS))
every_root = pytest.mark.parametrize("name", ROOTS)


def source(name: str) -> str:
    return (resources.files("bytegolf") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def shrunken(name: str) -> Config:
    """The preset with an eighth of its widths and windows: the same heads, groups, layers and levels; small tables, and
    one block of each part of a layout.
    """
    changes = []
    for path, stage in stages(Config.load(name)):
        changes += [f"{path}.dim={stage.dim // 8}", f"{path}.window={stage.window // 8}"]
        if stage.layout:
            layout = re.sub(r"\d+", "1", stage.layout)
            changes += [f"{path}.layout={layout}", f"{path}.mlp_hidden={stage.mlp_hidden // 8}"]
            changes.append(f"{path}.rotary_dim={stage.rotary_dim // 8}")
        if "m" in stage.layout:
            changes.append(f"{path}.options={{d_state = 8, headdim = 8, chunk_size = 16}}")
    if Config.load(name).model.ngrams.longest > 1:
        changes.append("model.ngrams.bits=8")
    return Config.load(name, changes)


def tiny_model(name: str, precision: torch.dtype = torch.float32) -> LanguageModel:
    """The shrunken preset, away from the special values that its parameters start at."""
    torch.manual_seed(3)
    model = LanguageModel(shrunken(name).model).eval()
    scatter(model)
    model.embedding.weight.data.normal_(std=0.5)
    model.precision = precision
    return model


def random_ids(name: str, batch: int, length: int) -> torch.Tensor:
    model = Config.load(name).model
    ids = torch.randint(4, model.vocab_size, (batch, length))
    ids[:, 0] = model.bos
    ids[0, length // 2] = model.bos
    return ids


def test_the_table_here_is_of_every_preset() -> None:
    assert preset_names() == sorted(PARAMETERS)


@every_preset
def test_parameters_are_as_published(name: str) -> None:
    assert count_parameters(outline(Config.load(name).model)) == PARAMETERS[name]


@every_root
def test_a_root_is_a_complete_commented_file(name: str) -> None:
    text, config = source(name), Config.load(name)
    raw = tomllib.loads(text)
    assert text.startswith("# "), "it begins with what it is"
    assert text.count("# ") >= 2
    assert raw["name"] == config.name == name
    assert 0 < len(config.about) <= 44, "one line of `bytegolf presets` on 80 columns"
    assert {"model", "train", "data"} <= raw.keys()
    assert config.train.max_seconds > 0 or config.train.max_steps > 0
    size = int(re.sub("byte|sp", "", config.data.tokenizer))
    assert config.model.vocab_size == size


def test_what_tells_the_studies_apart() -> None:
    """The settings that systems.md gives for S2 and S3, which no parameter count would betray."""
    one, two = Config.load("study1-byte"), Config.load("study2-byte")
    for config, target, weight, seq_len in ((one, 9.0, 0.03, 1024), (two, 6.0, 0.05, 2048)):
        (level,) = levels(config.model.network)
        assert (level.router.target, level.router.loss_weight, level.router.grad_scale) == (target, weight, 0.75)
        assert config.train.seq_len == seq_len
        assert config.train.batch_tokens == 524_288
    capacities = [[level.router.capacity for level in levels(config.model.network)] for config in (one, two)]
    assert capacities == [["exact"], ["fixed"]]
    assert levels(two.model.network)[0].router.capacity_divisor == 4.0
    assert Config.load("study1-sp1024").train == one.train
    assert Config.load("study2-sp1024").train == two.train
    assert Config.load("study2-sp1024").export == two.export
    assert (two.export.bits, two.export.gptq, two.export.prune) == (6, True, 0.03)
    assert two.eval.stride == 64
    divisors = {
        name: levels(Config.load(name).model.network)[0].router.capacity_divisor for name in PARAMETERS if "2-" in name
    }
    assert {name for name, divisor in divisors.items() if divisor == 2} == {"study2-sp1024", "study2-sp1024-4h"}
    assert {divisor for name, divisor in divisors.items() if "byte" in name} == {4.0}
    assert len(levels(Config.load("hnet-2stage").model.network)) == 2
    assert not levels(Config.load("cpu-gpt").model.network)


@pytest.mark.parametrize("name", sorted(AT_SCALE))
def test_at_full_scale_only_sizes_and_budgets_differ(name: str) -> None:
    """A preset of the published budgets says what it extends, how long it trains, and little else."""
    text, base = source(name), AT_SCALE[name]
    raw = tomllib.loads(text)
    assert text.startswith("# S")
    assert (raw["extends"], raw["name"]) == (base, name)
    assert 0 < len(Config.load(name).about) <= 44
    own = flatten(raw).keys() - {"extends", "name", "about"}
    assert own - set(_BUDGET) <= {"model.network.router.capacity_divisor"}, "S3's sequences of chunks"
    before, after = flatten(to_dict(Config.load(base))), flatten(to_dict(Config.load(name)))
    assert {key for key in before if before[key] != after[key]} <= own | {"name", "about"}
    train = Config.load(name).train
    assert train.max_seconds == SECONDS[name.rpartition("-")[2]] == raw["train"]["max_seconds"]
    assert (train.batch_tokens, train.seq_len) == (524_288, 2048 if "study2" in name else 1024)


_BUDGET = (
    "train.max_seconds",
    "train.decay_steps",
    "train.qat_from",
    "train.validate_every",
    "train.checkpoint_every",
    "export.gptq_tokens",
    "export.gptq_seconds",
)


@pytest.mark.parametrize(
    ("name", "decay", "qat_from", "batches", "reserve"),
    [("10min", 1200, 0.85, 256, 45.0), ("4h", 25_000, 0.15, 512, 120.0)],
)
def test_the_schedule_of_study_2(name: str, decay: int, qat_from: float, batches: int, reserve: float) -> None:
    for tokens in ("byte", "sp1024"):
        config = Config.load(f"study2-{tokens}-{name}")
        assert (config.train.decay_steps, config.train.qat_from) == (decay, qat_from)
        calibration = batches * config.train.batch_tokens // 8  # GPUs; one of them calibrates
        assert (config.export.gptq_tokens, config.export.gptq_seconds) == (calibration, reserve)


@pytest.mark.parametrize(("name", "base"), [("cpu-study1", "study1-byte"), ("cpu-study2", "study2-byte")])
def test_at_cpu_scale_only_sizes_and_budgets_differ(name: str, base: str) -> None:
    before, after = flatten(to_dict(Config.load(base))), flatten(to_dict(Config.load(name)))
    sizes = {f"{path}.{key}" for path, _ in stages(Config.load(name)) for key in ("dim", "heads", "kv_heads")}
    sizes |= {f"train.{key}" for key in ("seq_len", "batch_tokens", "micro_batch", "warmup_steps", "decay_fraction")}
    there = {"name", "about", "data.path", "data.order"}
    assert {key for key in before if before[key] != after[key]} <= sizes | there | set(_BUDGET)


def test_the_control_has_the_budget_of_the_demo() -> None:
    demo, control = Config.load("cpu-demo"), Config.load("cpu-gpt")
    assert demo.train.max_seconds == control.train.max_seconds <= 360
    # rows to look up, which a model without chunks has no use for
    chunk_hash = demo.model.network.chunk_hash  # type: ignore[union-attr]
    network = PARAMETERS["cpu-demo"] - (chunk_hash.dim << chunk_hash.bits)
    assert abs(network / PARAMETERS["cpu-gpt"] - 1) < 0.1


@every_root
def test_step_gives_the_logits_of_forward(name: str) -> None:
    model, ids = tiny_model(name), random_ids(name, 2, 40)
    with torch.no_grad():
        wanted = model.cap(model(ids).logits)
        state = model.start(2, ids.shape[1])
        found = torch.stack([model.step(ids[:, t], state) for t in range(ids.shape[1])], 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert wanted.std() > 0.1, "logits that are all alike would show nothing"


@every_root
@pytest.mark.parametrize("length", [40, DENSE_LENGTH + 8])
def test_later_tokens_change_no_earlier_logit(name: str, length: int) -> None:
    """In fp64, so that sums in another order (chunk counts change) differ by 1e-13 and a leak stands out.

    The longer length takes the other path of full attention; a prefix alone ties it to the shorter one.
    """
    model, ids = tiny_model(name, torch.float64).double(), random_ids(name, 2, length)
    with torch.no_grad():
        before = model(ids).logits
        if all(level.capacity.mode != "fixed" for level in model.levels()):  # that is a share of the length
            torch.testing.assert_close(model(ids[:, :40]).logits, before[:, :40], rtol=0, atol=1e-9)
        for t in (0, 1, 7, 8, 20, length - 2) if length == 40 else (7, length - 2):
            changed = ids.clone()
            changed[:, t + 1 :] = torch.randint(1, model.config.vocab_size, changed[:, t + 1 :].shape)
            after = model(changed).logits
            torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1], rtol=0, atol=1e-9)
            assert (after[:, t + 1 :] - before[:, t + 1 :]).abs().max() > 1e-3, "it does read what was changed"


def test_the_verb_lists_each_on_a_line_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(good("presets").out.splitlines()) == 1 + len(PARAMETERS)
    for columns in ("80", "60"):
        monkeypatch.setenv("COLUMNS", columns)
        lines = good("presets").out.splitlines()
        assert all(len(line) <= int(columns) for line in lines)
        assert sum(line.startswith(tuple(PARAMETERS)) for line in lines) == len(PARAMETERS)
    rows = good("presets", "--json").json["presets"]
    assert {row["name"]: row["params"] for row in rows} == PARAMETERS
    for row in rows:
        assert row["about"] == Config.load(row["name"]).about
        config = Config.load(row["name"])
        bits, tensors = config.export.bits, outline(config.model).state_dict().values()
        small = sum(each.numel() for each in tensors if each.ndim > 1 and each.numel() <= SMALL_NUMEL)  # kept in fp16
        most = 1.02 * (row["params"] - small) + small * 16 / bits
        weights = row["artifact_estimate_bytes"] - config.export.primer // 4
        assert row["params"] <= weights * 8 / bits <= most


def test_the_verb_prints_all_settings_of_one(tmp_path: Path) -> None:
    ran = good("presets", "study2-sp1024-10min", "train.seed=7", "--json")
    file = tmp_path / "mine.toml"
    file.write_text(ran.err, encoding="utf-8")
    wanted = Config.load("study2-sp1024-10min", ["train.seed=7"])
    assert Config.load(file) == wanted
    assert ran.json["config"] == json.loads(json.dumps(to_dict(wanted)))
    assert "extends" not in file.read_text(encoding="utf-8")
    assert "did you mean cpu-demo?" in refused("presets", "cpu-dem")


def test_the_written_sizes_are_those_of_the_models() -> None:
    """After a change of a preset: `python docs/make_sizes.py`."""
    written = json.loads((resources.files("bytegolf") / "presets" / SIZES).read_text(encoding="utf-8"))
    for name in preset_names():
        config = Config.load(name)
        assert written.get(shape(config)) == list(sizes(config)), f"{name}: run `python docs/make_sizes.py`"
    assert len(written) == len({shape(Config.load(name)) for name in preset_names()})


def test_a_preset_that_has_changed_is_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {one.name: one.params for one in presets().presets}
    monkeypatch.setattr("bytegolf.cli.preset_list.shape", lambda config: "other")
    monkeypatch.setattr("bytegolf.cli.preset_list.preset_names", lambda: ["cpu-demo"])
    assert [one.params for one in presets().presets] == [before["cpu-demo"]]


@pytest.mark.parametrize("verb", ["presets", "study list .", "check data run", "audit .", "train --help", "--version"])
def test_verbs_that_need_no_model_import_no_torch(verb: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    """It takes two seconds, which an answer of a line must not."""
    (tmp_path / "data").symlink_to(tiny_run.data)
    (tmp_path / "run").symlink_to(tiny_run.folder)
    (tmp_path / "s.toml").write_text(
        'name="s"\nquestion="?"\npreset="cpu-demo"\ncontrol="a"\nseeds=[1]\ndata="data"\nbudget={steps=1}\n[variants.a]\n'
    )
    code = (
        f"import sys; sys.argv = ['bytegolf', *{verb.split()!r}]\nfrom bytegolf.cli import main\n"
        "try: main()\nexcept SystemExit as end: sys.exit(9 if 'torch' in sys.modules else end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == (1 if verb.startswith("audit") else 0), done.stderr  # a folder without papers


def test_an_outline_is_quick_and_has_the_models_own_shapes() -> None:
    """Torch's compiler is two seconds of imports, which building a model without storage must not ask for."""
    config = Config.load("hnet-2stage").model
    shapes = {name: tensor.shape for name, tensor in LanguageModel(config).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in outline(config).state_dict().items()}
    assert all(parameter.is_meta for parameter in outline(config).parameters())
    code = (
        "import sys; from bytegolf.cli.preset_list import sizes; from bytegolf.config import Config\n"
        "sizes(Config.load('cpu-demo')); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
