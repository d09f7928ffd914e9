"""How far a long read has come: a bar with MB/s and time left on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bytegolf.progress import PlainConsole

LINE_EVERY = 15.0
"""Seconds between plain lines."""


class ProgressBar:
    """Progress in bytes on stderr, one task after another; nothing at all when ``quiet``."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = PlainConsole(stderr=True, quiet=quiet, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(sentence)

    @contextlib.contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A context in which the task ``name`` of ``total`` bytes (None: unknown) runs; call what it gives with the
        bytes read since the last call.
        """
        if not self._console.is_terminal:
            lines = _Lines(self._console, name, total)
            yield lines
            lines.tell("100%, done")
            return
        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=self._console, transient=True) as bar:
            task = bar.add_task(name, total=total)
            yield lambda count: bar.advance(task, count)


class _Lines:
    """A line every ``LINE_EVERY`` seconds, and one at the end."""

    def __init__(self, console: Console, name: str, total: int | None) -> None:
        self._console, self._name, self._total = console, name, total
        self._started = self._told = time.monotonic()
        self._done = 0

    def __call__(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._told < LINE_EVERY:
            return
        pace = self._pace()
        share = (
            f"{self._done / self._total:.0%}, {(self._total - self._done) / pace:.0f} s left"
            if self._total and pace
            else ""
        )
        self.tell(share)

    def tell(self, state: str) -> None:
        """Print a line now: the amount, the pace and ``state``."""
        self._told = time.monotonic()
        text = f"{self._name}: {self._done / 1e6:.1f} MB at {self._pace() / 1e6:.1f} MB/s"
        self._console.print(f"{text}, {state}" if state else text)

    def _pace(self) -> float:
        """Bytes a second since the start."""
        return self._done / max(1e-9, time.monotonic() - self._started)
