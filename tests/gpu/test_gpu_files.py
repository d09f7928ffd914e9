"""From a GPU to files and back: artifacts, GPTQ's calibration, whole commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import good
from gpu_runs import CUDA, PRETENDED, RTOL, RunOf, losses, on_both, run_of, tiny, trainer_on  # noqa: F401

import bytegolf
from bytegolf.artifact.gptq import sample_windows, second_moments
from bytegolf.artifact.pack import read_artifact

pytestmark = pytest.mark.gpu


def test_an_artifact_is_the_same_wherever_its_weights_were(tiny_data: Path, tmp_path: Path) -> None:
    gpu, cpu = (trainer_on(device, "cpu-demo", tiny_data) for device in ("cuda", "cpu"))
    losses(gpu)
    cpu.model.load_state_dict({name: tensor.cpu() for name, tensor in gpu.model.state_dict().items()})
    gpu.export(tmp_path / "gpu.bgolf")
    cpu.export(tmp_path / "cpu.bgolf")
    one, two = (read_artifact(tmp_path / f"{name}.bgolf").state for name in ("gpu", "cpu"))
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_gptq_sees_what_it_sees_on_the_cpu(run_of: RunOf) -> None:  # noqa: F811
    from bytegolf.data.dataset import open_split

    windows = sample_windows(open_split(run_of("cpu-demo").data, "byte260", "train", 260), 64, 256)
    moments = []
    for model in (each.module for each in on_both(run_of("cpu-demo"))):
        names = {name.removesuffix(".weight") for name, _ in model.named_parameters() if "mixer" in name}
        wanted = {f"{name}.weight" for name in names}
        moments.append(second_moments(model, windows, wanted))
    cpu, gpu = moments
    assert cpu.keys() == gpu.keys()
    for name, expected in cpu.items():
        torch.testing.assert_close(gpu[name].cpu(), expected, rtol=20 * RTOL, atol=20 * RTOL * float(expected.max()))


def test_whole_commands(tiny_data: Path, tmp_path: Path) -> None:
    """Train with GPTQ at the end, resume, export again, score, sample."""
    preset = "study2-byte"
    options = ("export.gptq=true", "export.gptq_tokens=256", "export.gptq_seconds=0", "train.validate_every=0")
    changes = [*tiny(preset), "train.device=cuda", "train.max_steps=3", *options]
    run, data = tmp_path / "run", ("--data", tiny_data)
    trained = good("train", preset, *changes, *data, "--out", run, "--json").json
    assert trained["bpb"] == pytest.approx(bytegolf.load(run, device="cpu").evaluate(tiny_data).bpb, rel=0.02)
    good("train", preset, *changes, "train.max_steps=4", *data, "--out", run, "--resume")
    good("export", run, "--out", tmp_path / "again.bgolf", "export.gptq=false")
    good("eval", tmp_path / "again.bgolf", *data, "--device", "cuda", "--stride", 32, "--limit", 256)
    good("sample", run, "The", *data, "--bytes", 5)


def test_a_model_is_loaded_onto_the_gpu_and_saved_from_it(run_of: RunOf, tmp_path: Path) -> None:  # noqa: F811
    _, gpu = on_both(run_of("cpu-demo"))
    assert {tensor.device for tensor in gpu.module.state_dict().values()} == {CUDA}
    assert gpu.save(tmp_path / "same.bgolf").read_bytes() == gpu.path.read_bytes()
    with torch.no_grad():
        next(gpu.module.parameters()).mul_(1.01)
    assert gpu.save(tmp_path / "other.bgolf").read_bytes() != gpu.path.read_bytes()
    assert PRETENDED or torch.cuda.memory_allocated() > 0
