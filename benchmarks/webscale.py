"""What grows with data and machines: shards, loader, manifest, resume, metrics, measured on files full of holes.

    python benchmarks/webscale.py
    python benchmarks/webscale.py --tokens 1e10 1e12 --ranks 1000

Shards of 10⁸ tokens are made of a header and a hole (``os.truncate``): they read as zeros and take no room, so that
opening, indexing and mapping are those of the real files, and reading is not. Of byte260 a token is a byte. "far" is a
batch at nine tenths of an epoch, which is what a resumed run asks for first; "same_batch", whether the parts of all
ranks, put together, are the batch of one. Times are those of one process; memory is the growth of its resident set.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, table

from bytegolf.config import Config
from bytegolf.data.dataset import (
    SHARD_TOKENS,
    TokenStream,
    read_manifest,
    shard_bytes,
    shard_header,
    shard_path,
    shard_paths,
)
from bytegolf.data.loader import Loader
from bytegolf.training.metrics_file import MetricsFile, TrainRow

PRESET = "study2-byte-4h"
METRICS_ROWS = 20_000
"""rows that are written and read for the metrics' figures; more of them are in proportion"""


def spent(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds that ``work`` takes, and its result."""
    started = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - started), result


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def hollow_shards(folder: Path, tokens: int, shard_tokens: int = SHARD_TOKENS) -> None:
    """Training shards of ``tokens`` zeros, which take no room on the disk."""
    for index in range(-(-tokens // shard_tokens)):
        count = min(shard_tokens, tokens - index * shard_tokens)
        path = shard_path(folder, "train", index)
        path.write_bytes(shard_header(count))
        os.truncate(path, shard_bytes(count))


def manifest_of(folder: Path, paths: list[Path]) -> int:
    """A manifest with a hash for each shard, as `prepare` and `fetch` leave it; its size in bytes."""
    entry = {
        "name": "fineweb10B_byte260",
        "tokenizer_name": "byte260",
        "path": ".",
        "sha256": {path.name: f"{number:064x}" for number, path in enumerate(paths)},
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps({"datasets": [entry], "tokenizers": [{"name": "byte260"}]}), encoding="utf-8")
    return path.stat().st_size


def measure(folder: Path, tokens: int, ranks: int, shard_tokens: int = SHARD_TOKENS) -> dict[str, Any]:
    """All figures for ``tokens`` tokens and ``ranks`` processes."""
    config = Config.load(PRESET)
    hollow_shards(folder, tokens, shard_tokens)
    found, paths = spent(lambda: shard_paths(folder, "train"))
    before = resident()
    opened, stream = spent(lambda: TokenStream(paths, 260))
    grown = resident() - before
    sequences = ranks * max(1, config.train.batch_tokens // config.train.seq_len // ranks)
    length = config.train.seq_len

    def loader(rank: int, size: int, order: Any) -> Loader:
        return Loader(stream, length, sequences * length, 0, order, rank, size)

    far = int(0.9 * len(stream) / (sequences * length))
    whole = loader(0, 1, "shuffled").starts(far)
    times, parts = [], []
    for rank in range(ranks):
        each, part = spent(functools.partial(lambda rank: loader(rank, ranks, "shuffled").starts(far), rank))
        times.append(each)
        parts.append(part)
    one = loader(ranks // 2, ranks, "shuffled")
    first, _ = spent(lambda: one.batch(0))
    later, _ = spent(lambda: one.batch(far))
    size = manifest_of(folder, paths)
    read, _ = spent(lambda: read_manifest(folder))
    return {
        "tokens": tokens,
        "shards": len(paths),
        "list_ms": found,
        "open_ms": opened,
        "stream_mb": grown / 1e6,
        "descriptors": len(stream._mapped),
        "manifest_mb": size / 1e6,
        "manifest_ms": read,
        "ranks": ranks,
        "sequences_a_rank": sequences // ranks,
        "starts_ms": float(np.median(times)),
        "first_batch_ms": first,
        "far_batch_ms": later,
        "same_batch": "yes" if np.array_equal(np.concatenate(parts), whole) else "NO",
        "steps_an_epoch": len(stream) // (sequences * length),
    }


def metrics(folder: Path, steps: int, every: int) -> dict[str, Any]:
    """What metrics.jsonl of a run of ``steps`` steps weighs, from ``METRICS_ROWS`` rows like a real run's."""
    row = TrainRow(
        step=0,
        seconds=123456.789,
        tokens=10**12,
        bytes=10**12,
        loss=0.8372541284561157,
        bpb=1.2079012954235077,
        rates=[0.22471618652343],
        truncated=[0],
        truncated_sequences=[0],
        lr=1.0,
        bytes_per_second=43252345.6,
        soft=[],
    )
    path = folder / "metrics.jsonl"
    log = MetricsFile(path)

    def add_all() -> None:
        for number in range(METRICS_ROWS):
            log.add(dataclasses.replace(row, step=number))

    write, _ = spent(add_all)
    read, _ = spent(lambda: MetricsFile(path, lambda row: True))
    rows = steps // every
    share = rows / METRICS_ROWS
    return {
        "steps": steps,
        "rows": rows,
        "megabytes": path.stat().st_size * share / 1e6,
        "write_us_a_row": 1e3 * write / METRICS_ROWS,
        "resume_s": read * share / 1e3,
    }


def main() -> None:
    """Parse the command line, measure, print tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, nargs="+", default=[1e10, 1e12])
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the hollow shards go for a while; a temporary folder")
    arguments = parser.parse_args()
    config, rows, logs = Config.load(PRESET), [], []
    for tokens in arguments.tokens:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            rows.append(measure(Path(scratch), int(tokens), arguments.ranks))
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            steps = int(tokens) // config.train.batch_tokens
            logs.append(metrics(Path(scratch), steps, config.train.log_every))
    print(table([{"": name, **{f"{row['tokens']:.0e} tokens": row[name] for row in rows}} for name in rows[0]]))
    print()
    print(
        table([{"metrics.jsonl": name, **{f"{log['steps']:,} steps": log[name] for log in logs}} for name in logs[0]])
    )
    print(f"\n{machine()}")
    print(json.dumps({"data": rows, "metrics": logs, "machine": machine()}))


if __name__ == "__main__":
    main()
