"""Help for tests of processes: wait for what another one does, and measure where nothing else happens."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LONGEST_WAIT = 900.0
"""Seconds after which something counts as never happening: no measure of how long it takes on a busy machine."""


def until(happened: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until ``happened()``, which ``process`` is to do: if it ends before, the test fails at once."""
    end = time.monotonic() + LONGEST_WAIT
    while not happened():
        assert process is None or process.poll() is None or happened(), f"it ended before, with {process.returncode}"
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def gone(process: int) -> bool:
    """Whether a process has ended; also where nobody asks for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a test file returns in a fresh process, which imports that file and nothing else of the tests.

    Whatever measures a whole process (memory, time of the processor) measures ``function`` alone there. In a worker of
    pytest-xdist other threads may be at work: a server that ends a request, a client that reads ahead. Arguments and
    the result travel as JSON.
    """
    file = Path(inspect.getfile(function))
    code = f"import json, sys; from {file.stem} import {function.__name__} as function\n"
    code += "print(json.dumps(function(*json.loads(sys.argv[1]))))"
    path = os.pathsep.join([str(file.parent), *sys.path])
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


STATUS = Path("/proc/self/status")

needs_peak_memory = pytest.mark.skipif(
    not (STATUS.exists() and "VmHWM" in STATUS.read_text()), reason="no peak of memory in /proc"
)


def peak_memory() -> int:
    """The most bytes of memory that this process has used since it began to run its program.

    ``ru_maxrss`` will not do: a child starts with what its parent has used.
    """
    (peak,) = (line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak) << 10
