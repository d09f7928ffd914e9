"""torch.compile as an option: what is compiled, that it computes the same, and what happens where it cannot."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_network
from tiny_run import losses, make_trainer, tiny_config

from bytegolf.config import HNetConfig, ModelConfig
from bytegolf.model.lm import LanguageModel
from bytegolf.ops import native
from bytegolf.training import setup
from bytegolf.training.setup import CompiledStacks, compile_stacks, obstacle, wants

CPU = torch.device("cpu")

# in a process of its own: there jaxtyping's import hook, whose checks a compiler cannot trace, is not installed
COMPARE = """
import sys, torch
from bytegolf.config import HNetConfig, ModelConfig, RouterConfig, StackConfig
from bytegolf.model.lm import LanguageModel
from bytegolf.training.setup import CompiledStacks

def compare(kind, backend):
    outer, main = StackConfig(3, 32, 4, 2, window=8), StackConfig(2, 32, 4, 2)
    flat = StackConfig(1, 32, 4, 2, window=8)
    network = HNetConfig(outer, RouterConfig(4.0), main, outer) if kind == "level" else flat
    config = ModelConfig(network, embed_std=0.5, reset_at_bos=True)
    torch.manual_seed(0)
    model = LanguageModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    ids = torch.randint(0, 260, (2, 37))
    ids[0, 11] = 1

    def run():
        model.zero_grad()
        out = model(ids[:, :-1])
        loss = model.objective(out, model.losses(out, ids[:, 1:]))
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    said = []
    eager = run()
    stages = CompiledStacks(model, said.append, backend)
    compiled = run()
    with torch.no_grad():
        model(ids[:, :20])
    assert not said, said
    assert len(stages.shapes) == (2 if kind == "level" else 1)  # encoder and decoder; validation adds none
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)

for what in sys.argv[1:]:
    compare(*what.split())
"""


@pytest.mark.slow
def test_stages_are_traced_as_one_graph_and_compute_the_same_compiled_too() -> None:
    what = ["level eager", *(["flat inductor"] if obstacle(CPU) is None else [])]
    done = subprocess.run([sys.executable, "-c", COMPARE, *what], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_auto_compiles_on_gpus_only() -> None:
    assert not wants("auto", CPU)
    assert wants("auto", torch.device("cuda"))
    assert wants("on", CPU)
    assert not wants("off", torch.device("cuda"))


def test_without_a_compiler_training_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.why_not()  # looks for the kernels' compiler, or would remember for all later tests that there is none
    monkeypatch.setattr(shutil, "which", lambda name: None)
    trainer = make_trainer(tiny_config(compile="on", max_steps=2), tmp_path / "data", tmp_path / "run")
    assert trainer.stepper.compiled is None
    said: list[str] = []
    assert compile_stacks(trainer.model, "on", CPU, said.append) is None
    (sentence,) = said
    assert "no C++ compiler" in sentence
    trainer.fit()
    assert len(losses(tmp_path / "run")) == 2


def test_a_compiler_that_fails_is_named_once_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(ModelConfig(tiny_network("one-level")))
    ids = torch.randint(4, 260, (2, 32))
    expected = model(ids).logits

    def broken(*args: object, **kwargs: object) -> object:
        def fail(*args: object) -> None:
            raise RuntimeError("no header\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    said: list[str] = []
    stages = CompiledStacks(model, said.append)
    for _ in range(2):
        assert torch.equal(model(ids).logits, expected)
    assert said == ["torch.compile failed, training goes on without it (RuntimeError: no header)"]
    assert not stages.shapes


def test_graphs_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(function: object, **kwargs: object) -> object:
        def run(x: torch.Tensor, documents: torch.Tensor | None) -> torch.Tensor:
            calls.append(x.shape[1])
            return x

        return run

    monkeypatch.setattr(torch, "compile", counted)
    model = LanguageModel(ModelConfig(tiny_network("flat")))
    stages = CompiledStacks(model, print)
    for length in range(4, 4 + 2 * setup.MAX_GRAPHS):
        model(torch.randint(4, 260, (1, length)))
    assert len(stages.shapes) == len(calls) == setup.MAX_GRAPHS


def test_a_main_stage_is_compiled_where_its_lengths_recur(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: compiled.append(function) or function)  # type: ignore[func-returns-value]
    level = tiny_network("one-level")
    assert isinstance(level, HNetConfig)
    for capacity, count in (("exact", 2), ("bucketed", 3), ("fixed", 3)):
        router = dataclasses.replace(level.router, capacity=capacity)  # type: ignore[arg-type]
        model = LanguageModel(ModelConfig(dataclasses.replace(level, router=router)))
        compiled.clear()
        CompiledStacks(model, print)
        assert len(compiled) == count, capacity
