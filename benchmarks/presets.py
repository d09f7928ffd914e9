"""Does every preset, at its real size, train, export, reload, score, segment and verify its score?

    python benchmarks/presets.py --data data/default
    python benchmarks/presets.py --data data/default --presets study2-byte cpu-soft --steps 20

Each is trained for a few steps of a few windows, by the commands that the README shows, each of them a process of its
own; the BPB is a beginner's, and only there to be proved. Those that extend another (``-10min``, ``-4h``) have its
model and are left out unless they are named. Exit code 1 if a check of ``verify`` fails anywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import bytegolf, machine, run, table

from bytegolf.config import Config, levels, preset_chain, preset_names

TEXT = "The quick brown fox jumps over the lazy dog."

WINDOWS = 2
"""of the preset's own length in a step"""


def answer(*arguments: str) -> dict[str, Any]:
    """The JSON object that a verb ends with."""
    lines = run(bytegolf(*arguments, "--json")).stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def chain(name: str, data: Path, steps: int, limit: int, folder: Path) -> dict[str, Any]:
    """One preset through all of it: a row of the table, and the evidence of the checks that failed."""
    started, out = time.perf_counter(), str(folder / name)
    config = Config.load(name)
    tokens = WINDOWS * config.train.seq_len
    budget = [f"train.max_steps={steps}", "train.max_seconds=0", "train.warmup_steps=0", "train.decay_steps=0"]
    sizes = [f"train.batch_tokens={tokens}", f"export.gptq_tokens={tokens}", f"eval.limit={limit}"]
    trained = answer("train", name, "--data", str(data), "--out", out, *budget, *sizes, "train.validate_tokens=0")
    again = answer("eval", out, "--data", str(data), "--limit", str(limit))
    chunking = levels(config.model.network) or config.model.soft.layers  # `segment` refuses a flat model
    chunks = answer("segment", out, TEXT, "--data", str(data))["chunks"] if chunking else []
    proof = answer("verify", out, "--data", str(data))
    failed = [check for check in proof["checks"] if not check["passed"]]
    return {
        "preset": name,
        "parameters": trained["params"],
        "artifact bytes": trained["artifact_bytes"],
        "BPB": trained["bpb"],
        "BPB of eval": again["bpb"],
        "chunks": len(chunks) or None,
        "checks passed": f"{len(proof['checks']) - len(failed)} of {len(proof['checks'])}",
        "seconds": round(time.perf_counter() - started),
        "failed": failed,
    }


def main() -> None:
    """Parse the command line, go through the presets, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/default"))
    roots = [name for name in preset_names() if len(preset_chain(name)) == 1]
    parser.add_argument("--presets", nargs="+", default=roots)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--limit", type=int, default=16_384, help="tokens that are scored")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.presets:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(chain(name, arguments.data, arguments.steps, arguments.limit, Path(folder)))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(machine(), end="\n\n")
    print(table([{key: value for key, value in row.items() if key != "failed"} for row in rows]), end="\n\n")
    print(json.dumps(rows))
    sys.exit(1 if any(row["failed"] or row["BPB"] != row["BPB of eval"] for row in rows) else 0)


if __name__ == "__main__":
    main()
