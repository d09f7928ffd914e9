"""What the benchmarks share: honest timing, peak memory, fresh processes, tables.

It imports no torch: the processes that only start others, or that measure how fast one starts, must not pay for it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def peak_memory() -> int:
    """Bytes of this process's largest resident set so far.

    From /proc where there is one: ``ru_maxrss`` starts at what the process that started this one held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command quietly to its end; where it fails, its own words end this process too."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr or done.stdout}")
    return done


def fresh(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON with which a benchmark of this folder ends, run in a process of its own."""
    done = run([sys.executable, str(HERE / script), *arguments])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def bytegolf(*arguments: str) -> list[str]:
    """The command line of a verb, with this Python."""
    return [sys.executable, "-m", "bytegolf", *arguments]


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of ``work`` after one call that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table: numbers to four significant digits, whole ones with commas."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def machine() -> str:
    """Cores that this process may use, threads that it is told to use, the processor's name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    model = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{model or sys.platform}, {cores} cores, OMP_NUM_THREADS {threads}, load {os.getloadavg()[0]:.1f}"
