"""Good input for every reader, as small as it can be with all of its parts in it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import io
import itertools
import json
import random
import shutil
import struct
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import sentencepiece
import torch
import zstandard
from rich.console import Console

from bytegolf.artifact import checkpoint
from bytegolf.artifact.container import CODERS, MAGIC
from bytegolf.artifact.pack import write_artifact
from bytegolf.artifact.payload import ROW_BITS
from bytegolf.artifact.quantize import Storage
from bytegolf.artifact.run_folder import RunFolder
from bytegolf.config import (
    Config,
    DataConfig,
    HNetConfig,
    ModelConfig,
    NgramConfig,
    RouterConfig,
    StackConfig,
    TrainConfig,
)
from bytegolf.data.dataset import MANIFEST, open_split
from bytegolf.data.dataset_writer import ShardWriter
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.distributed import DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.files import sha256
from bytegolf.infer import format as layout
from bytegolf.infer.codec import Codec
from bytegolf.model.lm import LanguageModel
from bytegolf.progress import Reporter
from bytegolf.tools.study.definition import jobs, read_study
from bytegolf.training.loop import Trainer
from bytegolf.training.setup import TrainingData

__all__ = ["MAGIC"]

SUBWORDS, PIECES = "sp300", 300
WORDS = "the of people and government congress states public café naïve 東京 1789 —"
TEXTS = ("", " ", "the people", "Ⅳ café ﬁ\u00a0x", "a\0b", "東京タワー 🚀", " ".join(WORDS.split() * 9), "x" * 3000)

BYTES = ByteTokenizer()


def model_config(level: bool = True) -> ModelConfig:
    """A tiny H-Net with n-grams, or a tiny flat model."""
    stage = StackConfig(1, 8, heads=2, kv_heads=1)
    if not level:
        return ModelConfig(stage)
    return ModelConfig(HNetConfig(stage, RouterConfig(3.0), stage, stage), ngrams=NgramConfig(3, bits=4, dim=4))


def config(data: Path, level: bool = True) -> Config:
    """A run of three steps of such a model."""
    train = TrainConfig(
        seq_len=16, batch_tokens=32, max_steps=3, warmup_steps=0, precision="fp32", device="cpu", validate_every=0.0,
        validate_tokens=64, checkpoint_every=0.0, log_every=1, ema_decay=0.9,
    )  # fmt: skip
    return Config("tiny", "an input", model_config(level), train, DataConfig(str(data)))


def model(level: bool = True) -> LanguageModel:
    """Its weights, drawn."""
    torch.manual_seed(0)
    return LanguageModel(model_config(level)).eval()


def text(size: int, seed: int = 0) -> str:
    """About ``size`` characters of words."""
    draw = random.Random(seed)
    return " ".join(draw.choices(WORDS.split(), k=size // 5))


# ------------------------------------------------------------------------------------------------------- data


def shard(count: int) -> bytes:
    """A byte260 shard of ``count`` tokens."""
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, count
    ids = np.resize(np.concatenate(([1], BYTES.encode(text(400)))), count).astype("<u2")
    return header.tobytes() + ids.tobytes()


@functools.cache
def sentencepiece_model(identity: bool = False) -> bytes:
    """A model of a few pieces, with the published specials."""
    found = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text(300, seed) for seed in range(30)]),
        model_writer=found, model_type="bpe", vocab_size=PIECES, byte_fallback=True, add_dummy_prefix=False,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, hard_vocab_limit=False, minloglevel=2, num_threads=1,
        normalization_rule_name="identity" if identity else "nmt_nfkc", remove_extra_whitespaces=not identity,
    )  # fmt: skip
    return found.getvalue()


def data_folder(folder: Path) -> dict[str, Any]:
    """A folder with byte260 and subword shards and their tokenizer; its manifest, which is written too."""
    datasets = []
    (folder / "tokenizers").mkdir(parents=True)
    model_path = folder / "tokenizers" / f"fineweb_{PIECES}_bpe.model"
    model_path.write_bytes(sentencepiece_model())
    for name, tokenizer, size in (("byte260", "pure_byte_260", 260), (SUBWORDS, f"sp_bpe_{PIECES}", PIECES)):
        place = folder / "datasets" / f"fineweb10B_{name}"
        for split, count in (("train", 2000), ("val", 400)):
            with ShardWriter(place, split) as writer:
                writer.write(np.resize(np.concatenate(([1], BYTES.encode(text(300)))), count).astype(np.uint16))
        stats = {f"{what}_{split}": 400 for what in ("docs", "tokens", "original_bytes") for split in ("train", "val")}
        datasets.append(
            {
                "name": f"fineweb10B_{name}",
                "tokenizer_name": tokenizer,
                "path": f"datasets/fineweb10B_{name}",
                "vocab_size": size,
                "sha256": {path.name: sha256(path) for path in sorted(place.iterdir())},
                "stats": {"files_train": 1, "files_val": 1, **stats},
            }
        )
    subwords = {"name": f"sp_bpe_{PIECES}", "kind": "sentencepiece_bpe", "vocab_size": PIECES}
    subwords |= {"model_path": f"tokenizers/{model_path.name}", "sha256": sha256(model_path)}
    tokenizers = [{"name": "pure_byte_260", "kind": "pure_byte", "vocab_size": 260}, subwords]
    manifest = {"version": 1, "datasets": datasets, "tokenizers": tokenizers}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return manifest


SPECS: tuple[list[dict[str, Any]], ...] = (
    [{"name": "sp_bpe_1024", "dataset_suffix": "sp1024", "vocab_size": 1024}, {"kind": "byte"}],
    [
        {
            "name": "own",
            "kind": "sentencepiece",
            "vocab_size": 500,
            "model_prefix": "own_500",
            "reuse_model_path": "own.model",
            "tokenizer_train_docs": 10,
            "trainer_overrides": {"character_coverage": 0.99},
        }
    ],
)


def sources(folder: Path) -> list[bytes]:
    """Documents in every form, behind its number."""
    plain = "\n\n".join(text(200, seed) for seed in range(4)).encode()
    lines = b"".join(json.dumps({"text": text(100, seed), "n": seed}).encode() + b"\n" for seed in range(4))
    table = pyarrow.table({"text": [text(100, seed) for seed in range(6)], "n": list(range(6))})
    pyarrow.parquet.write_table(table, folder / "some.parquet")
    packed = gzip.compress(lines, mtime=0), zstandard.ZstdCompressor().compress(lines)
    forms = (plain, lines, *packed, (folder / "some.parquet").read_bytes())
    return [bytes([number]) + form for number, form in enumerate(forms)]


# ------------------------------------------------------------------------------------------------------- models


def artifacts(folder: Path) -> list[bytes]:
    """A model by every coder, with every quantiser."""
    schemes = itertools.cycle([Storage(quantizer, group=group) for quantizer in ROW_BITS for group in (1, 2)])
    found = []
    for coder in CODERS:
        for level in (True, False):
            state = model(level).state_dict()
            plan = {
                name: Storage("fp32") if tensor.ndim < 2 else next(schemes) if len(tensor) % 2 == 0 else Storage("fp16")
                for name, tensor in state.items()
            }
            path = folder / "made.bgolf"
            made = config(Path("data"), level)
            write_artifact(path, state, made, BYTES.identity(), {"steps": 3}, plan, coder)
            found.append(path.read_bytes())
    return found


def run_folder(folder: Path, files: Sequence[str]) -> list[list[bytes]]:
    """A run with one checkpoint, of step 2 of 3; its files and, among them, metrics.jsonl."""
    data = folder / "data"
    data_folder(data)
    _trainer(folder, 2).fit()
    RunFolder(folder).config.write_bytes(config(data).to_toml().encode())
    place = only_checkpoint(folder)
    return [[(place / name if (place / name).exists() else folder / name).read_bytes() for name in files]]


def only_checkpoint(folder: Path) -> Path:
    """The checkpoint of step 2; whatever else lies beside it is deleted."""
    place = checkpoint.path_of(folder / "checkpoints", 2)
    place.mkdir(parents=True, exist_ok=True)
    for path in place.parent.iterdir():
        if path != place:
            shutil.rmtree(path)
    return place


def _trainer(folder: Path, steps: int) -> Trainer:
    made = config(folder / "data")
    made = dataclasses.replace(made, train=dataclasses.replace(made.train, max_steps=steps))
    train, val = (open_split(folder / "data", "byte260", split, 260) for split in ("train", "val"))
    world = DistributedContext(0, 1, torch.device("cpu"))
    return Trainer(made, TrainingData(BYTES, train, val), folder, world, Reporter(quiet=True))


def resume(folder: Path) -> None:
    """Go on with the run in ``folder`` for its last step."""
    _trainer(folder, 3).fit(resume=True)


def codec() -> Codec:
    """A codec with a tiny flat model."""
    return Codec(model(level=False), bytes(32), 16)


def compressed(codec: Codec) -> list[bytes]:
    """Files: empty, text in a few streams, noise (a stored block), several windows."""
    found = []
    for data, streams, stride in (
        (b"", 0, 0),
        (text(90).encode(), 3, 0),
        (random.Random(0).randbytes(50), 2, 0),
        (b"a" * 70, 1, 5),
    ):
        target = io.BytesIO()
        codec.compress(io.BytesIO(data), target, stride, streams)
        found.append(target.getvalue())
    return found


def compressed_alone() -> list[bytes]:
    """Files without a model: text, a sound of 16 bits, and a picture behind text, so that there are two blocks."""
    slope = bytes(range(256)) * 12
    sound = b".snd" + struct.pack(">5I", 24, len(slope), 3, 8000, 1) + slope
    found = []
    for data in (text(90).encode(), sound, text(300).encode() + b"P6 30 34 255\n" + slope):
        Codec().compress(io.BytesIO(data), target := io.BytesIO())
        found.append(target.getvalue())
    return found


def parts_of(data: bytes) -> list[bytes]:
    """The header, blocks and end of a compressed file; nothing if it is too broken."""
    source, ends = io.BytesIO(data), []
    with contextlib.suppress(BytegolfError):
        header = layout.Header.read(source, "")
        ends.append(source.tell())
        while isinstance(layout.read_part(source, header, ""), layout.Block):
            ends.append(source.tell())
    return [data[start:end] for start, end in itertools.pairwise([0, *ends, len(data)])] if ends else []


# ------------------------------------------------------------------------------------------------------- settings


def presets() -> list[bytes]:
    """Every preset, as its file."""
    folder = resources.files("bytegolf") / "presets"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    return [entry.read_bytes() for entry in found]


def overrides() -> list[bytes]:
    """Some command lines, an override a line."""
    return [
        b"train.seed=3\noptim.muon_lr=0.02\nexport.coder=range",
        b"model.network.router.kind=stride\nmodel.network.router.target=5.5\nmodel.ngrams.longest=4",
        b"model.network.main.layers=3\ntrain.max_seconds=1e3\ndata.path='x y'\neval.ttt.mode=sgd",
    ]


STUDY = """
name = "tiny"
question = "Does it pay?"
preset = "cpu-demo"
control = "a"
seeds = [1, 2, 3]
budget = {steps = 3}
compare = [["a", "b"]]

[variants.a]

[variants.b.overrides]
optim.muon_lr = 0.02
"""

GRID = """
name = "grid"
question = "Which?"
preset = "cpu-gpt"
control = "muon_lr=0.02 layers=2"
seeds = [1]
data = "data"
threads = 2
eval_limit = 100
trainer = "torchrun -m bytegolf train"

[budget]
seconds = 60
clock = "processor"

[grid]
"optim.muon_lr" = [0.02, 0.03]
model.network.layers = [2, 3]

[overrides]
train.batch_tokens = 8192
"""


def studies() -> list[bytes]:
    """A study of named variants and one of a grid."""
    return [STUDY.encode(), GRID.encode()]


def screen() -> Console:
    """Where nobody looks."""
    return Console(file=io.StringIO(), width=120)


def _summary(score: float) -> dict[str, Any]:
    names = ("total_bytes", "params", "train_seconds", "steps", "train_bytes", "train_bytes_per_second")
    figures = {name: 7 + number for number, name in enumerate(names)}
    boundaries = {"rate": 0.2, "whitespace_agreement": 0.7, "cv": 0.5, "mean_chunk_bytes": 5.1}
    scores = {"bpb": score + 0.01, "bpb_original": score, "subset": False, "fits": True}
    return {**scores, **figures, "boundaries": boundaries, "artifact": "artifact.bgolf"}


_MADE = {
    "bytegolf": "0.1.0",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
    "git": {"commit": "c" * 40, "modified": False},
}


def results(folder: Path) -> list[bytes]:
    """The rows of a finished study, one of them a failure; its file lies in ``folder``."""
    (folder / "tiny").mkdir()
    (folder / "tiny.toml").write_text(STUDY)
    rows = []
    for number, job in enumerate(jobs(read_study(folder / "tiny.toml"), without_data=True)):
        row = {
            "study": "tiny",
            "variant": job.variant.name,
            "seed": job.seed,
            "definition": job.identity.definition,
            "data": "d",
        }
        end: dict[str, Any] = {"status": "failed", "error": "it broke"}
        if number:
            end = {
                "status": "done",
                "summary": _summary(1.5 + number / 100),
                "git": _MADE["git"],
                "versions": {"torch": "2"},
            }
        rows.append(json.dumps({**row, **end}))
    return ["\n".join(rows).encode() + b"\n"]


def ended_run(folder: Path) -> tuple[Path, list[list[bytes]]]:
    """The folder of a study's run that has ended, and its summary.json and environment.json."""
    results(folder)
    data_folder(folder / "data" / "default")
    with contextlib.chdir(folder):  # where the paths in a study start
        place = jobs(read_study(folder / "tiny.toml"))[0].folder.resolve()
    place.mkdir(parents=True)
    return place, [[json.dumps(_summary(1.5)).encode(), json.dumps(_MADE).encode()]]
