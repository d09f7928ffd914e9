"""Training in shards (FSDP) in two processes, each with a pretended device of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_runs import losses, tiny, trainer_on

RANKS = Path(__file__).with_name("ranks.py")
BUDGET = ("train.max_seconds=0", "train.max_steps=2", "train.decay_fraction=0")


def test_shards_stay_on_their_devices(tiny_data: Path, tmp_path: Path) -> None:
    preset = "hnet-2stage-L"
    settings = ("train.device=cuda", *tiny(preset), *BUDGET, "train.parallel=fsdp")
    command = [sys.executable, str(RANKS), str(tmp_path / "rendezvous"), preset, str(tiny_data), *settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 2
    alone = losses(trainer_on("cpu", preset, tiny_data, *BUDGET))
    for one in found:
        assert one["places"] == ["cuda:0"]
        assert one["losses"] == pytest.approx(alone, rel=1e-4)
        assert "same device" in one["caught"]
