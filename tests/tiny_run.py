"""Training runs of a second: made-up text, tiny models, and a Trainer as `bytegolf train` sets it up."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_model

from bytegolf.config import Config, DataConfig, EvalConfig, OptimConfig, TrainConfig
from bytegolf.data.dataset import TokenStream, shard_paths
from bytegolf.data.dataset_writer import ShardWriter
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.distributed import DistributedContext
from bytegolf.progress import Reporter
from bytegolf.training.loop import Trainer
from bytegolf.training.metrics_file import read_metrics
from bytegolf.training.setup import TrainingData

WORDS = ["the", "of", "state", "message", "people", "1789", "café", "a", "unconstitutionally", "in", "to", "—", "and"]
OPTIM = OptimConfig(muon_lr=0.01, embed_lr=0.02, scalar_lr=0.01, muon_momentum_steps=8)
HERE = DistributedContext(0, 1, torch.device("cpu"))


def text(documents: int, seed: int) -> list[str]:
    """Documents of random words; every fourth is a run of one letter, which a router cuts otherwise than words."""
    chance = random.Random(seed)

    def words() -> str:
        return " ".join(WORDS[int(chance.random() * len(WORDS))] for _ in range(40))

    return [words() if number % 4 else "a" * 60 for number in range(documents)]


def write_stream(folder: Path, split: str, documents: int, seed: int) -> TokenStream:
    """A split of made-up documents as a shard in ``folder``."""
    tokenizer = ByteTokenizer()
    with ShardWriter(folder, split) as writer:
        for document in text(documents, seed):
            writer.write(np.array([tokenizer.BOS], dtype=np.uint16))
            writer.write(tokenizer.encode(document))
    return TokenStream(shard_paths(folder, split), 260)


def tiny_config(network: str = "one-level", optim: OptimConfig = OPTIM, **train: Any) -> Config:
    """Four sequences of 32 a step, 6 steps, no periodic work; ``train`` overrides fields of TrainConfig."""
    settings: dict[str, Any] = {
        "seq_len": 32,
        "batch_tokens": 128,
        "max_steps": 6,
        "warmup_steps": 0,
        "log_every": 1,
        "validate_every": 0.0,
        "validate_tokens": 256,
        "checkpoint_every": 0.0,
        "precision": "fp32",
        "device": "cpu",
        **train,
    }
    model = tiny_model(network)
    return Config("tiny", "a test", model, TrainConfig(**settings), DataConfig(), optim, EvalConfig(batch=4))


def make_trainer(
    config: Config, data: Path, run: Path, world: DistributedContext = HERE, quiet: bool = True
) -> Trainer:
    """A trainer of ``config``'s model on the splits in ``data``, which are made if they are not there."""
    if not shard_paths(data, "train"):
        write_stream(data, "train", 40, seed=1)
        write_stream(data, "val", 8, seed=2)
    train, val = (TokenStream(shard_paths(data, split), 260) for split in ("train", "val"))
    return Trainer(config, TrainingData(ByteTokenizer(), train, val), run, world, Reporter(quiet=quiet))


def stop_after(trainer: Trainer, steps: int) -> None:
    """Train for so many steps of the schedule, as Ctrl-C would end it."""
    original = trainer.prepare_step

    def prepare() -> None:
        original()
        trainer.interrupt.asked = trainer.progress.step + 1 >= steps

    trainer.prepare_step = prepare  # type: ignore[method-assign]
    assert trainer.fit().step == steps
    assert trainer.stopped_early


def rows(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The rows of a run's metrics of one kind, without what depends on the clock."""
    timed = ("seconds", "bytes_per_second")
    found = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == kind]
    return [{key: value for key, value in row.items() if key not in timed} for row in found]


def losses(run: Path) -> list[float]:
    """The training losses of a run that logs every step."""
    return [row["loss"] for row in rows(run)]
