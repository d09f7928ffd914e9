"""A submission that needs numpy alone: order-1 byte counts, in the form that an audit can run; and its cheats."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np

LENGTH = 8

SCRIPT = '''
"""Counts which token follows which; learns from what it has scored, document by document."""
import argparse, json, sys
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent
LENGTH, ALPHABET = 8, 260


def tokens_of(folder, split):
    path = next(folder.rglob(f"fineweb_{split}_*.bin"))
    return np.fromfile(path, "<u2", offset=1024).astype(np.int64)


def train(data):
    counts = np.zeros((ALPHABET, ALPHABET), np.float32)
    train_tokens = tokens_of(data, "train")
    np.add.at(counts, (train_tokens[:-1], train_tokens[1:]), 1)
    np.save(HERE / "model.npy", counts.astype(np.float16))


def score(data):
    shipped = np.load(HERE / "model.npy").astype(np.float64) + 0.1
    counts = shipped.copy()
    val_tokens = tokens_of(data, "val")
    table = np.zeros((len(val_tokens) - 1, 2))
    total = 0.0
    for at in range(len(val_tokens) - 1):
        context, target = val_tokens[at], val_tokens[at + 1]
        if context == 1:
            counts = shipped.copy()
        row = counts[context]
        p = row / row.sum()
        table[at] = -np.log(p[target]), target >= 4
        total += table[at, 0]
        counts[context, target] += 1
    return table


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--losses", type=Path)
    given = parser.parse_args()
    if given.mode == "train":
        return train(given.data)
    table = score(given.data)
    np.save(given.losses, table)
    size = int(table[:, 1].sum())
    bpb = table[:, 0].sum() / np.log(2) / size
    found = {"val_bpb": bpb, "tokens": len(table), "bytes": size, "seq_len": LENGTH, "vocab_size": ALPHABET}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
'''
"""The honest one."""


def write(folder: Path, data: Path, script: str = SCRIPT) -> Path:
    """The submission in ``folder``, whose model is made of the training tokens in ``data``; it claims what is true of
    the honest script.
    """
    folder.mkdir(parents=True)
    (folder / "train_gpt.py").write_text(script)
    train, validation = (_tokens(data, split) for split in ("train", "val"))
    counts = np.zeros((260, 260), np.float32)
    np.add.at(counts, (train[:-1], train[1:]), 1)
    np.save(folder / "model.npy", counts.astype(np.float16))
    bpb = _honest(counts.astype(np.float16).astype(np.float64) + 0.1, validation)
    code, model = ((folder / name).stat().st_size for name in ("train_gpt.py", "model.npy"))
    claims = {
        "author": "Ada",
        "github_id": "ada",
        "name": "toy",
        "blurb": "order-1 counts",
        "date": "2026-01-01T00:00:00Z",
        "track": "non-record-unlimited-compute-16mb",
        "val_loss": bpb * math.log(2),
        "val_bpb": bpb,
        "pre_quant_val_bpb": bpb,
        "step_stop": 1,
        "wallclock_seconds": 0.1,
        "bytes_total": code + model,
        "bytes_model_int8_zlib": model,
        "bytes_code": code,
    }
    (folder / "submission.json").write_text(json.dumps(claims))
    (folder / "README.md").write_text("# toy\n")
    (folder / "train.log").write_text(f"val_bpb:{bpb:.4f}\n")
    return folder


def _tokens(data: Path, split: str) -> np.ndarray:
    path = next(path for path in data.rglob(f"fineweb_{split}_*.bin") if "byte260" in str(path))
    return np.fromfile(path, "<u2", offset=1024).astype(np.int64)


def _honest(counts: np.ndarray, tokens: np.ndarray) -> float:
    nats, size, shipped = 0.0, 0, counts.copy()
    for context, target in itertools.pairwise(tokens):
        if context == 1:
            counts = shipped.copy()
        nats -= math.log(counts[context, target] / counts[context].sum())
        size += int(target >= 4)
        counts[context, target] += 1
    return nats / math.log(2) / size
