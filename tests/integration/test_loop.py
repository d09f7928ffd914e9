"""The training loop: golden losses, exact resumption, budgets, and every way that a run ends."""

from __future__ import annotations

import errno
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import HERE, losses, make_trainer, rows, tiny_config

from bytegolf import files
from bytegolf.artifact import checkpoint as store
from bytegolf.bpb import Score
from bytegolf.config import Config
from bytegolf.distributed import DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.score import score
from bytegolf.training import loop
from bytegolf.training.loop import Trainer
from bytegolf.training.optim import Optimizer
from bytegolf.training.step import Batch, StepFigures

GOLDEN = {
    "flat": [
        *(5.564903, 5.177814, 4.606223, 4.096453, 3.666664, 3.472002, 3.092088, 2.907086, 2.884470, 2.521367),
        *(2.648441, 2.492329, 2.230395, 2.187934, 1.281213, 2.799009, 2.718975, 2.723031, 2.585594, 2.594969),
    ],
    "one-level": [
        *(5.552425, 4.993382, 4.525663, 4.161486, 3.737471, 3.617206, 3.112821, 3.089842, 3.201349, 2.828366),
        *(2.967690, 2.938407, 2.610304, 2.495192, 1.430841, 3.295083, 3.400539, 3.191525, 3.062988, 3.207940),
    ],
}
"""Recorded when the loop was made. A pure refactoring leaves them; a change of model or optimiser records new ones."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def final_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All that a run ends with: weights, optimiser state, average."""
    parts = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state()}
    if trainer.stepper.average:
        parts["average"] = trainer.stepper.average.state()
    return {f"{part}.{name}": tensor.clone() for part, state in parts.items() for name, tensor in state.items()}


def assert_same(trainer: Trainer, expected: dict[str, torch.Tensor]) -> None:
    found = final_weights(trainer)
    assert found.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert not different


class Clock:
    """A clock that only the test moves: a second a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.processor = 7.0
        times = SimpleNamespace(perf_counter=lambda: self.now, process_time=lambda: self.processor)
        monkeypatch.setattr("bytegolf.training.schedule.time", times)
        self._patch = monkeypatch

    def drive(self, trainer: Trainer, on_step: Callable[[int], None] = lambda step: None) -> Trainer:
        """Have each step of ``trainer`` take a second, and call ``on_step`` with its number (from 0) before it."""
        original = trainer.gradients

        def gradients(batch: Batch) -> StepFigures:
            on_step(trainer.progress.step)
            figures = original(batch)
            self.now += 1.0
            self.processor += 0.25
            return figures

        self._patch.setattr(trainer, "gradients", gradients)
        return trainer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def interrupt_at(wanted: int) -> Callable[[int], None]:
    """Ctrl-C during the step after ``wanted`` steps."""
    return lambda step: signal.raise_signal(signal.SIGINT) if step == wanted else None


# ---------------------------------------------------------------------------------------------- what is learned


@pytest.mark.parametrize("network", ["flat", "one-level"])
def test_golden_losses_and_two_runs_are_equal_bit_for_bit(network: str, data: Path, tmp_path: Path) -> None:
    config = tiny_config(network, max_steps=20)
    for name in ("a", "b"):
        make_trainer(config, data, tmp_path / name).fit()
    first = losses(tmp_path / "a")
    assert first == pytest.approx(GOLDEN[network], rel=1e-3)
    assert first[0] > math.log(256) - 0.1  # bytes are all alike before training
    assert first[-1] < 0.65 * first[0]
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert len(first) == 20


def test_rows_say_what_was_read(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_config(log_every=4, max_steps=6, decay_fraction=0.5), data, tmp_path)
    progress = trainer.fit()
    first, last = rows(tmp_path)
    every = make_trainer(tiny_config(log_every=1, max_steps=6, decay_fraction=0.5), data, tmp_path / "every")
    every.fit()
    each = rows(tmp_path / "every")
    assert (first["step"], last["step"]) == (4, 6)
    assert (first["tokens"], last["tokens"], progress.tokens) == (512, 768, 768)
    sizes = [int((trainer.stepper.loader.batch(step)[1] >= 4).sum()) for step in range(6)]
    assert (first["bytes"], last["bytes"], progress.bytes) == (sum(sizes[:4]), sum(sizes), sum(sizes))
    assert first["loss"] == pytest.approx(sum(row["loss"] for row in each[:4]) / 4, rel=1e-12)
    assert last["loss"] == pytest.approx(sum(row["loss"] for row in each[4:]) / 2, rel=1e-12)
    assert first["rates"] == pytest.approx([sum(row["rates"][0] for row in each[:4]) / 4], rel=1e-12)
    assert last["bpb"] == pytest.approx(last["loss"] * 256 / math.log(2) / sum(sizes[4:]), rel=1e-12)
    assert [row["lr"] for row in each] == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3])


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_add_up_to_the_batch(micro: int, data: Path, tmp_path: Path) -> None:
    """Also where the last of them is smaller than the others."""
    whole = make_trainer(tiny_config("two-level"), data, tmp_path)
    parts = make_trainer(tiny_config("two-level", micro_batch=micro), data, tmp_path)
    batch = whole.stepper.batch(3)
    loss, figures, _ = whole.gradients(batch)
    loss_parts, figures_parts, _ = parts.gradients(batch)
    assert float(loss_parts) == pytest.approx(float(loss), rel=1e-6)
    torch.testing.assert_close(figures_parts[:, 0], figures[:, 0])
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-7, msg=name)
        else:
            assert one.numel() == 0


def test_accumulation_follows_from_what_fits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses on the same text in the same order, whatever the memory."""
    found, passes = {}, {}
    for memory in (1e5, 4e6, 1e12):
        monkeypatch.setattr("bytegolf.training.step.device_memory", lambda device, memory=memory: memory)
        trainer = make_trainer(tiny_config("two-level", max_steps=3), data, tmp_path / str(memory))
        count: list[int] = []
        trainer.model.register_forward_hook(
            lambda model, inputs, out, count=count: count.append(len(inputs[0])) if model.training else None
        )
        trainer.fit()
        found[memory], passes[memory] = losses(tmp_path / str(memory)), count
    assert passes == {1e5: [1] * 12, 4e6: [2] * 6, 1e12: [4] * 3}
    assert found[1e5] == pytest.approx(found[1e12], rel=1e-3)
    assert found[4e6] == pytest.approx(found[1e12], rel=1e-3)
    assert found[1e5][0] == pytest.approx(found[1e12][0], rel=1e-6)


def test_gradients_are_clipped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tiny_config(grad_clip=1e-3), data, tmp_path)
    norms = []
    original = trainer.optimizer.step

    def step(factor: float, number: int) -> None:
        grads = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
        norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
        original(factor, number)

    monkeypatch.setattr(trainer.optimizer, "step", step)
    trainer.fit()
    assert norms == pytest.approx([1e-3] * 6, rel=1e-3)


def test_the_average_is_what_is_validated_and_exported(data: Path, tmp_path: Path, clock: Clock) -> None:
    trainer = make_trainer(tiny_config(ema_decay=0.5, max_steps=12), data, tmp_path)
    seen = []
    clock.drive(trainer, lambda step: seen.append(trainer.model.embedding.weight.detach().clone()))
    trainer.fit()
    expected = seen[0]
    for t, weight in enumerate([*seen[1:], trainer.model.embedding.weight.detach()]):
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * weight
    exported = trainer.export_state()
    torch.testing.assert_close(exported["embedding.weight"], expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(exported["embedding.weight"], trainer.model.embedding.weight)
    own = trainer.progress.validation_bpb
    trainer.model.load_state_dict(exported)
    result = score(trainer.model, trainer.data.validation, trainer.data.tokenizer, 32, batch=4, limit=256)
    assert own == result.bpb
    saved = store.load(store.checkpoints(tmp_path / "checkpoints")[-1])
    assert torch.equal(saved.averaged["embedding.weight"], exported["embedding.weight"])


# ---------------------------------------------------------------------------------------------- warm-up


def test_warm_up_leaves_no_trace(data: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"ema_decay": 0.9, "max_steps": 4}
    cold = make_trainer(tiny_config(**config, warmup_steps=0), data, tmp_path / "cold")
    warm = make_trainer(tiny_config(**config, warmup_steps=3), data, tmp_path / "warm")
    before = final_weights(warm)
    warm.stepper.warm_up()
    assert_same(warm, before)
    assert not any(parameter.grad is not None for parameter in warm.model.parameters())
    assert cold.fit().tokens == warm.fit().tokens
    assert rows(tmp_path / "cold") == rows(tmp_path / "warm")
    assert_same(warm, final_weights(cold))


# ---------------------------------------------------------------------------------------------- going on

RESUMED: dict[str, Any] = {"ema_decay": 0.9, "warmup_steps": 2, "log_every": 5, "max_steps": 12, "grad_clip": 1.0}


@pytest.mark.parametrize(("network", "stop"), [("flat", 7), ("two-level", 4)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    network: str, stop: int, data: Path, tmp_path: Path, clock: Clock
) -> None:
    """Stopped by Ctrl-C within a window of the metrics or at its end; all is equal bit for bit."""
    config = tiny_config(network, **RESUMED)
    whole = make_trainer(config, data, tmp_path / "whole")
    whole.fit()
    first = clock.drive(make_trainer(config, data, tmp_path / "run"), interrupt_at(stop))
    assert first.fit().step == stop + 1
    assert first.stopped_early
    second = make_trainer(config, data, tmp_path / "run")
    assert second.fit(resume=True).step == 12
    assert not second.stopped_early
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert rows(tmp_path / "run", "validation")[-1] == rows(tmp_path / "whole", "validation")[-1]
    assert_same(second, final_weights(whole))
    assert (second.progress.tokens, second.progress.bytes) == (whole.progress.tokens, whole.progress.bytes)
    # there is nothing left to do
    third = make_trainer(config, data, tmp_path / "run")
    assert third.fit(resume=True) == second.progress
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


class CrashError(Exception):
    """Something unforeseen."""


PROCESSOR = {"max_steps": 0, "max_seconds": 11 * 0.25, "clock": "processor"}


@pytest.mark.parametrize(
    "budget", [{"max_steps": 11}, {"max_steps": 0, "max_seconds": 11.0, "decay_steps": 5}, PROCESSOR]
)
def test_a_crashed_run_goes_on_from_its_last_checkpoint(
    budget: dict[str, Any], data: Path, tmp_path: Path, clock: Clock
) -> None:
    """Under a clock that ticks evenly a timed schedule goes on exactly, too."""
    config = tiny_config(**{**RESUMED, **budget, "checkpoint_every": 4.0, "validate_every": 3.0})
    whole = clock.drive(make_trainer(config, data, tmp_path / "whole"))
    whole.fit()

    def crash(step: int) -> None:
        if step == 6:
            raise CrashError

    with pytest.raises(CrashError):
        clock.drive(make_trainer(config, data, tmp_path / "run"), crash).fit()
    assert [row["step"] for row in rows(tmp_path / "run")] == [5]
    second = clock.drive(make_trainer(config, data, tmp_path / "run"))
    second.fit(resume=True)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "run")] == [5, 10, 11]
    assert_same(second, final_weights(whole))


def test_a_larger_budget_goes_on_from_the_end(data: Path, tmp_path: Path) -> None:
    """Without decay that is one long run, and the row of the steps that were left over is written anew."""
    settings = {**RESUMED, "decay_fraction": 0.0}
    make_trainer(tiny_config(**settings), data, tmp_path / "whole").fit()
    make_trainer(tiny_config(**{**settings, "max_steps": 8}), data, tmp_path / "run").fit()
    assert [row["step"] for row in rows(tmp_path / "run")] == [5, 8]
    make_trainer(tiny_config(**settings), data, tmp_path / "run").fit(resume=True)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_resuming_nothing_is_a_new_run(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_config(max_steps=2), data, tmp_path)
    assert trainer.fit(resume=True).step == 2
    assert len(rows(tmp_path)) == 2


def test_another_model_is_refused_in_words(data: Path, tmp_path: Path) -> None:
    make_trainer(tiny_config("flat", max_steps=1), data, tmp_path).fit()
    with pytest.raises(BytegolfError, match=r"step_00000001 does not fit the model: resume") as error:
        make_trainer(tiny_config("one-level", max_steps=2), data, tmp_path).fit(resume=True)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------- ending


def test_only_training_is_on_the_clock(
    data: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps of a second each fill a budget of ten seconds, whatever validation (100 s) and saving (1000 s) take."""

    def slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            clock.now += seconds
            return function(*arguments, **options)

        return wrapped

    monkeypatch.setattr(loop, "score", slow(score, 100.0))
    monkeypatch.setattr(store, "save", slow(store.save, 1000.0))
    config = tiny_config(max_steps=0, max_seconds=10.0, validate_every=2.0, checkpoint_every=3.0, warmup_steps=1)
    trainer = clock.drive(make_trainer(config, data, tmp_path))
    progress = trainer.fit()
    assert (progress.step, progress.seconds) == (10, 10.0)
    assert [row["step"] for row in rows(tmp_path, "validation")] == [2, 3, 5, 6, 8, 9, 10]
    assert clock.now == 100 + 10 + 7 * 100 + 4 * 1000
    assert [row["lr"] for row in rows(tmp_path)] == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])


def test_on_the_processor_s_clock_a_neighbour_costs_nothing(data: Path, tmp_path: Path, clock: Clock) -> None:
    """A quarter of a second of computing in every second that passes: four times as many steps, the schedule too."""
    settings = {"max_steps": 0, "max_seconds": 2.0, "decay_fraction": 0.5}
    for name, steps in (("wall", 2), ("processor", 8)):
        trainer = clock.drive(make_trainer(tiny_config(**settings, clock=name), data, tmp_path / name))  # type: ignore[arg-type]
        assert (trainer.fit().step, trainer.progress.seconds) == (steps, 2.0)
    assert [row["lr"] for row in rows(tmp_path / "processor")] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_the_processor_s_clock_is_the_process_own(data: Path, tmp_path: Path) -> None:
    import time

    trainer = make_trainer(tiny_config(max_steps=3, clock="processor", warmup_steps=1), data, tmp_path)
    original = trainer.gradients
    trainer.gradients = lambda *given: (time.sleep(0.2), original(*given))[1]  # type: ignore[func-returns-value, method-assign]
    begun = time.process_time()
    seconds = trainer.fit().seconds
    assert 0 < seconds <= time.process_time() - begun


def test_the_processor_s_clock_is_for_the_processor(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BytegolfError, match=r"say nothing about training on meta: set train.clock to 'wall'"):
        make_trainer(tiny_config(clock="processor"), data, tmp_path, DistributedContext(0, 1, torch.device("meta")))


def test_a_wall_clock_budget_ends(data: Path, tmp_path: Path) -> None:
    progress = make_trainer(tiny_config(max_steps=0, max_seconds=0.3, warmup_steps=1), data, tmp_path).fit()
    assert progress.seconds >= 0.3
    assert progress.step >= 1
    assert rows(tmp_path)[-1]["step"] == progress.step


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(data: Path, tmp_path: Path, clock: Clock) -> None:
    before = signal.getsignal(signal.SIGINT)
    trainer = clock.drive(make_trainer(tiny_config(), data, tmp_path), interrupt_at(2))
    assert trainer.fit().step == 3
    assert trainer.stopped_early
    assert [path.name for path in store.checkpoints(tmp_path / "checkpoints")] == ["step_00000003"]
    assert len(rows(tmp_path, "validation")) == 1
    assert trainer.progress.validation_bpb is not None
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_the_last_step_is_no_early_stop(data: Path, tmp_path: Path, clock: Clock) -> None:
    trainer = clock.drive(make_trainer(tiny_config(), data, tmp_path), interrupt_at(5))
    assert trainer.fit().step == 6
    assert not trainer.stopped_early


def test_a_second_ctrl_c_ends_at_once(data: Path, tmp_path: Path, clock: Clock) -> None:
    def twice(step: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        clock.drive(make_trainer(tiny_config(), data, tmp_path), twice).fit()
    assert store.checkpoints(tmp_path / "checkpoints") == []


def steps_saved(run: Path) -> list[int]:
    return [store.step_of(path) for path in store.checkpoints(run / "checkpoints")]


def test_a_nan_loss_ends_in_words_and_spoils_no_checkpoint(data: Path, tmp_path: Path, clock: Clock) -> None:
    """Between two rows of the metrics, with a checkpoint due before the next row."""
    trainer = make_trainer(tiny_config(log_every=10, checkpoint_every=2.0, max_steps=20), data, tmp_path)

    def poison(step: int) -> None:
        if step == 3:
            torch.nn.init.constant_(trainer.model.embedding.weight, math.nan)

    clock.drive(trainer, poison)
    with pytest.raises(BytegolfError, match=r"^the loss is not finite at step 4: .*lower optim\.muon_lr"):
        trainer.fit()
    assert steps_saved(tmp_path) == [2]
    saved = store.load(store.checkpoints(tmp_path / "checkpoints")[-1])
    assert all(tensor.isfinite().all() for tensor in (saved.model | saved.optimizer).values())
    assert [row["step"] for row in rows(tmp_path, "alarm")] == [4]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_weights_that_break_in_the_last_step_are_not_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss was still finite."""
    trainer = make_trainer(tiny_config(max_steps=3, validate_tokens=0), data, tmp_path)
    original = trainer.optimizer.step

    def step(factor: float, number: int) -> None:
        original(factor, number)
        if number == 2:
            torch.nn.init.constant_(trainer.model.embedding.weight, math.inf)

    monkeypatch.setattr(trainer.optimizer, "step", step)
    with pytest.raises(BytegolfError, match="weights are not finite after step 3"):
        trainer.fit()
    assert steps_saved(tmp_path) == []


def test_a_full_disk_ends_in_words_and_the_earlier_checkpoint_stays(
    data: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_config(checkpoint_every=2.0), data, tmp_path)
    full = False
    original = files.write_atomically

    def fill_up(step: int) -> None:
        nonlocal full
        full = step >= 2

    def write(path: Path, fill: Any) -> None:
        def refuse(file: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        original(path, refuse if full else fill)

    monkeypatch.setattr(files, "write_atomically", write)
    with pytest.raises(BytegolfError, match=r"cannot write .*the disk is full"):
        clock.drive(trainer, fill_up).fit()
    assert steps_saved(tmp_path) == [2]
    assert store.load(store.checkpoints(tmp_path / "checkpoints")[0]).progress["step"] == 2


def test_the_best_checkpoint_is_kept_by_its_own_validation(
    data: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([3.0, 1.0, 2.0, 2.5, 2.25, 2.0])
    fake: Callable[..., Any] = lambda *a, **o: Score(next(scores) * math.log(2), 1, 1)  # noqa: E731
    monkeypatch.setattr(loop, "score", fake)
    config = tiny_config(checkpoint_every=1.0, validate_every=1.0, keep_checkpoints=1)
    clock.drive(make_trainer(config, data, tmp_path)).fit()
    assert steps_saved(tmp_path) == [2, 6]


def test_an_old_validation_is_not_taken_for_that_of_later_weights(data: Path, tmp_path: Path, clock: Clock) -> None:
    """Checkpoints without a validation of their own have none to be the best by."""
    config = tiny_config(checkpoint_every=2.0, keep_checkpoints=9)
    clock.drive(make_trainer(config, data, tmp_path), interrupt_at(0)).fit()
    clock.drive(make_trainer(config, data, tmp_path)).fit(resume=True)
    found = [store.load(path).progress for path in store.checkpoints(tmp_path / "checkpoints")]
    assert [(p["step"], p["validation_bpb"] is None) for p in found] == [(1, False), (3, True), (5, True), (6, False)]


# ---------------------------------------------------------------------------------------------- alarms


def with_rates(trainer: Trainer, rate: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """The trainer, whose router seems to open ``rate(step)`` chunks a position."""
    original = trainer.stepper.gradients

    def gradients(*given: Any) -> StepFigures:
        found = original(*given)
        return found._replace(levels=torch.full_like(found.levels, rate(trainer.progress.step)))

    monkeypatch.setattr(trainer.stepper, "gradients", gradients)
    return trainer


def test_a_router_that_stays_collapsed_raises_one_alarm(
    data: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three bad rows and a recovery raise none; five do, also where the run was resumed among them."""

    def rate(step: int) -> float:
        return 0.2 if step == 3 else 0.003

    config: Config = tiny_config(max_steps=12)
    first = with_rates(make_trainer(config, data, tmp_path), rate, monkeypatch)
    clock.drive(first, interrupt_at(6)).fit()
    assert rows(tmp_path, "alarm") == []
    with_rates(make_trainer(config, data, tmp_path, quiet=False), rate, monkeypatch).fit(resume=True)
    (alarm,) = rows(tmp_path, "alarm")
    assert alarm["step"] == 9
    assert "almost no chunks" in alarm["text"]
    assert capsys.readouterr().err.count("warning: the router of level 0 opens almost no chunks") == 1


# ---------------------------------------------------------------------------------------------- accelerators


def test_bf16_learns_like_fp32(data: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        make_trainer(tiny_config(precision=precision, max_steps=4), data, tmp_path / precision).fit()
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), rel=0.03)
    assert losses(tmp_path / "bf16") != losses(tmp_path / "fp32")


@pytest.mark.gpu
@pytest.mark.parametrize("network", ["flat", "two-level"])
def test_cuda_in_bf16_learns_like_the_cpu(network: str, data: Path, tmp_path: Path) -> None:
    place = DistributedContext(0, 1, torch.device("cuda:0"))
    config: dict[str, Any] = {"max_steps": 3, "ema_decay": 0.9, "grad_clip": 1.0, "warmup_steps": 1}
    make_trainer(tiny_config(network, **config), data, tmp_path / "cpu", HERE).fit()
    trainer = make_trainer(tiny_config(network, precision="bf16", **config), data, tmp_path / "cuda", place)
    trainer.fit()
    assert isinstance(trainer.optimizer, Optimizer)
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=0.05)
    again = make_trainer(tiny_config(network, precision="bf16", **config), data, tmp_path / "cuda", place)
    assert again.fit(resume=True) == trainer.progress
