"""TensorBoard's events say what metrics.jsonl says."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny_run import make_trainer, tiny_config

from bytegolf.errors import BytegolfError
from bytegolf.training.metrics_file import TENSORBOARD, figures, read_metrics


class Recorder:
    """In place of the package's writer."""

    made: ClassVar[list[Recorder]] = []

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        self.folder, self.purge_step = Path(folder), purge_step
        self.events: list[tuple[str, float, int]] = []
        Recorder.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.events.append((name, value, step))

    def flush(self) -> None:
        pass


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Recorder
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Recorder, "made", [])


def test_figures_are_named_by_their_place() -> None:
    row = {"kind": "train", "step": 3, "loss": 1, "rates": [0.5, 0.25], "soft": [{"b": 0.7}], "text": "words"}
    assert dict(figures(row)) == {"loss": 1.0, "rates/0": 0.5, "rates/1": 0.25, "soft/0/b": 0.7}


def test_events_are_the_rows_and_those_of_steps_that_happen_again_are_hidden(package: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_trainer(tiny_config(tensorboard=True, max_steps=4, log_every=2), tmp_path / "data", run).fit()
    make_trainer(tiny_config(tensorboard=True, max_steps=6, log_every=2), tmp_path / "data", run).fit(resume=True)
    first, second = Recorder.made
    assert first.folder == run / TENSORBOARD
    assert (first.purge_step, second.purge_step) == (None, 5)
    wanted = [
        (f"{row['kind']}/{name}", value, row["step"])
        for row in read_metrics(run / "metrics.jsonl")
        for name, value in figures(row)
    ]
    assert first.events + second.events == wanted
    assert {"train/bpb", "train/rates/0", "validation/bpb"} <= {name for name, _, _ in wanted}


def test_without_the_package_it_is_refused_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    trainer = make_trainer(tiny_config(tensorboard=True), tmp_path / "data", tmp_path / "run")
    with pytest.raises(BytegolfError, match=r"pip install .*\[tensorboard\]'"):
        trainer.fit()
    assert trainer.progress.step == 0


def test_it_is_off_by_default(package: None, tmp_path: Path) -> None:
    make_trainer(tiny_config(max_steps=1), tmp_path / "data", tmp_path / "run").fit()
    assert not Recorder.made
