"""What a GPU makes of the presets: step times beside ``plan``'s, MFU, and the score after ten minutes; a table.

    benchmarks/gpu.sh                       # on a machine with a GPU: 12 minutes
    benchmarks/gpu.sh --data data/fineweb   # on text that is there already
    benchmarks/gpu.sh --dry-run             # every step at toy sizes on the CPU: a minute

In this order, each step a process of its own, whose failure is a row and not the end:

1. the text: prepared from the default corpus unless ``--data`` names a folder (not counted in the 12 minutes),
2. the tests marked gpu (``--no-tests`` leaves them out),
3. per preset some training steps at a share of the published batch, as one of eight GPUs has it: milliseconds, MFU and
   memory (``train_step.py``), beside what ``bytegolf plan`` predicts for an H100 and from this device's own peaks,
4. ``--train`` (study1-byte) for ten minutes by the clock, exported, and scored as reloaded.

The table and all figures land in ``gpu.md`` and ``gpu.json`` of the folder ``--out`` (``runs/gpu``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import bytegolf, table

HERE = Path(__file__).parent
PRESETS = ("baseline-sp1024", "study1-byte", "study2-byte")
RANKS = 8
"""GPUs of the published runs: one of them has an eighth of the batch."""

TOY = ("train.device=cpu", "train.seq_len=64", "train.batch_tokens=256", "train.compile=off")


@dataclass
class Job:
    """What is run, and what became of it."""

    dry: bool
    steps: list[dict[str, Any]] = field(default_factory=list)
    """each with its command, seconds and error, if it had one"""

    def run(self, what: str, *command: object, limit: float = 900) -> dict[str, Any]:
        """Run a command; the object in the last line of its output that is one, or empty where it failed."""
        words, started = [str(word) for word in command], time.perf_counter()
        print(f"{what}: {' '.join(words)}", flush=True)
        error, found = "", {}
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=limit)
            objects = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
                error = f"exit code {done.returncode}: {lines[-1][:300]}"
            elif objects:
                found = json.loads(objects[-1])
        except subprocess.TimeoutExpired:
            error = f"took longer than {limit:.0f} s"
        seconds = round(time.perf_counter() - started, 1)
        print(f"  {error or 'done'} after {seconds} s", flush=True)
        self.steps.append({"what": what, "command": words, "seconds": seconds, "error": error})
        return found


def shrink(preset: str) -> list[str]:
    """Overrides that make a preset tiny, for a trial on the CPU."""
    from record import stages

    from bytegolf.config import Config, to_dict

    changes = list(TOY)
    for path, _ in stages(to_dict(Config.load(preset))["model"]["network"], "model.network"):
        changes += [f"{path}.{key}" for key in ("dim=32", "layers=1", "heads=2", "kv_heads=1")]
    return changes


def time_steps(job: Job, preset: str) -> dict[str, Any]:
    """Some steps of a preset, beside two predictions: a row of the table."""
    from bytegolf.config import Config

    share = shrink(preset) if job.dry else [f"train.batch_tokens={Config.load(preset).train.batch_tokens // RANKS}"]
    count = 2 if job.dry else 20
    taken = job.run(f"{preset}, steps", sys.executable, HERE / "train_step.py", preset, *share, "--steps", count)
    here_only = ("--device", "here", "--steps", "0", "--json")
    as_h100 = job.run(f"{preset}, plan for an H100", *bytegolf("plan", preset, *share, "--device", "h100", "--json"))
    here = job.run(f"{preset}, plan for this", *bytegolf("plan", preset, *share, *here_only))
    measured = 1000 * taken["step_seconds"] if taken else None

    def beside(plan: dict[str, Any]) -> str:
        if not plan or measured is None:
            return "–"
        return f"{plan['step_ms']:.1f} ({measured / plan['step_ms'] - 1:+.0%})"

    return {
        "preset": preset,
        "tokens a step": taken.get("batch", "–"),
        "ms": f"{measured:.1f}" if measured else "–",
        "plan, H100": beside(as_h100),
        "plan, measured peaks": beside(here),
        "MFU": f"{taken['mfu_step']:.0%}" if taken else "–",
        "MB": taken.get("peak_memory_mb", "–"),
    }


def train(job: Job, preset: str, data: Path, folder: Path) -> dict[str, Any]:
    """Ten minutes of training, and the artifact's score: a row of the table."""
    budget = ["train.max_seconds=600", "train.validate_every=0", "train.checkpoint_every=0"]
    if job.dry:
        toy = ("train.max_steps=4", "train.warmup_steps=0", "train.validate_tokens=256", "eval.limit=256")
        budget = [*shrink(preset), "train.max_seconds=0", *toy]
    run = folder / f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    places = ("--data", str(data), "--out", str(run), "--json")
    words = bytegolf("train", preset, *budget, "export.gptq=false", "eval.stride=0", *places)
    found = job.run(f"{preset}, ten minutes", *words)
    return {
        "preset": preset,
        "steps": found.get("steps", "–"),
        "seconds": found.get("train_seconds", "–"),
        "MB of text": round(found["train_bytes"] / 1e6, 1) if found else "–",
        "BPB": f"{found['bpb']:.4f}" if found else "–",
        "total bytes": found.get("total_bytes", "–"),
    }


def device_name(dry: bool) -> str:
    """What the figures are of."""
    import torch

    return "a trial on the CPU" if dry else torch.cuda.get_device_name()


def main() -> int:
    """Parse the command line, run everything, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--data", type=Path, help="a prepared folder; by default the default corpus is prepared")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--train", default="study1-byte", help="the preset that trains for ten minutes")
    parser.add_argument("--presets", nargs="*", default=list(PRESETS), help="those whose steps are timed")
    parser.add_argument("--no-tests", action="store_true")
    arguments = parser.parse_args()
    import torch

    if not arguments.dry_run and not torch.cuda.is_available():
        print("there is no GPU that torch can use here: try the steps out with --dry-run")
        return 2
    job, started = Job(arguments.dry_run), time.perf_counter()
    data = arguments.data
    if data is None:
        data = arguments.out / "data"
        if not (data / "manifest.json").exists():
            job.run("the text", *bytegolf("prepare", "--out", str(data), "--json"))
    if not arguments.no_tests:
        tests = HERE.parent / "tests"
        chosen = (
            ["-m", "gpu", tests / "gpu", tests / "unit" / "test_flex_attention.py"] if not job.dry else ["--version"]
        )
        job.run("tests", sys.executable, "-m", "pytest", "-q", *chosen)
    steps = [time_steps(job, preset) for preset in arguments.presets]
    trained = train(job, arguments.train, data, arguments.out)
    failed = [f"- {one['what']}: {one['error']}" for one in job.steps if one["error"]]
    minutes = (time.perf_counter() - started) / 60
    title = f"# {device_name(job.dry)}, torch {torch.__version__}, {minutes:.1f} minutes"
    text = f"{title}\n\n{table(steps)}\n\n{table([trained])}\n"
    if failed:
        text += "\nFailed:\n\n" + "\n".join(failed) + "\n"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gpu.md").write_text(text, encoding="utf-8")
    (arguments.out / "gpu.json").write_text(
        json.dumps({"steps": steps, "trained": trained, "jobs": job.steps}, indent=1)
    )
    print(f"\n{text}\nwrote {arguments.out / 'gpu.md'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
