"""How long one waits before anything happens: whole processes, from start to exit.

    python benchmarks/startup.py
    python benchmarks/startup.py --profile

Medians of fresh processes, each command in turn, after one of each that is not counted (it fills the disk cache).
`eval` scores a tiny artifact, trained for a step on made-up text, on one window: what it takes beyond `import torch`
is ours. `--profile` names the costliest imports of the command line's help and of `eval`.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measuring import bytegolf, machine, run, table

TINY = ["layers=1", "dim=32", "heads=2", "kv_heads=1"]


def tiny_artifact(folder: Path) -> tuple[Path, Path]:
    """A run of one step of a tiny H-Net in ``folder``, and its data."""
    chance = random.Random(0)
    words = ("the", "of", "people", "state", "message", "1789", "café")
    text = folder / "text.txt"
    text.write_text(" ".join(chance.choice(words) for _ in range(20_000)), encoding="utf-8")
    data, out = folder / "data", folder / "run"
    run(bytegolf("prepare", str(text), "--out", str(data), "--cut", "1000", "--val", "hash:0.2"))
    stages = [f"model.network.{stage}.{change}" for stage in ("encoder", "main", "decoder") for change in TINY]
    budget = ["train.max_seconds=0", "train.max_steps=1", "train.warmup_steps=0", "train.validate_tokens=0"]
    small = ["train.seq_len=256", "train.batch_tokens=256", *budget, *stages]
    run(bytegolf("train", "cpu-demo", *small, "--data", str(data), "--out", str(out)))
    return out, data


def processor_time() -> float:
    """Seconds of processor time that the processes started from here have used: hardly changed by what else runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def slowest_imports(command: list[str], count: int = 10) -> list[dict[str, object]]:
    """The modules that cost most by themselves, without what they import."""
    lines = run([command[0], "-X", "importtime", *command[1:]]).stderr.splitlines()
    found = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    rows = [(int(own), name.strip()) for own, _, name in found if own.strip().isdigit()]
    return [{"module": name, "own ms": round(own / 1000, 1)} for own, name in sorted(rows, reverse=True)[:count]]


def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="name the costliest imports")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, data = tiny_artifact(Path(folder))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import bytegolf": [sys.executable, "-c", "import bytegolf"],
            "bytegolf --help": bytegolf("--help"),
            "bytegolf presets": bytegolf("presets"),
            "import torch": [sys.executable, "-c", "import torch"],
            "bytegolf eval": bytegolf("eval", str(out), "--data", str(data), "--limit", "256"),
            "bytegolf sample": bytegolf("sample", str(out), "the", "--bytes", "1", "--data", str(data)),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        worked: dict[str, list[float]] = {name: [] for name in commands}
        for round_ in range(arguments.repeats + 1):
            for name, command in commands.items():
                started, before = time.perf_counter(), processor_time()
                run(command)
                if round_:
                    times[name].append(time.perf_counter() - started)
                    worked[name].append(processor_time() - before)
        rows = [
            {
                "command": name,
                "median s": round(statistics.median(times[name]), 3),
                "least s": round(min(times[name]), 3),
                "median CPU s": round(statistics.median(worked[name]), 3),
            }
            for name in commands
        ]
        print(machine(), end="\n\n")
        print(table(rows))
        if arguments.profile:
            for name in ("bytegolf --help", "bytegolf eval"):
                print(f"\n{name}\n\n{table(slowest_imports(commands[name]))}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
