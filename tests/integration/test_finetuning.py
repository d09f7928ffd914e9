"""Starting from a model, training adapters in place of weights, AdamW, and recomputed activations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TinyRun, good, refused, small
from tiny_run import HERE, OPTIM, losses, make_trainer, stop_after, tiny_config
from torch import Tensor

from bytegolf.api.run import train
from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.loading import load_own
from bytegolf.config import Config, OptimConfig
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.score import score
from bytegolf.model.lm import LanguageModel, outline
from bytegolf.progress import Reporter
from bytegolf.training.loop import Trainer
from bytegolf.training.optim import Optimizer, assignments, stage_multipliers
from bytegolf.training.setup import TrainingData, resolve

BUDGET = [change for change in small() if not change.startswith("model.")]
"""Ten quick steps of whatever model."""
ADAPTED: dict[str, Any] = {"adapters": 2, "max_steps": 6, "ema_decay": 0.5, "decay_fraction": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


# ---------------------------------------------------------------------------------------------- AdamW


def test_adamw_by_hand() -> None:
    """Every parameter but tables: w ← w·(1 − lr·d) − lr·m̂/(√v̂ + ε), with no decay of vectors and control mixes."""
    torch.manual_seed(0)
    config = OptimConfig(algorithm="adamw", adamw_lr=0.01, adamw_weight_decay=0.5, adam_beta1=0.8, adam_beta2=0.9)
    model = LanguageModel(tiny_config("tables").model)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters() if "table" not in name}
    mean, square = ({name: torch.zeros_like(w) for name, w in expected.items()} for _ in range(2))
    optimizer = Optimizer(model, config)
    for step in range(1, 4):
        for index, (name, parameter) in enumerate(model.named_parameters()):
            grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + index))
            parameter.grad = grad
            if name in expected:
                decayed = parameter.dim() > 1 and not name.endswith(("resid_mix", "skip_weights"))
                mean[name].mul_(0.8).add_(0.2 * grad.double())
                square[name].mul_(0.9).add_(0.1 * grad.double() ** 2)
                change = (mean[name] / (1 - 0.8**step)) / ((square[name] / (1 - 0.9**step)).sqrt() + 1e-8)
                expected[name] = expected[name] * (1 - 0.005 * 0.5 * decayed) - 0.005 * change
        optimizer.step(0.5, step)
    for name, weight in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].double(), weight, rtol=1e-5, atol=1e-6)


def test_the_paper_s_stage_multipliers() -> None:
    """hnet_2stage_L's in the docstring; every parameter of a stage has its stage's, the embedding the outermost's."""
    config = Config.load("hnet-2stage", ["optim.stage_multipliers=paper", "optim.algorithm=adamw"])
    network = config.model.network
    found = stage_multipliers(network)
    widths = (network.encoder.dim, network.main.encoder.dim, network.main.main.dim)  # type: ignore[union-attr]
    targets = (network.router.target, network.main.router.target)  # type: ignore[union-attr]
    assert found == pytest.approx(
        [
            (4.6 * widths[2] / widths[0]) ** 0.5,
            (4.6 / targets[0] * widths[2] / widths[1]) ** 0.5,
            (4.6 / (targets[0] * targets[1])) ** 0.5,
        ]
    )
    plain = dataclasses.replace(config.optim, stage_multipliers="")
    model = outline(config.model)
    for one, before in zip(assignments(model, config.optim), assignments(model, plain), strict=True):
        stage = one.name.split(".").count("main") if one.name.startswith("network.") else 0
        assert one.multiplier == pytest.approx(before.multiplier * found[stage]), one.name


def test_adamw_trains_and_resumes(data: Path, tmp_path: Path) -> None:
    optim = dataclasses.replace(OPTIM, algorithm="adamw", adamw_lr=0.01, stage_multipliers="paper")
    config = tiny_config("two-level", optim, max_steps=6, decay_shape="sqrt", lr_warmup_fraction=0.4)
    whole = make_trainer(config, data, tmp_path / "whole")
    whole.fit()
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0] - 0.5
    stop_after(make_trainer(config, data, tmp_path / "run"), 3)
    again = make_trainer(config, data, tmp_path / "run")
    again.fit(resume=True)
    assert_equal(again.export_state(), whole.export_state())


# ---------------------------------------------------------------------------------------------- recomputing


@pytest.mark.parametrize("network", ["flat", "two-level", "paper"])
def test_recomputed_activations_change_nothing(network: str, data: Path, tmp_path: Path) -> None:
    kept, again = (
        make_trainer(tiny_config(network, recompute=on, max_steps=3), data, tmp_path / str(on)) for on in (False, True)
    )
    stacks = [module for module in again.model.modules() if hasattr(module, "recompute")]
    assert stacks
    assert all(stack.recompute for stack in stacks)
    kept.fit()
    again.fit()
    assert losses(tmp_path / "False") == losses(tmp_path / "True")
    assert_equal(again.export_state(), kept.export_state())


def test_recomputing_keeps_less(data: Path, tmp_path: Path) -> None:
    """Tensors that the backward pass keeps: within a block none."""
    kept = []
    for on in (False, True):
        trainer = make_trainer(tiny_config("flat", recompute=on), data, tmp_path / str(on))
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = trainer.model(trainer.next_batch().inputs)
        assert out.logits.requires_grad
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


# ---------------------------------------------------------------------------------------------- adapters


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]


def test_only_adapters_move_and_the_export_holds_them(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_config("tables", **ADAPTED), data, tmp_path)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.fit()
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    assert_equal(trainer.model.state_dict(), before)
    shipped = trainer.export_state()
    moved = {name for name, tensor in shipped.items() if not torch.equal(tensor, before[name])}
    assert {"network.residual.weight", "network.main.blocks.0.mixer.qkv.weight"} <= moved
    assert not any("router" in name or name == "embedding.weight" for name in moved)
    # the adapted model and the plain one with the shipped weights say the same
    plain = LanguageModel(trainer.config.model)
    plain.load_state_dict(shipped)
    ids = trainer.next_batch().inputs
    with trainer.stepper.averaged(), torch.no_grad():
        torch.testing.assert_close(trainer.model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
    assert_equal(store.load(store.checkpoints(tmp_path / "checkpoints")[-1]).exported, shipped)


@pytest.mark.parametrize("network", ["one-level", "paper"])
def test_a_low_rank_gradient_is_that_of_the_product(network: str, data: Path, tmp_path: Path) -> None:
    """dB = dW·Aᵀ and dA = Bᵀ·dW, with dW of the model that holds W + B·A."""
    trainer = make_trainer(tiny_config(network, **ADAPTED), data, tmp_path)
    adapted = trainer.stepper.adapted
    assert adapted is not None
    with torch.no_grad():
        for index, parameter in enumerate(adapted.adapters.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.1)
    trainer.stepper.average = None
    plain = LanguageModel(trainer.config.model)
    plain.load_state_dict(trainer.export_state())
    batch = trainer.next_batch()
    trainer.gradients(batch)
    out = plain(batch.inputs)
    plain.objective(out, plain.losses(out, batch.targets)).backward()
    state, maps = adapted.state(), dict(plain.named_modules())
    grads = {
        "adapters." + name.replace("/", "."): parameter.grad for name, parameter in adapted.adapters.named_parameters()
    }
    for name in [name.removeprefix("adapters.a.") for name in state if name.startswith("adapters.a.")]:
        a, b = state[f"adapters.a.{name}"], state[f"adapters.b.{name}"]
        whole = maps[name].weight.grad
        assert whole.norm() > 0, name
        torch.testing.assert_close(grads[f"adapters.b.{name}"], whole @ a.mT, rtol=1e-3, atol=1e-5, msg=name)
        torch.testing.assert_close(grads[f"adapters.a.{name}"], b.mT @ whole, rtol=1e-3, atol=1e-5, msg=name)


def test_adapters_resume(data: Path, tmp_path: Path) -> None:
    config = tiny_config("one-level", **ADAPTED)
    whole = make_trainer(config, data, tmp_path / "whole")
    whole.fit()
    stop_after(make_trainer(config, data, tmp_path / "run"), 3)
    again = make_trainer(config, data, tmp_path / "run")
    again.fit(resume=True)
    assert_equal(again.export_state(), whole.export_state())
    with pytest.raises(BytegolfError, match="does not fit the model"):
        make_trainer(tiny_config("one-level", **{**ADAPTED, "adapters": 0}), data, tmp_path / "run").fit(resume=True)


def test_adapters_and_quantised_training_do_not_go_together() -> None:
    with pytest.raises(BytegolfError, match="adapters"):
        tiny_config(adapters=2, qat_from=0.5)


# ---------------------------------------------------------------------------------------------- starting from a model


def begun(run: TinyRun, config: Config, *changes: str) -> Config:
    return resolve(config, [f"train.init={run.folder}", {"data.path": str(run.data)}, *changes])


def test_training_starts_from_a_model(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Whatever the preset's own network is; its weights are those of the artifact."""
    config = begun(tiny_run, tiny_config("two-level", max_steps=2), "model.softcap=20")
    loaded = load_own(tiny_run.folder)
    assert config.model == dataclasses.replace(loaded.config.model, softcap=20.0)
    trainer = Trainer(config, TrainingData.open(config), tmp_path, HERE, Reporter(quiet=True))
    assert_equal(trainer.model.state_dict(), loaded.model.state_dict())
    expected = score(loaded.model, trainer.data.validation, loaded.tokenizer, 32, limit=256).bpb
    trainer.model.config = loaded.config.model
    assert score(trainer.model, trainer.data.validation, loaded.tokenizer, 32, limit=256).bpb == expected


def test_a_fine_tuned_run_trains_again_and_resumes(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Its config.toml names the model that it began with, and which it was; a change of the model is kept."""
    options = (*BUDGET, "--data", tiny_run.data, f"train.init={tiny_run.folder}", "train.max_steps=2")
    good("train", "cpu-gpt", *options, "model.softcap=25", "--out", tmp_path / "first")
    good("train", tmp_path / "first" / "config.toml", "--out", tmp_path / "again")
    first, again = (load_own(tmp_path / name) for name in ("first", "again"))
    assert first.config == again.config
    assert first.config.model.softcap == 25
    assert_equal(again.model.state_dict(), first.model.state_dict())
    good("train", tmp_path / "first" / "config.toml", "--out", tmp_path / "first", "--resume", "train.max_steps=3")
    # another model in its place is not what the run began with
    moved = (tmp_path / "first" / "config.toml").read_text().replace(str(tiny_run.folder), str(tmp_path / "again"))
    (tmp_path / "moved.toml").write_text(moved)
    said = refused("train", tmp_path / "moved.toml", "--out", tmp_path / "third")
    assert "another model than this run began with" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.init=nowhere", "nowhere"),
        ("model.ngrams.longest=2", "do not fit the model"),
        ("train.init=tests", "no run folder"),
    ],
)
def test_what_cannot_be_begun_with(change: str, words: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    options = (*BUDGET, "--data", tiny_run.data, f"train.init={tiny_run.folder}", *change.split())
    assert words in refused("train", "cpu-demo", *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_from_python(tiny_run: TinyRun, tmp_path: Path) -> None:
    ran = train(
        "cpu-demo",
        tiny_run.data,
        tmp_path / "tuned",
        overrides=[*BUDGET, f"train.init={tiny_run.folder}", "train.adapters=2", "train.max_steps=2"],
        quiet=True,
    )
    assert ran.summary is not None
    assert ran.config.train.init_sha256 == load_own(tiny_run.folder).artifact.sha256
