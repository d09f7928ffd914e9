"""Train two presets with the same seeds, alternating, and compare the scores of their reloaded artifacts in pairs.

    python benchmarks/paired.py cpu-gpt cpu-demo --seeds 1 2 3 --data data/default --out runs/paired

Runs that are finished are not repeated. Prints a Markdown table with mean ± standard deviation, the paired difference
with its 95 % confidence interval (Student's t), and whether that tells the two apart; then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from measuring import trained

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t at 97.5 % by degrees of freedom."""


def run(preset: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The summary of one training run, made unless it is there."""
    out = arguments.out / f"{Path(preset).stem}-seed{seed}"
    return trained(preset, seed, arguments.overrides, arguments.data, out)


def spread(values: list[float]) -> str:
    """mean ± standard deviation over seeds."""
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def main() -> None:
    """Parse the command line, train what is missing, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("control")
    parser.add_argument("candidate")
    parser.add_argument("overrides", nargs="*", help="section.key=value, for both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data", type=Path, default=Path("data/default"))
    parser.add_argument("--out", type=Path, default=Path("runs/paired"))
    arguments = parser.parse_intermixed_args()
    if not 2 <= len(arguments.seeds) <= 10:
        parser.error("give 2 to 10 seeds")

    presets = (arguments.control, arguments.candidate)
    runs = [[run(preset, seed, arguments) for preset in presets] for seed in arguments.seeds]
    print("| preset | seed | BPB | steps | bytes | train s | at whitespace | artifact bytes |")
    print("|---|---|---|---|---|---|---|---|")
    for seed, pair in zip(arguments.seeds, runs, strict=True):
        for row in pair:
            chunks = row["boundaries"]
            agreement = f"{chunks['whitespace_agreement']:.1%}" if chunks else "-"
            print(
                f"| {row['name']} | {seed} | {row['bpb']:.4f} | {row['steps']:,} | {row['train_bytes']:,} | "
                f"{row['train_seconds']:.0f} | {agreement} | {row['artifact_bytes']:,} |"
            )
    control, candidate = ([pair[index]["bpb"] for pair in runs] for index in (0, 1))
    differences = [b - a for a, b in zip(control, candidate, strict=True)]
    mean = statistics.mean(differences)
    half = T_95[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
    verdict = "tells them apart" if abs(mean) > half else "within noise"
    print(f"\n{presets[0]}: {spread(control)}; {presets[1]}: {spread(candidate)}; n = {len(runs)}")
    print(f"paired difference {mean:+.4f}, 95 % interval [{mean - half:+.4f}, {mean + half:+.4f}]: {verdict}")
    print(json.dumps({"control": control, "candidate": candidate, "difference": mean, "half_interval": half}))


if __name__ == "__main__":
    main()
