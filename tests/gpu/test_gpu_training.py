"""Training on a GPU: the same losses as on the CPU, with every preset and all that a step may have."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import SUBWORDS
from gpu_runs import BIG, CUDA, ROOTS, RTOL, losses, trainer_on

from bytegolf.config import levels

pytestmark = pytest.mark.gpu

ROUTERS = ("cosine", "topk", "whitespace", "stride", "random", "bpe", "entropy")

STEP = {
    "clipping, averages, small batches": ("train.grad_clip=0.5", "train.ema_decay=0.9", "train.micro_batch=3"),
    "documents apart": ("model.reset_at_bos=true",),
    "quantised weights": ("train.qat_from=0.01", "train.decay_fraction=1", "train.max_steps=4", *BIG),
    "a fixed capacity": ("model.network.router.capacity=fixed",),
    "capacities in buckets": ("model.network.router.capacity=bucketed",),
    "tables": ("model.network.chunk_hash.dim=8", "model.ngrams.longest=3", "model.ngrams.bits=8"),
    "a router's losses": (
        "model.network.router.cosine.noise=1",
        "model.network.router.cosine.policy_weight=0.01",
        "model.network.router.cosine.guide_weight=0.5",
        "model.network.router.start_target=2",
    ),
    "narrow heads": ("model.network.encoder.heads=4", "model.network.encoder.kv_heads=2", "model.reset_at_bos=true"),
    "a first step that is undone": ("train.warmup_steps=1",),
}


@pytest.mark.parametrize("preset", ROOTS)
def test_losses_are_the_cpus(preset: str, tiny_data: Path) -> None:
    """In fp32, and nearly in bf16, there with a fixed capacity; all tensors stay on the device."""
    gpu, expected = trainer_on("cuda", preset, tiny_data), losses(trainer_on("cpu", preset, tiny_data))
    assert losses(gpu) == pytest.approx(expected, rel=RTOL)
    assert {tensor.device for tensor in gpu.model.state_dict().values()} == {CUDA}
    assert all(tensor.device == CUDA or not tensor.ndim for tensor in gpu.optimizer.state().values())
    trainer = trainer_on("cuda", preset, tiny_data, "train.precision=bf16")
    if levels(trainer.config.model.network):
        trainer.model.set_capacity("fixed")
    assert losses(trainer, 1) == pytest.approx(expected[:1], rel=0.05)


@pytest.mark.parametrize("what", STEP)
def test_all_that_a_step_may_have(what: str, tiny_data: Path) -> None:
    found, expected = (losses(trainer_on(device, "cpu-demo", tiny_data, *STEP[what]), 4) for device in ("cuda", "cpu"))
    if "noise" in " ".join(STEP[what]):  # drawn by another generator on a GPU
        assert found[0] == pytest.approx(expected[0], rel=0.05)
    else:
        assert found == pytest.approx(expected, rel=5 * RTOL)


@pytest.mark.parametrize("kind", ROUTERS)
def test_every_router(kind: str, tiny_data: Path) -> None:
    changes = (f"model.network.router.kind={kind}", f"model.network.router.bpe.tokenizer={SUBWORDS}")
    found, expected = (losses(trainer_on(device, "cpu-demo", tiny_data, *changes), 2) for device in ("cuda", "cpu"))
    assert found == pytest.approx(expected, rel=5 * RTOL)


@pytest.mark.parametrize("blend", ["previous", "chunk"])
@pytest.mark.parametrize("boundary", ["soft", "hard"])
def test_soft_chunking(blend: str, boundary: str, tiny_data: Path) -> None:
    changes = (f"model.soft.blend={blend}", f"model.soft.boundary={boundary}")
    found, expected = (losses(trainer_on(device, "cpu-soft", tiny_data, *changes), 2) for device in ("cuda", "cpu"))
    assert found == pytest.approx(expected, rel=5 * RTOL)


def test_a_resumed_run_goes_on_as_it_would_have(tiny_data: Path, tmp_path: Path) -> None:
    changes = ("train.ema_decay=0.9", "model.ngrams.longest=3", "model.ngrams.bits=8")
    whole = trainer_on("cuda", "cpu-demo", tiny_data, *changes, folder=tmp_path)
    losses(whole, 2)
    whole.checkpoint()
    expected = losses(whole, 2)
    for device in ("cuda", "cpu"):
        resumed = trainer_on(device, "cpu-demo", tiny_data, *changes, folder=tmp_path)
        assert resumed.resume()
        assert losses(resumed, 2) == pytest.approx(expected, rel=RTOL)


def test_validation_and_what_is_shipped(tiny_data: Path, tmp_path: Path) -> None:
    gpu, cpu = (trainer_on(device, "cpu-demo", tiny_data, "train.ema_decay=0.5") for device in ("cuda", "cpu"))
    for trainer in (gpu, cpu):
        losses(trainer, 2)
    assert gpu.validate() == pytest.approx(cpu.validate(), rel=RTOL)
    assert {tensor.device.type for tensor in gpu.export_state().values()} == {"cpu"}


@pytest.mark.parametrize("preset", ["cpu-demo", "hnet-2stage-L"])
def test_activations_are_computed_again(preset: str, tiny_data: Path) -> None:
    changes = ("train.recompute=true",)
    found, expected = (losses(trainer_on(device, preset, tiny_data, *changes), 2) for device in ("cuda", "cpu"))
    assert found == pytest.approx(expected, rel=5 * RTOL)


def test_adapters_in_place_of_weights(tiny_data: Path, tmp_path: Path) -> None:
    """Trained, checkpointed, resumed, merged into what is shipped."""
    changes = ("train.adapters=2", "optim.adapter_lr=0.01", "train.max_steps=3")
    trainers = [
        trainer_on(device, "cpu-demo", tiny_data, *changes, folder=tmp_path / device) for device in ("cuda", "cpu")
    ]
    found, expected = (losses(trainer, 2) for trainer in trainers)
    assert found == pytest.approx(expected, rel=5 * RTOL)
    trainers[0].checkpoint()
    again = trainer_on("cuda", "cpu-demo", tiny_data, *changes, folder=tmp_path / "cuda")
    assert again.resume()
    assert losses(again, 1) == pytest.approx(losses(trainers[1], 1), rel=5 * RTOL)
    shipped = trainers[0].export_state()
    assert {tensor.device.type for tensor in shipped.values()} == {"cpu"}
