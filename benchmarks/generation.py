"""How fast a model writes: step by step, alone and 16 at once, against a forward pass of the whole text a byte.

    python benchmarks/generation.py cpu-demo
    python benchmarks/generation.py runs/demo --context 1000 --precision fp32

A preset is measured with random weights, 1/N of the positions opening a chunk. Steps run in `--precision` (fp32, as
`bytegolf sample`), the forward passes in `--recompute` (auto: the one in which the model is trained). The ways take
turns for `--rounds`, and each shows its median over all rounds. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from measuring import machine, table
from models import get

from bytegolf.model.lm import LanguageModel


def stepping(model: LanguageModel, batch: int, context: int, steps: int) -> tuple[float, list[float]]:
    """Seconds of the prefill of ``batch`` texts, and of each step behind it."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(4, 260, (batch, context + steps), generator=generator).to(model.embedding.weight.device)
    state = model.start(batch, context + steps)
    started = time.perf_counter()
    model.extend(ids[:, :context], state)
    prefill = time.perf_counter() - started
    times = []
    for at in range(context, context + steps):
        started = time.perf_counter()
        model.step(ids[:, at], state).argmax(-1).tolist()
        times.append(time.perf_counter() - started)
    return prefill, times


def recomputing(model: LanguageModel, batch: int, context: int, times: int) -> list[float]:
    """Seconds of each forward pass of the whole text."""
    ids = torch.randint(4, 260, (batch, context), device=model.embedding.weight.device)
    found = []
    for _ in range(times):
        started = time.perf_counter()
        model(ids).logits[:, -1].argmax(-1).tolist()
        found.append(time.perf_counter() - started)
    return found


@torch.inference_mode()
def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a preset, a run's folder or an artifact")
    parser.add_argument("--context", type=int, default=1000, help="bytes that each text has already")
    parser.add_argument("--steps", type=int, default=100, help="bytes written in a round")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--recompute", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    stepper, _ = get(arguments.model, arguments.precision)
    recomputer, _ = get(arguments.model, arguments.recompute)
    rows = []
    for batch in arguments.batch:
        steps: list[float] = []
        passes: list[float] = []
        prefills: list[float] = []
        stepping(stepper, batch, arguments.context, 3)
        recomputing(recomputer, batch, arguments.context, 1)
        for _ in range(arguments.rounds):
            prefill, times = stepping(stepper, batch, arguments.context, arguments.steps)
            prefills.append(prefill)
            steps.append(statistics.mean(times))  # steps that open a chunk cost more than others: all of them count
            passes += recomputing(recomputer, batch, arguments.context, 3)
        step, whole = statistics.median(steps), statistics.median(passes)
        rows.append(
            {
                "batch": batch,
                "prefill ms": 1000 * statistics.median(prefills),
                "step ms": 1000 * step,
                "bytes/s": batch / step,
                "recompute ms": 1000 * whole,
                "recompute bytes/s": batch / whole,
                "times as fast": whole / step,
            }
        )
    print(table(rows))
    print(json.dumps({"model": arguments.model, "context": arguments.context, "rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
