"""``bytegolf.Trainer``: a loop of one's own trains exactly what `bytegolf train` trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import good, small

import bytegolf
from bytegolf.artifact.pack import read_artifact
from bytegolf.errors import BytegolfError
from bytegolf.training.metrics_file import read_metrics

EVERYTHING = [
    "model.ngrams.longest=3",
    "model.ngrams.bits=8",
    "model.network.chunk_hash.dim=8",
    "model.network.router.start_target=2",
    "model.network.router.cosine.noise=1",
    "model.network.router.cosine.policy_weight=0.01",
    "model.network.router.cosine.guide_weight=0.5",
    "train.grad_clip=0.5",
    "train.ema_decay=0.9",
    "train.qat_from=0.3",
    "train.lr_warmup_steps=2",
    "train.micro_batch=3",
    "train.warmup_steps=1",
    "train.log_every=1",
]
"""All that a step may have: tables with sparse gradients, a schedule of chunks and of a guide, draws, clipping, QAT."""


@pytest.fixture(scope="module")
def known(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `bytegolf train`."""
    folder = tmp_path_factory.mktemp("known") / "run"
    good("train", "cpu-demo", *small(), *EVERYTHING, "--data", tiny_data, "--out", folder)
    return folder


def trainer_of(data: Path, *more: str, folder: Path | None = None) -> bytegolf.Trainer:
    return bytegolf.Trainer("cpu-demo", data, overrides=[*small(), *EVERYTHING, *more], folder=folder)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]


def shipped(run: Path) -> dict[str, torch.Tensor]:
    return read_artifact(run / "artifact.bgolf").state


def assert_same_weights(one: Path, other: Path) -> None:
    expected = shipped(other)
    assert shipped(one).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in shipped(one).items())


def test_a_loop_of_one_s_own_has_the_losses_and_the_artifact_of_the_command(
    known: Path, tiny_data: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny_data)
    results = [trainer.step(batch) for batch in trainer]
    assert [result.loss for result in results] == losses(known)
    rows = [row for row in read_metrics(known / "metrics.jsonl") if row["kind"] == "train"]
    for result, row in zip(results, rows, strict=True):
        assert (result.step, result.lr, result.rates) == (row["step"], row["lr"], row["rates"])
        assert result.bits_per_byte == pytest.approx(row["bpb"], rel=1e-12)
    assert (trainer.progress.tokens, trainer.progress.bytes) == (rows[-1]["tokens"], rows[-1]["bytes"])
    assert trainer.save(tmp_path / "mine") == tmp_path / "mine"
    assert_same_weights(tmp_path / "mine", known)
    model = bytegolf.load(tmp_path / "mine", precision="fp32")
    assert model.score("The people.").bpb == bytegolf.load(known, precision="fp32").score("The people.").bpb
    with pytest.raises(BytegolfError, match="already holds a run"):
        trainer.save(tmp_path / "mine")


def test_so_has_a_loop_of_single_parts_and_of_a_backward_pass_of_one_s_own(
    known: Path, tiny_data: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny_data)
    found = []
    while not trainer.done:
        trainer.prepare_step()
        batch = trainer.next_batch()
        if trainer.progress.step % 2:
            figures = trainer.gradients(batch, lambda out, losses: trainer.model.objective(out, losses))
            found.append(float(figures.loss))
            assert trainer.update().loss == found[-1]
            continue
        parts = []
        for ids, targets in zip(torch.split(batch.inputs, 3), torch.split(batch.targets, 3), strict=True):
            out = trainer.model(ids)
            each = trainer.model.losses(out, targets)
            share = len(ids) / len(batch.inputs)
            torch.autograd.backward(trainer.model.objective(out, each) * share)
            parts.append(each.detach().mean() * share)
        found.append(float(sum(parts)))
        assert trainer.update().tokens == 0, "these gradients were not seen to be taken"
    assert found == losses(known)
    trainer.save(tmp_path / "mine")
    assert_same_weights(tmp_path / "mine", known)


def test_it_resumes_from_a_checkpoint_of_its_own(known: Path, tiny_data: Path, tmp_path: Path) -> None:
    first = trainer_of(tiny_data, folder=tmp_path / "run")
    for batch in first:
        if first.step(batch).step == 4:
            break
    with first.untimed():
        assert first.validate() == first.progress.validation_bpb
        first.checkpoint()
    second = trainer_of(tiny_data, folder=tmp_path / "run")
    assert second.resume()
    assert second.progress.step == 4
    for batch in second:
        second.step(batch)
    assert losses(tmp_path / "run") == losses(known)
    second.save(tmp_path / "run")
    assert_same_weights(tmp_path / "run", known)


def test_tables_that_start_from_counts_resume_too(tiny_data: Path, tmp_path: Path) -> None:
    """What is left out of each fold is in no checkpoint: it is counted again."""
    counts = ("model.ngrams.start=counts", "model.ngrams.folds=2", "train.max_steps=4")
    whole, first, second = (trainer_of(tiny_data, *counts, folder=tmp_path / name) for name in ("whole", "cut", "cut"))
    expected = [whole.step(batch).loss for batch in whole]
    found = [first.step().loss, first.step().loss]
    first.checkpoint()
    assert second.resume()
    found += [second.step(batch).loss for batch in second]
    assert found == expected
    zero = trainer_of(tiny_data, "train.max_steps=1")
    assert zero.step().loss != expected[0]


def test_another_objective_trains_something_else(known: Path, tiny_data: Path) -> None:
    trainer, found = trainer_of(tiny_data, "train.max_steps=3"), []
    for batch in trainer:
        trainer.prepare_step()
        trainer.gradients(batch, lambda out, losses: losses[:, ::2].mean())
        found.append(trainer.update().loss)
    assert found[0] == losses(known)[0]
    assert found[1:] != pytest.approx(losses(known)[1:3], rel=1e-4)


def test_without_a_folder_nothing_is_kept_and_the_user_is_told_so(tiny_data: Path) -> None:
    trainer = trainer_of(tiny_data, "train.max_steps=1")
    trainer.step()
    assert trainer.done
    assert list(trainer) == []
    with pytest.raises(BytegolfError, match="no folder for checkpoints"):
        trainer.checkpoint()
