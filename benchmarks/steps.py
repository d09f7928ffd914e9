"""How fast a model takes tokens one by one: the whole-model step against the model's own operations, turn about.

    python benchmarks/steps.py runs/demo --batch 1 64
    python benchmarks/steps.py runs/demo --threads 2 --load 2       # beside two busy processes

Bytes per second by the processor time of this process (of all its threads, so waiting for each other counts) and by the
clock, medians over `--rounds`. `ahead` is a known text, 64 positions at a time, as `compress` reads it. Ends with one
line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from measuring import machine, table
from models import get
from torch import Tensor

from bytegolf.infer.native_step import ExactModel, Stepper, stepper


def busy() -> None:
    """Until it is ended."""
    while True:
        pass


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """So many busy processes beside this one."""
    others = [multiprocessing.get_context("spawn").Process(target=busy, daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()


def stepping(runner: Stepper, ids: Tensor, context: int, ahead: int) -> tuple[float, float]:
    """Processor seconds and seconds of the tokens behind the first ``context``, ``ahead`` at a time."""
    state = runner.start(len(ids), ids.shape[1])
    runner.extend(ids[:, :context], state)
    used, started = time.process_time(), time.perf_counter()
    for at in range(context, ids.shape[1], ahead):
        runner.extend(ids[:, at : at + ahead], state)
    return time.process_time() - used, time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a preset, a run's folder or an artifact")
    parser.add_argument("--context", type=int, default=500, help="bytes that each text has already")
    parser.add_argument("--steps", type=int, default=256, help="bytes in a round")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load", type=int, default=0, help="busy processes beside this one")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, _ = get(arguments.model, "fp32")
    whole = stepper(model)
    assert isinstance(whole, ExactModel), "the whole-model step does not know this model"
    rows = []
    with load(arguments.load):
        for batch in arguments.batch:
            ids = torch.randint(4, 260, (batch, arguments.context + arguments.steps))
            ways: dict[str, Callable[[], tuple[float, float]]] = {
                "operations": functools.partial(stepping, model, ids, arguments.context, 1),
                "whole step": functools.partial(stepping, whole, ids, arguments.context, 1),
                "ahead": functools.partial(stepping, whole, ids, arguments.context, 64),
            }
            times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for way in list(ways) * (1 + arguments.rounds):
                times[way].append(ways[way]())
            row: dict[str, object] = {"batch": batch}
            for way, found in times.items():
                used, passed = (statistics.median(column) for column in zip(*found[1:], strict=True))
                row[f"{way}, bytes/s of processor"] = batch * arguments.steps / used
                row[f"{way}, bytes/s"] = batch * arguments.steps / passed
            rows.append(row)
    print(table(rows))
    settings = {"threads": arguments.threads, "load": arguments.load, "context": arguments.context}
    print(json.dumps({"model": arguments.model, **settings, "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
