"""SIGINT, SIGTERM and SIGHUP at any moment of training: a checkpoint, and a run that goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_run import losses, make_trainer, tiny_config

from bytegolf.artifact import checkpoint as store
from bytegolf.bpb import Score
from bytegolf.training.loop import Trainer
from bytegolf.training.setup import SIGNALS
from bytegolf.training.step import Batch, StepFigures

STEPS = 4
MOMENTS = ("_begin", "prepare_step", "gradients", "update", "validate", "checkpoint", "_settle", "_take_time", "_log")
"""Methods of the trainer, whose calls a signal comes in the middle of, or behind."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def trainer_of(data: Path, run: Path) -> Trainer:
    """A trainer that saves and validates after every step, whose steps add their number to every weight: what the
    signals are about is the loop around them.
    """
    config = tiny_config("flat", max_steps=STEPS, checkpoint_every=1e-9, validate_every=1e-9, keep_checkpoints=9)
    trainer = make_trainer(config, data, run)

    def gradients(batch: Batch, objective: Any = None) -> StepFigures:
        figures = StepFigures(torch.tensor(float(trainer.progress.step)), torch.zeros(3, 0), torch.zeros(3, 0))
        trainer._taken = batch, figures
        return figures

    def update(factor: float, step: int) -> None:
        with torch.no_grad():
            for weight in trainer.model.parameters():
                weight.add_(step + 1)

    def validate() -> float:
        trainer._advance(validation_bpb=1.0)
        trainer._validated_step = trainer.progress.step
        trainer.logger.validation(trainer.progress, Score(1.0, 1, 1))
        return 1.0

    for name, stub in (("gradients", gradients), ("validate", validate)):
        setattr(trainer, name, stub)
    trainer.stepper.update = update  # type: ignore[method-assign]
    trainer.stepper.prepare = lambda step, seconds: None  # type: ignore[method-assign]
    return trainer


def interrupted(trainer: Trainer, name: str, call: int, signals: list[int], behind: bool) -> None:
    """Have ``signals`` come in, or ``behind``, the ``call``-th call of a method of the trainer."""
    original, count = getattr(trainer, name), 0

    def method(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        mine = count == call
        if mine and not behind:
            for number in signals:
                signal.raise_signal(number)
        found = original(*arguments)
        if mine and behind:
            for number in signals:
                signal.raise_signal(number)
        return found

    setattr(trainer, name, method)


@contextmanager
def handled(ignored: bool) -> Iterator[dict[int, Any]]:
    """The signals as a shell hands them over; SIGHUP ``ignored``, as nohup has it."""
    numbers = [getattr(signal, name) for name in SIGNALS]
    before = {number: signal.getsignal(number) for number in numbers}
    if ignored:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield {number: signal.getsignal(number) for number in numbers}
    finally:
        for number in numbers:
            signal.signal(number, before[number])


@settings(max_examples=500 if os.environ.get("BYTEGOLF_SLOW_TESTS") else 60)
@given(
    name=st.sampled_from(MOMENTS),
    call=st.integers(1, STEPS + 1),
    signals=st.lists(st.sampled_from(SIGNALS), min_size=1, max_size=3),
    behind=st.booleans(),
    nohup=st.booleans(),
)
@example("checkpoint", 2, ["SIGTERM", "SIGTERM"], False, False)
@example("update", STEPS, ["SIGHUP"], True, True)
@example("_take_time", 1, ["SIGINT"], False, False)
@example("_begin", 1, ["SIGTERM"], False, False)
def test_any_signals_at_any_moment(
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    call: int,
    signals: list[str],
    behind: bool,
    nohup: bool,
) -> None:
    run = tmp_path_factory.mktemp("run")
    heard = [number for number in signals if not (nohup and number == "SIGHUP")]
    trainer = trainer_of(data, run)
    interrupted(trainer, name, call, [int(getattr(signal, number)) for number in signals], behind)
    at_once = False
    with handled(nohup) as before:
        try:
            trainer.fit()
        except KeyboardInterrupt:
            at_once = True
        assert {number: signal.getsignal(number) for number in before} == before, "handlers are put back"
    assert at_once <= (len(heard) > 1), "one signal is never more than a wish"
    saved = store.checkpoints(run / "checkpoints")
    assert all(store.load(path).progress["step"] == store.step_of(path) for path in saved), "whole, or not there"
    if not at_once:
        assert store.step_of(saved[-1]) == trainer.progress.step >= 1
        assert trainer.stopped_early == (trainer.progress.step < STEPS)
        assert bool(heard) >= trainer.stopped_early
    again = trainer_of(data, run)
    again.fit(resume=True)
    first = next(iter(again.model.state_dict().values()))
    fresh = next(iter(trainer_of(data, run / "fresh").model.state_dict().values()))
    torch.testing.assert_close(first, fresh + sum(range(1, STEPS + 1)))
    assert again.progress.step == STEPS
    assert losses(run) == [float(step) for step in range(STEPS)], "every step once"
