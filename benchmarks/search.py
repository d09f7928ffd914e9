"""Train variants of a preset over seeds, and rank them by the score of the reloaded artifact.

    python benchmarks/search.py cpu-demo train.max_seconds=150 --seeds 1 2 3 --out runs/search \\
        --try "model.ngrams.longest=6" --try "model.ngrams.longest=8 train.seq_len=2048"

Each --try is one variant, of overrides on top of the common ones; the preset itself is the first. Runs that are
finished are not repeated, so a search can be interrupted and grow. With --jobs n as many run at once, on one thread
each: then give them a budget in steps (train.max_seconds=0 train.max_steps=400), which no neighbour can shorten.
Prints a Markdown table, best first, then one line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measuring import table, trained


def folder(out: Path, preset: str, overrides: list[str], seed: int) -> Path:
    """Where the run of a variant lies: overrides are too long for a name, so by their hash."""
    key = hashlib.sha256(" ".join(overrides).encode()).hexdigest()[:8]
    return out / f"{Path(preset).stem}-{key}-seed{seed}"


def main() -> None:
    """Parse the command line, train what is missing, print the ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", help="section.key=value, for all variants")
    parser.add_argument("--try", dest="variants", action="append", default=[], help="overrides of one more variant")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread if there are several")
    parser.add_argument("--data", type=Path, default=Path("data/default"))
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    arguments = parser.parse_intermixed_args()
    threads = {"OMP_NUM_THREADS": "1"} if arguments.jobs > 1 else {}

    def run(job: tuple[str, int]) -> dict[str, Any]:
        variant, seed = job
        overrides = [*arguments.overrides, *variant.split()]
        out = folder(arguments.out, arguments.preset, overrides, seed)
        return trained(arguments.preset, seed, overrides, arguments.data, out, {**os.environ, **threads})

    variants = ["", *arguments.variants]
    jobs = [(variant, seed) for seed in arguments.seeds for variant in variants]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        summaries = dict(zip(jobs, pool.map(run, jobs), strict=True))
    rows = []
    for variant in variants:
        found = [summaries[variant, seed] for seed in arguments.seeds]
        scores = [summary["bpb"] for summary in found]
        words = [summary["boundaries"]["whitespace_agreement"] for summary in found if summary["boundaries"]]
        rows.append(
            {
                "variant": variant or "(the preset)",
                "BPB": statistics.mean(scores),
                "±": statistics.stdev(scores) if len(scores) > 1 else None,
                "n": len(scores),
                "steps": round(statistics.mean(summary["steps"] for summary in found)),
                "bytes/s": round(statistics.mean(summary["train_bytes_per_second"] for summary in found)),
                "at whitespace": f"{statistics.mean(words):.1%}" if words else None,
                "artifact bytes": round(statistics.mean(summary["artifact_bytes"] for summary in found)),
            }
        )
    rows.sort(key=lambda row: row["BPB"])
    print(table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
