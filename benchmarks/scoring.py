"""How fast a model is scored: windows without overlap; sliding windows one by one, in batches, with shared work; one
pass over the text.

    python benchmarks/scoring.py cpu-demo
    python benchmarks/scoring.py runs/demo --data data/default --stride 64 --tokens 8192

A preset is measured with random weights, 1/N of the positions opening a chunk, on random bytes. The ways take
turns for `--rounds`, and each shows its median. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import machine, table
from models import get

from bytegolf.bpb import Score
from bytegolf.data.dataset import TokenStream, open_split
from bytegolf.data.dataset_writer import ShardWriter
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.evaluate.modes import one_pass, with_receptive_field
from bytegolf.evaluate.score import score


def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a preset, a run's folder or an artifact; it must read bytes")
    parser.add_argument("--data", type=Path, help="the text to score: a folder made by `bytegolf prepare`")
    parser.add_argument("--stride", type=int, default=64)
    parser.add_argument(
        "--tokens", type=int, default=4096, help="how many are scored with a stride; 8 times as many without"
    )
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model, config = get(arguments.model, arguments.precision)
    length, tokenizer = config.train.seq_len, ByteTokenizer()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data:
            stream = open_split(arguments.data, config.data.tokenizer, "val", config.model.vocab_size)
        else:
            with ShardWriter(Path(folder), "val") as writer:
                writer.write(np.random.default_rng(0).integers(4, 260, 8 * arguments.tokens + 1).astype(np.uint16))
            stream = TokenStream(writer.paths, config.model.vocab_size)
        started = time.perf_counter()
        plan = one_pass(model, stream, length, arguments.stride, length + arguments.tokens)
        planning = time.perf_counter() - started
        # the first window is scored whole whatever the stride: it is timed by itself and taken off
        ways = {
            "first window": (length, 0, True, arguments.batch),
            "no overlap": (8 * arguments.tokens, 0, True, arguments.batch),
            "one window at a time": (length + arguments.tokens, arguments.stride, False, 1),
            "full windows": (length + arguments.tokens, arguments.stride, False, arguments.batch),
            "shared work": (length + arguments.tokens, arguments.stride, True, arguments.batch),
            "one pass": (length + arguments.tokens, plan.stride, True, arguments.batch),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        scores: dict[str, Score] = {}
        for turn in range(arguments.rounds + 1):
            for name, (limit, stride, share, batch) in ways.items():
                limit = min(limit, 2 * length if turn == 0 else limit)  # the first turn only warms up
                started = time.perf_counter()
                size, sizes = (min(plan.length, limit), plan.receptive_field) if name == "one pass" else (length, ())
                stride = min(stride, size)
                with with_receptive_field(model, sizes):
                    scores[name] = score(
                        model, stream, tokenizer, size, stride=stride, limit=limit, batch=batch, share=share
                    )
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    first, start = scores["first window"], median["first window"]
    speed = {name: scores[name].bytes / median[name] for name in ("no overlap", "one pass")}
    for name in ("one window at a time", "full windows", "shared work"):
        speed[name] = (scores[name].bytes - first.bytes) / (median[name] - start)
    result = {
        "model": arguments.model,
        "precision": str(model.precision).removeprefix("torch."),
        "stride": arguments.stride,
        "bytes_per_second": {name: round(value, 1) for name, value in speed.items()},
        "shared_over_single": round(speed["shared work"] / speed["one window at a time"], 2),
        "shared_over_full": round(speed["shared work"] / speed["full windows"], 2),
        "one_pass_over_single": round(speed["one pass"] / speed["one window at a time"], 2),
        "one_pass_over_full": round(speed["one pass"] / speed["full windows"], 2),
        "bpb_difference": scores["shared work"].bpb - scores["full windows"].bpb,
        "bpb_difference_of_one_pass": scores["one pass"].bpb - scores["full windows"].bpb,
        "receptive_field": plan.receptive_field,
        "seconds_to_find_the_receptive_field": round(planning, 2),
        "machine": machine(),
    }
    print(
        table(
            [
                {
                    "way": name,
                    "stride": arguments.stride if name == "one pass" else ways[name][1] or length,
                    "bytes/s": speed[name],
                    "times full windows": speed[name] / speed["full windows"],
                    "BPB": f"{scores[name].bpb:.6f}",
                }
                for name in speed
            ]
        )
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
