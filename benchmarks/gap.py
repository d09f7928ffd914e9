"""What a gap between two groups of training runs is made of: text read, what a step learns, what a vocabulary knows.

    python benchmarks/gap.py 'runs/level/bytes-*' 'runs/level/sp1024-*' --data data/default

Training BPB (of text that was not read before, as long as it is the first time) where runs have spent equal seconds,
read equally many bytes, and taken equally many steps, over rows within 15 % of that: mean ± standard deviation over
runs. Compare only below the step at which the learning rate begins to fall, which the second tables tell. Then what
counts of the training text alone give on the validation text: of tokens, and of pairs, by bytes of the tokens' text.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from measuring import table

from bytegolf.data.dataset import dataset_entry, open_split
from bytegolf.training.metrics_file import read_metrics

POINTS = {"seconds": (8, 15, 25), "bytes": (500_000, 1_000_000), "step": (40, 80, 100)}
NEAR = 0.15
DOUBT = 5.0
"""How many pairs a token's own distribution counts as, behind each token."""


def train_rows(pattern: str) -> list[list[dict[str, Any]]]:
    """The training rows of each run that ``pattern`` names."""
    found = [read_metrics(Path(folder) / "metrics.jsonl") for folder in sorted(Path().glob(pattern))]
    return [[row for row in rows if row["kind"] == "train"] for rows in found]


def at(runs: list[list[dict[str, Any]]], key: str, point: float) -> str:
    """Training BPB near a value of ``key``, over those runs that have rows there."""
    near = [[row["bpb"] for row in rows if abs(row[key] - point) < NEAR * point] for rows in runs]
    means = [statistics.fmean(values) for values in near if values]
    return f"{statistics.fmean(means):.3f} ± {statistics.stdev(means):.3f} ({len(means)})" if len(means) > 1 else "-"


def pace(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What one run has done at its end, and where its learning rate begins to fall."""
    last, falling = rows[-1], next((row for row in rows if row["lr"] < 1), rows[-1])
    return {
        "steps": last["step"],
        "bytes": last["bytes"],
        "us/byte": 1e6 * last["seconds"] / last["bytes"],
        "rate falls at step": falling["step"],
        "after bytes": falling["bytes"],
        "after seconds": falling["seconds"],
    }


def counted(data: Path, tokenizer: str, vocab: int) -> dict[str, Any]:
    """Bits per byte of the validation text by counts of the training text: of tokens, and of pairs."""
    train, val = (open_split(data, tokenizer, split, vocab) for split in ("train", "val"))
    text, scored = (part.slice(0, len(part)).astype(np.int64) for part in (train, val))
    ones = np.bincount(text, minlength=vocab) + 0.1
    share = ones / ones.sum()
    pairs = np.bincount(text[:-1] * vocab + text[1:], minlength=vocab * vocab).reshape(vocab, vocab)
    behind = (pairs + DOUBT * share) / (pairs.sum(1, keepdims=True) + DOUBT)
    entry = dataset_entry(data, tokenizer)
    size = float(entry.stats["bytes_val"]) if entry is not None else float(len(scored))
    return {
        "tokenizer": tokenizer,
        "bytes per token": size / len(scored),
        "tokens": -float(np.log2(share[scored]).sum()) / size,
        "pairs": -float(np.log2(behind[scored[:-1], scored[1:]]).sum()) / size,
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="folders of runs, as a pattern")
    parser.add_argument("second", help="folders of the others")
    parser.add_argument("--data", type=Path, help="a prepared folder with byte260 and sp1024")
    given = parser.parse_args()
    groups = {pattern: train_rows(pattern) for pattern in (given.first, given.second)}
    points = [(key, point) for key, values in POINTS.items() for point in values]
    print(
        table(
            [
                {"at": f"{point:,} {key}", **{name: at(runs, key, point) for name, runs in groups.items()}}
                for key, point in points
            ]
        )
    )
    for name, runs in groups.items():
        ends = [pace(rows) for rows in runs]
        means = {key: statistics.fmean(end[key] for end in ends) for key in ends[0]}
        print("\n" + table([{"runs": name, "n": len(ends), **means}]))
    if given.data:
        print("\n" + table([counted(given.data, name, vocab) for name, vocab in (("byte260", 260), ("sp1024", 1024))]))


if __name__ == "__main__":
    main()
