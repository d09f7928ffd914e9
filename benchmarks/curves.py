"""Do native kernels train as the plain PyTorch path does? Loss curves of the same seed, beside another seed's.

    python benchmarks/curves.py cpu-demo --steps 200

Trains a preset three times for --steps steps: natively, plainly (BYTEGOLF_NATIVE=0), and natively with the next seed,
which says how far apart runs are that differ by chance alone. Prints training BPB by tenths of the run and the two
differences, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from measuring import bytegolf, run, table


def curve(run: Path, steps: int) -> list[float]:
    """Training BPB in ten equal parts of a run's steps."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    parts: list[list[float]] = [[] for _ in range(10)]
    for row in rows:
        parts[min(9, (row["step"] - 1) * 10 // steps)].append(row["bpb"])
    return [statistics.mean(part) for part in parts]


def main() -> None:
    """Parse the command line, train what is missing, print the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", help="section.key=value, for all three")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path("data/default"))
    parser.add_argument("--out", type=Path, default=Path("runs/curves"))
    arguments = parser.parse_intermixed_args()
    if arguments.steps < 10:
        parser.error("give 10 steps or more")
    budget = ("max_seconds=0", f"max_steps={arguments.steps}", "log_every=1", "validate_every=0")
    overrides = [*arguments.overrides, *(f"train.{change}" for change in budget)]
    curves: dict[str, list[float]] = {}
    for name, seed, on in (("native", 0, "1"), ("plain", 0, "0"), ("another seed", 1, "1")):
        out = arguments.out / f"{Path(arguments.preset).stem}-{name.replace(' ', '-')}-{arguments.steps}"
        if not (out / "summary.json").exists():
            changes = [f"train.seed={arguments.seed + seed}", *overrides]
            where = ["--data", str(arguments.data), "--out", str(out), "--resume"]
            run(bytegolf("train", arguments.preset, *changes, *where), env={**os.environ, "BYTEGOLF_NATIVE": on})
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        curves[name] = [*curve(out, arguments.steps), summary["bpb"]]
    parts = [f"to step {(part + 1) * arguments.steps // 10}" for part in range(10)]
    rows: list[dict[str, Any]] = []
    for part, *values in zip([*parts, "validation"], *curves.values(), strict=True):
        native, plain, other = values
        rows.append({"part": part, **dict(zip(curves, values, strict=True))})
        rows[-1] |= {"plain − native": plain - native, "another seed − native": other - native}
    print(table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
