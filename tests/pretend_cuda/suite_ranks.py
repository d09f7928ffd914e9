"""Training in shards (FSDP) in two processes, each with a pretended device of its own."""

from __future__ import annotations

import json
import os
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
    ranks = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
        )
        for rank in range(2)
    ]
    found = [json.loads(rank.communicate()[0]) for rank in ranks]
    alone = losses(trainer_on("cpu", preset, tiny_data, *BUDGET))
    for one in found:
        assert one["places"] == ["cuda:0"]
        assert one["losses"] == pytest.approx(alone, rel=1e-4)
        assert "same device" in one["caught"]
