"""Training with quantised weights: the artifact's own values, straight-through gradients, exact resumption."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ModelMaker, shapes_unchecked
from tiny_run import losses, make_trainer, stop_after, tiny_config

from bytegolf.artifact import quantize
from bytegolf.artifact.pack import read_artifact, write_artifact
from bytegolf.config import Config, ExportConfig, TrainConfig
from bytegolf.errors import BytegolfError
from bytegolf.training.schedule import decay_left, learning_rate, quantises
from bytegolf.training.setup import obstacle
from bytegolf.training.weights import QuantizedTraining


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def unchecked() -> Iterator[None]:
    with shapes_unchecked():
        yield


@pytest.fixture(autouse=True)
def rows_of_codes_at_toy_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every tensor of a tiny model is small enough for fp16."""
    monkeypatch.setattr(quantize, "SMALL_NUMEL", 64)


def qat_config(network: str = "tables", bits: int = 4, qat_from: float = 0.33, **train: Any) -> Config:
    """Eight steps, of which the last six decay and the last four (a third of the decay later) are quantised."""
    config = tiny_config(network, max_steps=8, decay_fraction=6 / 8, qat_from=qat_from, **train)
    return dataclasses.replace(config, export=ExportConfig(bits=bits, prune=0.05))


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_training_computes_with_what_the_artifact_holds(
    tiny: str, bits: int, make_model: ModelMaker, tmp_path: Path
) -> None:
    model = make_model(tiny)
    config = qat_config(tiny, bits)
    write_artifact(tmp_path / "model", model.state_dict(), config, {})
    ids = torch.randint(4, 260, (2, 40))
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = model(ids).logits
    with QuantizedTraining(model, config.export).applied():
        found, quantised = model(ids).logits, {k: v.clone() for k, v in model.state_dict().items()}
    stored = read_artifact(tmp_path / "model").state
    assert all(torch.equal(quantised[name], stored[name]) for name in stored)
    assert all(torch.equal(weight, own[name]) for name, weight in model.state_dict().items())
    model.load_state_dict(stored)
    assert torch.equal(model(ids).logits, found)
    assert not torch.equal(before, found)


def test_the_gradient_at_the_quantised_weight_is_the_weights_own(make_model: ModelMaker) -> None:
    model, ids = make_model("one-level"), torch.randint(4, 260, (2, 33))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        out = model(ids[:, :-1])
        model.objective(out, model.losses(out, ids[:, 1:])).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    with QuantizedTraining(model, ExportConfig(bits=3)).applied():
        there, weights = gradients(), [p.detach().clone() for p in model.parameters()]
    kept = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(there, kept, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(there, gradients(), strict=True))
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.data.copy_(weight)
    assert all(torch.equal(a, b) for a, b in zip(there, gradients(), strict=True))


def test_weights_come_back_when_a_step_fails(make_model: ModelMaker) -> None:
    model = make_model("flat")
    own = [weight.clone() for weight in model.parameters()]
    with pytest.raises(ZeroDivisionError), QuantizedTraining(model, ExportConfig(bits=3)).applied():
        raise ZeroDivisionError
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own, strict=True))


@pytest.mark.usefixtures("unchecked")
def test_it_starts_late_and_changes_only_what_comes_after(data: Path, tmp_path: Path) -> None:
    plain, late = qat_config(qat_from=0.0), qat_config()
    make_trainer(plain, data, tmp_path / "plain").fit()
    make_trainer(late, data, tmp_path / "late").fit()
    first, second = losses(tmp_path / "plain"), losses(tmp_path / "late")
    same = [a == b for a, b in zip(first, second, strict=True)]
    assert same == [True] * 4 + [False] * 4
    assert abs(second[-1] - first[-1]) < 0.5


@pytest.mark.usefixtures("unchecked")
def test_a_resumed_run_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    config = qat_config()
    whole = make_trainer(config, data, tmp_path / "whole")
    whole.fit()
    for stop in (3, 6):  # before QAT begins, and within
        trainer = make_trainer(config, data, tmp_path / f"{stop}")
        stop_after(trainer, stop)
        again = make_trainer(config, data, tmp_path / f"{stop}")
        assert again.fit(resume=True).step == 8
        assert losses(tmp_path / f"{stop}") == losses(tmp_path / "whole")
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], weight), (stop, name)


# in a process of its own: there jaxtyping's import hook, whose checks a compiler cannot trace, is not installed
COMPILED = """
import sys, torch
from bytegolf.artifact import quantize
from bytegolf.config import ExportConfig, HNetConfig, ModelConfig, RouterConfig, StackConfig
from bytegolf.model.lm import LanguageModel
from bytegolf.training.setup import CompiledStacks
from bytegolf.training.weights import QuantizedTraining

quantize.SMALL_NUMEL = 64
outer, main = StackConfig(1, 32, 4, 2, window=8), StackConfig(1, 32, 4, 2)
torch.manual_seed(0)
model = LanguageModel(ModelConfig(HNetConfig(outer, RouterConfig(4.0), main, outer), embed_std=0.5))
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
ids, switch = torch.randint(4, 260, (2, 37)), QuantizedTraining(model, ExportConfig(bits=3))

def loss():
    out = model(ids[:, :-1])
    return model.objective(out, model.losses(out, ids[:, 1:]))

def both():
    off = loss()
    with switch.applied():
        on = loss()
    return torch.stack((off, on, loss())).detach()

eager = both()
stages = CompiledStacks(model, print, sys.argv[1])
compiled = both()
assert len(stages.shapes) == 2 and not stages._failed, "encoder and decoder: one graph each for both kinds of steps"
assert abs(eager[1] - eager[0]) > 0.001, eager
torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-4)
"""


def check_compiled(backend: str) -> None:
    done = subprocess.run([sys.executable, "-c", COMPILED, backend], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_graph_serves_steps_with_and_without_it() -> None:
    """The switch is in a graph's inputs, so that no compiler can have folded it away (S3's once was)."""
    check_compiled("eager")


@pytest.mark.slow
@pytest.mark.skipif("BYTEGOLF_SLOW_TESTS" not in os.environ, reason="half a minute: set BYTEGOLF_SLOW_TESTS=1")
@pytest.mark.skipif(obstacle(torch.device("cpu")) is not None, reason="torch.compile cannot work here")
def test_one_compiled_graph_serves_them_too() -> None:
    check_compiled("inductor")


def test_when_it_starts() -> None:
    settings = TrainConfig(seq_len=8, batch_tokens=8, max_seconds=100.0, decay_fraction=0.4, qat_from=0.85)
    assert [decay_left(settings, 0, at) for at in (0.0, 60.0, 80.0, 100.0)] == pytest.approx([1, 1, 0.5, 0])
    assert [quantises(settings, 0, at) for at in (0.0, 60.0, 93.9, 94.1, 100.0)] == [False, False, False, True, True]
    warming = dataclasses.replace(settings, lr_warmup_steps=10)
    assert learning_rate(warming, 0, 0.0) == 0.1
    assert not quantises(warming, 0, 0.0), "a low learning rate is not a late one"
    assert not quantises(dataclasses.replace(settings, qat_from=0.0), 0, 100.0)
    with pytest.raises(BytegolfError, match="it never decays"):
        TrainConfig(seq_len=8, batch_tokens=8, max_steps=10, decay_fraction=0.0, qat_from=0.5)
    with pytest.raises(BytegolfError, match="below 1"):
        TrainConfig(seq_len=8, batch_tokens=8, max_steps=10, qat_from=1.0)
