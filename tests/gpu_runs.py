"""Help for the tests of GPUs, which compare with the CPU: trainers and models of the same weights on both."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SUBWORDS, TinyRun, good, small, stages
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

import bytegolf
from bytegolf.config import Config, preset_chain, preset_names
from bytegolf.evaluate.modes import ScoringMode

ROOTS = [name for name in preset_names() if len(preset_chain(name)) == 1]
"""Presets that extend no other: the others have their kind of model."""

CUDA = torch.device("cuda:0")

PRETENDED = bool(getattr(torch.cuda, "pretended", False))
"""Whether the device is that of tests/pretend_cuda: its products are the CPU's, so results agree more closely."""

RTOL = 2e-4 if PRETENDED else 5e-3
"""Of losses in fp32. A GPU multiplies fp32 in TF32, of 10 bits."""

hardware = pytest.mark.skipif(PRETENDED, reason="needs a real device")


def tiny(preset: str) -> list[str]:
    """Overrides that make a preset tiny and quick, over the alphabets of the tiny corpus."""
    config = Config.load(preset)
    changes = small(preset, seq_len=64)
    for path, stage in stages(config):
        if stage.window:  # less than a sequence, or local attention would be no other than attention to everything
            changes.append(f"{path}.window=16")
        if stage.layout:  # one block of each part, in place of ``layers``
            layout = re.sub(r"\d+", "1", stage.layout)
            changes += [f"{path}.layout={layout}", f"{path}.rotary_dim=8", f"{path}.mlp_multiple=16"]
            changes.append(f"{path}.mlp_hidden={48 if stage.mlp_hidden else 0}")
    if config.data.tokenizer.startswith("sp"):
        changes += [f"data.tokenizer={SUBWORDS}", f"model.vocab_size={SUBWORDS[2:]}"]
    elif config.data.tokenizer != "byte260":
        changes += ["data.tokenizer=byte260", "model.vocab_size=260"]
    if config.export.gptq:
        changes.append("export.gptq_tokens=512")
    return [*changes, "train.compile=off", "train.log_every=1"]


BIG = ("model.network.main.dim=192", "model.network.main.heads=2", "model.network.main.kv_heads=1")
"""The innermost network of cpu-demo large enough for codes: small matrices are stored as values."""


def trainer_on(device: str, preset: str, data: Path, *changes: str, folder: Path | None = None) -> bytegolf.Trainer:
    """A tiny trainer of ``preset`` on ``device``."""
    overrides = [*tiny(preset), f"train.device={device}", *changes]
    return bytegolf.Trainer(Config.load(preset, overrides), data, folder=folder)


def as_usual(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Within the context nothing is pretended if ``device`` is the CPU: pretending takes time."""
    alone = PRETENDED and device.type == "cpu"
    return _disable_current_modes() if alone else contextlib.nullcontext()


def losses(trainer: bytegolf.Trainer, steps: int = 2) -> list[float]:
    """Take so many steps; their losses."""
    with as_usual(trainer.world.device):
        return [trainer.step(batch).loss for batch in itertools.islice(trainer, steps)]


RunOf = Callable[[str], TinyRun]


@pytest.fixture(scope="session")
def run_of(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunOf:
    """``run_of(preset)``: a tiny run of a preset, trained for three steps on the CPU; made once, so change nothing."""
    home = tmp_path_factory.mktemp("runs")

    @functools.cache
    def run(preset: str) -> TinyRun:
        with as_usual(torch.device("cpu")):
            changes = (*tiny(preset), "train.device=cpu", "train.max_steps=3", "export.gptq=false")
            ran = good("train", preset, *changes, "--data", tiny_data, "--out", home / preset, "--json")
        return TinyRun(home / preset, tiny_data, ran)

    return run


def on_both(run: TinyRun, **settings: Any) -> tuple[bytegolf.Model, bytegolf.Model]:
    """The model of a run on the CPU and on the GPU, in fp32."""
    settings = {"precision": "fp32", "data": run.data, **settings}
    return bytegolf.load(run.folder, device="cpu", **settings), bytegolf.load(run.folder, device="cuda", **settings)


def bits(model: bytegolf.Model, run: TinyRun, mode: ScoringMode, limit: int = 256, **settings: Any) -> float:
    """The BPB of a model over the first validation tokens."""
    with as_usual(model.module.embedding.weight.device):
        return model.evaluate(run.data, mode, limit=limit, **settings).bpb


def close(found: Tensor, expected: Tensor, atol: float = 1e-4, rtol: float = 1e-4) -> None:
    """Assert that what a GPU found is what the CPU did."""
    loose = 1 if PRETENDED else 50
    torch.testing.assert_close(found.cpu(), expected, atol=loose * atol, rtol=loose * rtol)
