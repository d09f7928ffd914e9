"""What a submission's script does: train one configuration, and score the artifact that comes of it.

`bytegolf submit` makes that script of this module and of what it reaches (``bundle``), so it asks for little: no rich,
no command-line library, nothing of a run's folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bytegolf.artifact.loading import load_artifact
from bytegolf.artifact.pack import read_artifact
from bytegolf.config import Config, from_dict
from bytegolf.data.dataset import open_split
from bytegolf.data.tokenizer import SentencePieceTokenizer
from bytegolf.distributed import join
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.modes import ScoringMode
from bytegolf.evaluate.score import Window
from bytegolf.files import make_folder, write_bytes
from bytegolf.training.loop import Trainer
from bytegolf.training.setup import TrainingData

CONFIG = ""
"""The run's configuration in TOML; `bytegolf submit` writes it here."""

ARTIFACT = "artifact.bgolf"
"""The model's file, beside the script or where training puts it."""


class Lines:
    """What is told goes to stderr line by line: a ``Reporter`` without a terminal."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Print a line."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.say(f"warning: {text}")

    def progress(self, text: str, last: bool = False) -> None:
        """Print where things stand."""
        self.say(text)


@dataclass(frozen=True)
class Trained:
    """What training came to."""

    artifact: str
    steps: int
    train_seconds: float
    train_bytes: int


@dataclass(frozen=True)
class Scored:
    """The score of an artifact."""

    val_bpb: float
    val_loss: float
    """nats per token"""
    tokens: int
    bytes: int
    tokens_dropped: int
    """of the split's tail, which fills no window"""
    seconds: float
    precision: str
    bytes_model: int
    seq_len: int
    vocab_size: int


def train(data: Path, out: Path, seed: int | None = None, device: str = "auto") -> Trained | None:
    """Train on the training split in ``data`` and write the artifact and the log into ``out``; None on other ranks."""
    config = from_dict(Config, tomllib.loads(CONFIG))
    settings = dataclasses.replace(
        config.train, seed=config.train.seed if seed is None else seed, device=device, keep_checkpoints=1
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(data)), train=settings)
    text = TrainingData.open(config)
    with join(device) as world:
        make_folder(out)
        trainer = Trainer(config, text, out, world, Lines())
        progress = trainer.fit()
        path = out / ARTIFACT
        exported = trainer.export(path)
        if exported is None:  # on ranks that do not lead
            return None
        if isinstance(text.tokenizer, SentencePieceTokenizer):
            write_bytes(out / "tokenizer.model", text.tokenizer.path.read_bytes())
        seconds = round(progress.seconds + exported.gptq_seconds, 2)
        return Trained(str(path), progress.step, seconds, progress.bytes)


def evaluate(
    artifact: Path, data: Path, *, device: str = "auto", precision: str = "fp32", losses: Path | None = None
) -> Scored:
    """The score of ``artifact`` over the whole validation split in ``data``, each token scored once.

    ``losses``: a .npy file to write, (targets of the split, 2) in float64: nats and bytes of each target in the order
    of the text; NaN for those of a tail that is not scored.

    In fp32 by default: bf16 rounds otherwise in every implementation, which moves a score by up to some 1e-4 from one
    machine to another, and a claim must be reproduced to less.
    """
    started = time.perf_counter()
    opened = load_artifact(read_artifact(artifact), artifact, data, device, precision)
    mode = ScoringMode.configured(opened.config, opened.artifact.primer)
    mode.prepare()
    stream = open_split(data, opened.tokenizer.name, "val", opened.tokenizer.vocab_size)
    found = np.full((len(stream) - 1, 2), np.nan)

    def book(window: Window, nats: NDArray[np.float64], sizes: NDArray[np.int64]) -> None:
        first = window.start + window.length - window.scored
        found[first : first + len(nats)] = np.stack((nats, sizes), 1)

    total = mode.score(opened.model, stream, opened.tokenizer, book=book if losses else None)
    if losses:
        with losses.open("wb") as file:
            np.save(file, found)
    return Scored(
        val_bpb=total.bpb,
        val_loss=total.val_loss,
        tokens=total.tokens,
        bytes=total.bytes,
        tokens_dropped=len(stream) - 1 - total.tokens,
        seconds=round(time.perf_counter() - started, 2),
        precision=str(opened.model.precision).removeprefix("torch."),
        bytes_model=opened.artifact.file_bytes,
        seq_len=opened.config.train.seq_len,
        vocab_size=opened.tokenizer.vocab_size,
    )


def main() -> None:
    """The script's command line; its last line on stdout is a JSON object."""
    parser = argparse.ArgumentParser(description="Train the model of this submission, or score its artifact.")
    modes = parser.add_subparsers(dest="mode", required=True)
    learn = modes.add_parser("train", help="train; write the artifact and the log")
    learn.add_argument("--out", type=Path, default=Path("out"), help="folder to write into")
    learn.add_argument("--seed", type=int, help="another seed than the configured one")
    score = modes.add_parser("eval", help="score the artifact over the whole validation split")
    score.add_argument("--artifact", type=Path, default=Path(__file__).parent / ARTIFACT)
    score.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="fp32", help="fp32 by default")
    score.add_argument("--losses", type=Path, help="write nats and bytes of every target into this .npy file")
    for mode in (learn, score):
        mode.add_argument("--data", type=Path, required=True, help="folder of token shards")
        mode.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    given = parser.parse_args()
    try:
        result: Trained | Scored | None
        if given.mode == "train":
            result = train(given.data, given.out, given.seed, given.device)
        else:
            result = evaluate(
                given.artifact, given.data, device=given.device, precision=given.precision, losses=given.losses
            )
    except BytegolfError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    if result is not None:
        sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")
