"""The suite of GPUs on a pretended one, in a process of its own (``tests/pretend_cuda/run.py``; docs/gpu.md)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).parents[1] / "pretend_cuda" / "run.py"


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    found = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "CUDA_VISIBLE"))}
    command = [sys.executable, str(RUNNER)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**found, **environment})


@pytest.mark.slow
def test_everything_keeps_its_tensors_on_the_device() -> None:
    done = run()
    if done.returncode == 5:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) > 100


def test_without_a_compiler_it_says_so_in_one_line() -> None:
    done = run(CXX="no-such-compiler", XDG_CACHE_HOME="")
    assert done.returncode == 5
    (line,) = done.stdout.splitlines()
    assert line.startswith("no device can be pretended here: ")
