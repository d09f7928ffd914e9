"""Several processes: the same run as one, whatever the chunks; devices and precision."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from commands import small
from processes import LONGEST_WAIT
from tiny_run import HERE, OPTIM, losses, make_trainer, rows, tiny_config
from torch import Tensor

from bytegolf.api import run as training
from bytegolf.api.evaluation import evaluate
from bytegolf.artifact import checkpoint as store
from bytegolf.artifact.loading import load_own
from bytegolf.bpb import Score
from bytegolf.config import Config
from bytegolf.device import has_bf16, pick_device, pick_precision
from bytegolf.distributed import DistributedContext, join
from bytegolf.errors import BytegolfError
from bytegolf.evaluate import score as bpb
from bytegolf.evaluate.score import score, score_group
from bytegolf.ops import native
from bytegolf.results import to_json
from bytegolf.training import optim
from bytegolf.training.loop import Trainer
from bytegolf.training.setup import own

NETWORKS = ("flat", "two-level")
STEPS = 4


def trainer_of(network: str, folder: Path, run: str, world: DistributedContext, steps: int = STEPS) -> Trainer:
    """A trainer of four micro-batches a step on one rank, two on each of two, one on each of four."""
    settings: dict[str, Any] = {"micro_batch": 1, "ema_decay": 0.5, "grad_clip": 1.0, "decay_fraction": 0.0}
    return make_trainer(tiny_config(network, max_steps=steps, **settings), folder / "data", folder / run, world)


def sharded_trainer(folder: Path, run: str, world: DistributedContext, steps: int = STEPS) -> Trainer:
    """The same with AdamW, and with each rank's share of every tensor where there are several."""
    optim = dataclasses.replace(OPTIM, algorithm="adamw", adamw_lr=0.01)
    settings: dict[str, Any] = {"micro_batch": 1, "ema_decay": 0.5, "grad_clip": 1.0, "decay_fraction": 0.0}
    config = tiny_config("paper", optim, parallel="fsdp", recompute=True, max_steps=steps, **settings)
    return make_trainer(config, folder / "data", folder / run, world)


def normalize(matrices: Tensor, steps: int, quintics: str = "same") -> Tensor:
    """In place of Muon's iteration, which in bf16 blows rounding noise up to movements that can be seen."""
    size: Tensor = torch.linalg.matrix_norm(matrices, keepdim=True)
    return matrices / (size + 1e-7) * math.sqrt(matrices.shape[1])


def work(folder: Path) -> None:
    """What one of several processes does: whole runs, half ones, and in the end one of them fails."""
    torch.set_num_threads(1)
    if os.environ["WORLD_SIZE"] == "2":
        port = os.environ["MASTER_PORT"]  # of the group after this one, which must not meet what is left of this one
        os.environ["MASTER_PORT"] = os.environ["JOB_PORT"]
        train_and_score(folder)
        os.environ["MASTER_PORT"] = port
    whole = optim.orthogonalize
    with join("cpu") as world:
        assert world.agree(world.rank + 5.0) == 5
        assert world.total(1.0, world.rank) == [world.size, sum(range(world.size))]
        found = world.collect(["a", "b", "c"][: max(0, 3 - world.rank)])
        assert found == [
            letter for letter, most in zip("abc", (3, 2, 1), strict=True) for _ in range(min(most, world.size))
        ]
        for network in NETWORKS:
            optim.orthogonalize = normalize
            trainer = trainer_of(network, folder, f"{network}-smooth-{world.size}", world)
            chunks: list[list[int]] = []
            trainer.model.register_forward_hook(
                lambda model, inputs, out, found=chunks: found.append([int(t.boundary.sum()) for t in out.traces])
            )
            with native.disabled():  # whose Muon rounds to bf16
                trainer.fit()
            report = {
                "chunks": chunks[: 4 * STEPS // world.size],
                "seconds": trainer.progress.seconds,
                "momenta": sum(momentum.numel() for momentum in trainer.optimizer.muon.momenta.values()),
                "matrices": sum(matrix.numel() for matrix in trainer.optimizer.muon.parameters),
                "validation": trainer.progress.validation_bpb,
            }
            (folder / f"{network}-{world.rank}-of-{world.size}.json").write_text(json.dumps(report))
            optim.orthogonalize = whole
            if world.size == 2:
                trainer_of(network, folder, network, world, steps=2).fit()
        sharded = sharded_trainer(folder, f"sharded-{world.size}", world)
        sharded.fit()
        held = sum(own(parameter).numel() for parameter in sharded.model.parameters())
        moments = sum(own(state["exp_avg"]).numel() for state in sharded.optimizer.adam.state.values())
        told = {"held": held, "moments": moments, "all": sum(p.numel() for p in sharded.model.parameters())}
        (folder / f"sharded-{world.rank}-of-{world.size}.json").write_text(json.dumps(told))
        exported = sharded.export(folder / f"sharded-{world.size}.bgolf")
        assert (exported is not None) == world.leads
        if world.size == 2:
            sharded_trainer(folder, "sharded", world, steps=2).fit()
            with pytest.raises(BytegolfError, match=r"optim\.algorithm=adamw"):
                make_trainer(tiny_config("flat", parallel="fsdp"), folder / "data", folder / "refused", world)
        else:
            sharded_trainer(folder, "sharded-again", world, steps=2).fit()
        if world.rank == world.size - 1:
            if world.size == 2:
                raise BytegolfError("this rank has had enough")
            os.kill(os.getpid(), signal.SIGKILL)
        trainer_of(network, folder, f"broken-{world.size}", world).fit()


def train_and_score(folder: Path) -> None:
    """The whole job as `bytegolf train` does it, in the run folder "job"; each rank tells what it scored of it."""
    scored: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Score:
        found = score_group(*args, **kwargs)
        scored.append(found.tokens)
        return found

    bpb.score_group = counting
    changes = ["data.path=" + json.dumps(str(folder / "prepared")), "train.device=cpu", "train.max_steps=2"]
    config = Config.load("cpu-demo", [*small(), *changes, "eval.batch=2", "eval.unquantised=true"])
    outcome = training.train_run(config, folder / "job", quiet=True)
    bpb.score_group = score_group
    told = json.dumps({"tokens": sum(scored), "outcome": outcome.summary is not None})
    (folder / f"job-{os.environ['RANK']}.json").write_text(told)


@dataclass
class Crew:
    """What processes that worked together left behind."""

    folder: Path
    codes: list[int]
    output: list[str]

    def reports(self, network: str) -> list[dict[str, Any]]:
        """What each rank wrote about its run; the processes' output if one did not come that far."""
        return [self._report(network, rank) for rank in range(len(self.codes))]

    def _report(self, network: str, rank: int) -> dict[str, Any]:
        path = self.folder / f"{network}-{rank}-of-{len(self.codes)}.json"
        assert path.exists(), self.output[rank]
        report: dict[str, Any] = json.loads(path.read_text())
        return report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """With the data that everybody trains on."""
    path = tmp_path_factory.mktemp("crews")
    (path / "prepared").symlink_to(tiny_data)
    trainer_of("flat", path, "unused", HERE)
    return path


def take_part(folder: Path, environment: dict[str, str], output: Path) -> None:
    """``work`` as the process that ``environment`` says, whatever it prints in the file ``output``."""
    os.environ.update(environment)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(folder)


def free_ports(count: int) -> list[str]:
    """Ports that nobody listens on. They are from below those that the system itself gives away, as it may do with one
    of the others between this look and the time when it is used."""
    found: list[str] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(str(port))
    return found


def crew(folder: Path, size: int) -> Crew:
    """Processes that work together, with the environment that `torchrun` gives, but without its supervision.

    They are forked from a process that has done nothing but import: six times torch and the package would take longer
    than what is tested.
    """
    context = multiprocessing.get_context("forkserver")
    # torch imports the last two when an optimiser is made and when a model is cut into shards: a second in each process
    context.set_forkserver_preload([__name__, "torch._dynamo", "torch.distributed.fsdp"])
    ports = free_ports(2)
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[0], "JOB_PORT": ports[1]}
    outputs = [folder / f"output-{rank}-of-{size}.txt" for rank in range(size)]
    processes = [
        context.Process(
            target=take_part, args=(folder, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, outputs[rank])
        )
        for rank in range(size)
    ]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the other files of tests/
            for process in processes:
                process.start()
        for process in processes:  # torch alone would have the others wait for a lost one for half an hour
            process.join(timeout=LONGEST_WAIT)
        codes = [process.exitcode for process in processes]
        assert None not in codes, "a process has not ended"
        return Crew(folder, cast("list[int]", codes), [path.read_text() for path in outputs])
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def pair(folder: Path) -> Crew:
    return crew(folder, 2)


@pytest.fixture(scope="module")
def four(folder: Path) -> Crew:
    return crew(folder, 4)


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The distance of two sets of weights, as a share of their norm."""
    difference = sum(float((found[name] - tensor).double().square().sum()) for name, tensor in expected.items())
    return math.sqrt(difference / sum(float(tensor.double().square().sum()) for tensor in expected.values()))


@pytest.mark.parametrize("network", NETWORKS)
def test_two_or_four_processes_train_as_one_does(
    network: str, pair: Crew, four: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, rates, counts, weights and their average, with gradient accumulation and clipping."""
    monkeypatch.setattr(optim, "orthogonalize", normalize)
    alone = trainer_of(network, pair.folder, f"{network}-alone", HERE)
    with native.disabled():
        alone.fit()
    one = rows(pair.folder / f"{network}-alone")
    assert len(one) == STEPS
    for found in (pair, four):
        seconds = {report["seconds"] for report in found.reports(network)}
        assert len(seconds) == 1  # one clock, so one schedule
        run = pair.folder / f"{network}-smooth-{len(found.codes)}"
        for a, b in zip(one, rows(run), strict=True):
            assert (a["step"], a["tokens"], a["bytes"], a["lr"]) == (b["step"], b["tokens"], b["bytes"], b["lr"])
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["rates"] == pytest.approx(b["rates"], rel=1e-5)
        (path,) = store.checkpoints(run / "checkpoints")
        saved = store.load(path)
        assert saved.progress["validation_bpb"] == pytest.approx(alone.progress.validation_bpb, rel=1e-5)
        assert alone.stepper.average
        assert apart(saved.model, alone.model.state_dict()) < 1e-4
        assert apart(saved.averaged, alone.stepper.average.state()) < 1e-4
        assert apart(saved.optimizer, alone.optimizer.state()) < 1e-4


@pytest.mark.parametrize("network", NETWORKS)
def test_each_process_keeps_its_share_of_the_momenta(network: str, pair: Crew, four: Crew) -> None:
    for found in (pair, four):
        reports = found.reports(network)
        size, matrices = len(reports), reports[0]["matrices"]
        assert sum(report["momenta"] for report in reports) == matrices
        assert max(report["momenta"] for report in reports) < 1.5 * matrices / size


@pytest.mark.parametrize("network", NETWORKS)
def test_every_process_knows_the_whole_score(network: str, pair: Crew, four: Crew) -> None:
    for found in (pair, four):
        assert len({report["validation"] for report in found.reports(network)}) == 1


def test_a_shared_score_is_that_of_one_process_to_the_bit(folder: Path) -> None:
    trainer = trainer_of("two-level", folder, "score", HERE)

    def parts(rank: int, size: int) -> list[Score]:
        kept: list[Any] = []

        class Alone(DistributedContext):
            def collect(self, mine: list[Any]) -> list[Any]:
                kept.extend(mine)
                return mine

        world = Alone(rank, size, torch.device("cpu"))
        score(trainer.model, trainer.data.validation, trainer.data.tokenizer, 32, batch=2, world=world)
        return kept

    whole = score(trainer.model, trainer.data.validation, trainer.data.tokenizer, 32, batch=2)
    for size in (2, 3):
        shares = [parts(rank, size) for rank in range(size)]
        turns = [part for turn in itertools.zip_longest(*shares) for part in turn if part is not None]
        assert sum(turns, Score()) == whole


def test_the_final_score_is_shared_and_that_of_one_process_to_the_bit(pair: Crew) -> None:
    run = pair.folder / "job"
    assert (run / "summary.json").exists(), pair.output
    summary = json.loads((run / "summary.json").read_text())
    told = [json.loads((pair.folder / f"job-{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["outcome"] for each in told] == [True, False]
    assert 0.8 < told[0]["tokens"] / told[1]["tokens"] < 1.25, "each did its half"
    alone = to_json(evaluate(load_own(run, pair.folder / "prepared", "cpu"), pair.folder / "prepared"))
    timed = {"seconds", "bytes_per_second"}
    assert {key: summary[key] for key in alone if key not in timed} == {
        key: value for key, value in alone.items() if key not in timed
    }
    assert alone["boundaries"]["boundaries"] > 0
    assert summary["bpb_unquantised"] != summary["bpb"]


def test_the_ranks_had_different_numbers_of_chunks(pair: Crew) -> None:
    first, second = (report["chunks"] for report in pair.reports("two-level"))
    assert len(first) == len(second) == 2 * STEPS
    for level in range(2):
        assert sum(a[level] != b[level] for a, b in zip(first, second, strict=True)) >= STEPS


@pytest.mark.parametrize("network", NETWORKS)
def test_one_process_goes_on_with_what_two_began(network: str, pair: Crew) -> None:
    """With the real optimiser, whose bf16 makes of other roundings a little more."""
    trainer_of(network, pair.folder, f"{network}-whole", HERE).fit()
    trainer_of(network, pair.folder, network, HERE).fit(resume=True)
    assert losses(pair.folder / network) == pytest.approx(losses(pair.folder / f"{network}-whole"), rel=1e-4)


def test_a_rank_that_fails_or_is_killed_ends_the_others_with_a_sentence(pair: Crew, four: Crew) -> None:
    """Without torchrun's help: the lost connection is noticed, and nobody waits for ever."""
    assert "this rank has had enough" in pair.output[1]
    assert four.codes[-1] == -signal.SIGKILL
    for found in (pair, four):
        size = len(found.codes)
        assert all(code != 0 for code in found.codes)
        for rank, said in enumerate(found.output[:-1]):
            assert f"process {rank} of {size} lost the connection to another one" in said


def test_shards_train_as_whole_tensors_do(pair: Crew, four: Crew) -> None:
    """Losses, weights, their average and moments; each rank holds its share (of tiny tensors a little more)."""
    alone = sharded_trainer(pair.folder, "sharded-alone", HERE)
    alone.fit()
    one = rows(pair.folder / "sharded-alone")
    for found in (pair, four):
        size = len(found.codes)
        for told in found.reports("sharded"):
            assert told["held"] < 1.5 * told["all"] / size
            assert told["moments"] == told["held"]
        run = pair.folder / f"sharded-{size}"
        for a, b in zip(one, rows(run), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["rates"] == pytest.approx(b["rates"], rel=1e-5)
        saved = store.load(store.checkpoints(run / "checkpoints")[-1])
        assert saved.progress["validation_bpb"] == pytest.approx(alone.progress.validation_bpb, rel=1e-5)
        assert alone.stepper.average
        assert apart(saved.model, alone.model.state_dict()) < 1e-4
        assert apart(saved.averaged, alone.stepper.average.state()) < 1e-4
        assert apart(saved.optimizer, alone.optimizer.state()) < 1e-3
        assert load_own(pair.folder / f"sharded-{size}.bgolf", device="cpu").config == alone.config


def test_a_sharded_run_goes_on_in_another_number_of_processes(pair: Crew, four: Crew) -> None:
    """What two began, one ends; what four began, one ends."""
    sharded_trainer(pair.folder, "sharded-whole", HERE).fit()
    for run in ("sharded", "sharded-again"):
        sharded_trainer(pair.folder, run, HERE).fit(resume=True)
        assert losses(pair.folder / run) == pytest.approx(losses(pair.folder / "sharded-whole"), rel=1e-4)


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with join("cpu") as world:
        assert world == DistributedContext(0, 1, torch.device("cpu"))
        assert world.leads
        assert world.total(1.5, 2.0) == [1.5, 2.0]
        assert world.agree(3.0) == 3.0
        world.wait()
        model = torch.nn.Linear(2, 2)
        assert world.wrap(model) is model


def test_devices_are_named_or_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(BytegolfError, match="device 'tpu' is not available"):
        pick_device("tpu")
    with pytest.raises(BytegolfError, match="names no device"):
        pick_device("cpu:first")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda:1")
    assert pick_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BytegolfError, match="no device cuda:2, as this machine has 2"):
        pick_device("auto")


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert pick_precision("fp32", cpu) == torch.float32
    assert pick_precision("bf16", cpu) == torch.bfloat16
    assert (pick_precision("auto", cpu) == torch.bfloat16) == has_bf16(cpu)
    assert pick_precision("auto", torch.device("mps")) == torch.float32
