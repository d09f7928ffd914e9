"""Processor time of tests, user and system.

``pytest --processor-time`` prints the seconds of each folder and file. Fixtures count with the test that first asks for
them, and processes with the test that waits for their end. What a process of pytest spends before its first test
(imports, collection) and after its last is one row of its own.

``python tests/processor_time.py make test`` prints the seconds of a whole command: every process counts, also one whose
parent did not wait for it (a fork server), which ``time`` does not see.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

KEY = "processor time"
DEAREST = 20
"""Tests that are listed."""


def spent() -> float:
    """Seconds so far of this process and of those of its children that have ended."""
    return sum(os.times()[:4])


class ProcessorTime:
    """Measures in every worker, adds up in the process that reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.last = spent()
        self.start = self.last
        self.tests: dict[str, float] = defaultdict(float)
        self.around = 0.0

    def pytest_runtestloop(self) -> None:
        """What is spent until here is imports and collection."""
        self.last = spent()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        """Each phase of a test carries what was spent since the phase before."""
        report = yield
        now = spent()
        report.user_properties.append((KEY, now - self.last))  # type: ignore[attr-defined]
        self.last = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """In the process that reports: also for what its workers ran. (A later phase repeats the properties of the
        earlier ones: the last is its own.)"""
        mine = [value for key, value in report.user_properties if key == KEY]
        self.tests[report.nodeid] += float(str(mine[-1])) if mine else 0.0

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """A worker hands over the whole of what it spent."""
        output = getattr(self.config, "workeroutput", None)
        if output is not None:
            output[KEY] = spent()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """A worker of pytest-xdist has ended."""
        self.around += getattr(node, "workeroutput", {}).get(KEY, 0.0)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table, dearest first, and the dearest tests."""
        workers = self.around
        whole = workers + (sum(os.times()[:2]) if workers else spent())
        rows: dict[str, float] = defaultdict(float)
        for test, seconds in self.tests.items():
            file = test.partition("::")[0]
            rows[file] += seconds
            rows[str(Path(file).parent) + "/"] += seconds
        rows["imports, collection, reporting"] = whole - sum(self.tests.values())
        terminalreporter.write_line(f"processor time: {whole:.1f} s")
        for table in (rows, self.tests):
            dearest = sorted(table.items(), key=lambda row: -row[1])
            for name, seconds in dearest if table is rows else dearest[:DEAREST]:
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")


SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux: processes that lose their parent become children of this one."""


def main(command: list[str]) -> int:
    """Run a command and print what it and all that it left running took; its exit code."""
    with contextlib.suppress(OSError, AttributeError):  # elsewhere, those that nobody waits for are not counted
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    code = subprocess.run(command, check=False).returncode
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    _, _, user, system, _ = os.times()
    print(f"processor time: {user + system:.1f} s (user {user:.1f}, system {system:.1f})", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
