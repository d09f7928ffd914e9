"""Train two presets with the same seeds, alternating, and compare the scores of their reloaded artifacts in pairs.

    python benchmarks/paired.py cpu-gpt cpu-demo --seeds 1 2 3 --data data/default --out runs/paired

Runs that are finished are not repeated. Prints a Markdown table with mean ± standard deviation, the paired difference
with its 95 % confidence interval (Student's t), and whether that tells the two apart; then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measuring import trained

from bytegolf.study.statistics import paired, spread


def run(preset: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The summary of one training run, made unless it is there."""
    out = arguments.out / f"{Path(preset).stem}-seed{seed}"
    return trained(preset, seed, arguments.overrides, arguments.data, out)


def shown(values: list[float]) -> str:
    """mean ± standard deviation over seeds."""
    mean, deviation = spread(values)
    return f"{mean:.4f} ± {deviation or 0.0:.4f}"


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
    if len(arguments.seeds) < 2:
        parser.error("give 2 seeds or more")

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
    gap = paired(control, candidate)
    mean, half = gap.mean, gap.half or 0.0
    verdict = "tells them apart" if gap.told_apart else "within noise"
    print(f"\n{presets[0]}: {shown(control)}; {presets[1]}: {shown(candidate)}; n = {len(runs)}")
    print(f"paired difference {mean:+.4f}, 95 % interval [{mean - half:+.4f}, {mean + half:+.4f}]: {verdict}")
    print(json.dumps({"control": control, "candidate": candidate, "difference": mean, "half_interval": half}))


if __name__ == "__main__":
    main()
