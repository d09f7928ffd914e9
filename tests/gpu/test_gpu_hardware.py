"""What only a real GPU can show: compiled training, several GPUs, memory, speed.

``BYTEGOLF_GPU_TESTS=cpu`` tries the tests themselves out on a CPU, where two processes stand for two GPUs.

Each is a process of its own, as a compiler cannot trace the shape checks of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_runs import hardware, tiny

DEVICE = os.environ.get("BYTEGOLF_GPU_TESTS", "cuda")
COUNT = 2 if DEVICE == "cpu" else torch.cuda.device_count()

# a trial on the CPU is not marked gpu, and so not skipped
pytestmark = [hardware, *([pytest.mark.gpu] if DEVICE == "cuda" else [])]
on_two = pytest.mark.skipif(COUNT < 2, reason="needs two devices")
trial = pytest.mark.skipif(DEVICE == "cpu", reason="of a GPU's memory and speed")

STEPS = 6


def train(preset: str, data: Path, *changes: str, count: int = 1, small: bool = True) -> dict[str, Any]:
    """Train in ``count`` processes; losses (means over the ranks), memory in bytes, compiled graphs."""
    budget = ("train.max_seconds=0", f"train.max_steps={STEPS}", "train.log_every=1", "train.decay_fraction=0")
    settings = (f"train.device={DEVICE}", *(tiny(preset) if small else ()), *budget, *changes)
    launch = [sys.executable]
    if count > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    script = Path(__file__).with_name("train_some.py")
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [*launch, str(script), preset, str(data), DEVICE, *settings],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("[rank")]  # torchrun's own words come last
    assert done.returncode == 0, "\n".join(said)[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return found


@pytest.mark.parametrize("preset", ["baseline-sp1024", "study2-byte"])
def test_compiled_training_is_eager_training(preset: str, tiny_data: Path) -> None:
    if DEVICE == "cpu" and preset != "baseline-sp1024":
        pytest.skip("one is enough to try the script out")
    eager, compiled = (train(preset, tiny_data, f"train.compile={how}") for how in ("off", "on"))
    assert compiled["graphs"] >= 1
    assert compiled["losses"] == pytest.approx(eager["losses"], rel=0.02)


@on_two
@pytest.mark.parametrize(("how", "preset"), [("ddp", "cpu-demo"), ("ddp", "hnet-2stage-L"), ("fsdp", "hnet-2stage-L")])
def test_two_devices_train_what_one_does(how: str, preset: str, tiny_data: Path) -> None:
    alone = train(preset, tiny_data)
    both = train(preset, tiny_data, f"train.parallel={how}", count=2)
    assert both["losses"] == pytest.approx(alone["losses"], rel=0.03)


@trial
def test_memory_is_what_a_plan_says_and_does_not_grow(tiny_data: Path) -> None:
    from bytegolf.config import Config
    from bytegolf.tools.plan.prediction import plan

    changes = ["data.tokenizer=byte260", "train.batch_tokens=65536", "train.micro_batch=0", "train.compile=off"]
    found = train("study1-byte", tiny_data, *changes, small=False)
    expected = plan(Config.load("study1-byte", changes), "h100", 1, None, 0).memory_bytes.total
    assert 0.4 * expected < found["peak"] < 1.6 * expected
    assert max(found["memory"][2:]) <= 1.02 * min(found["memory"][2:])


@trial
def test_bf16_is_faster_than_fp32(tiny_data: Path) -> None:
    from bytegolf.config import Config

    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import train_step

    seconds = []
    for precision in ("bf16", "fp32"):
        changes = [f"train.precision={precision}", "train.batch_tokens=65536", "train.compile=off"]
        config = Config.load("study1-byte", changes)
        seconds.append(train_step.measure(config, 5, None, None, False, "wall")["step_seconds"])
    assert seconds[0] < seconds[1]
