"""What long work tells while it goes on: one live line on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bytegolf.console import PlainConsole
from bytegolf.errors import sized

PLAIN_LINE_EVERY = 15.0
"""Seconds between progress lines where there is no terminal to rewrite one on."""


@runtime_checkable
class Teller(Protocol):
    """What long work needs to tell of itself; ``Reporter`` is one, and so is what a submission's script has."""

    def __enter__(self) -> Teller: ...

    def __exit__(self, *exc: Any) -> None: ...

    def progress(self, text: str, last: bool = False) -> None:
        """Show ``text`` as the current state of things; the ``last`` one is shown in any case."""

    def say(self, text: str) -> None:
        """Print a lasting line."""

    def warn(self, text: str) -> None:
        """Print a lasting warning."""


class Warnings:
    """A teller for who looks after progress alone, as in a notebook: it says nothing, and warnings become Python's."""

    def __enter__(self) -> Warnings:
        return self

    def __exit__(self, *exc: Any) -> None: ...

    def progress(self, text: str, last: bool = False) -> None: ...

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        """Warn as Python does."""
        warnings.warn(text, stacklevel=3)


class Reporter:
    """One live line on stderr, rewritten on a terminal and printed now and then elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = PlainConsole(stderr=True, quiet=quiet, soft_wrap=True)
        self._live: Live | None = None
        self._last = 0.0

    def __enter__(self) -> Reporter:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._live:
            self._live.__exit__(*exc)
            self._live = None

    def progress(self, text: str, last: bool = False) -> None:
        """Show ``text`` as the current state of things."""
        now = time.monotonic()
        if self._live:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"))
        elif last or now - self._last >= PLAIN_LINE_EVERY:
            self.console.print(text)
            self._last = now

    def say(self, text: str) -> None:
        """Print a lasting line."""
        self.console.print(text)

    def warn(self, text: str) -> None:
        """Print a lasting warning."""
        self.console.print(Text(f"warning: {text}", style="bold yellow"))


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Pace:
    """How fast work goes and how long it will take: ``line`` says so after each part of it.

    The time left is worked out from what came after the first line: before it, kernels were compiled and caches filled.

    >>> pace = Pace(total=4_000_000)
    >>> pace.done = 1_000_000
    >>> pace.line(1_000_000, seconds=20.0)
    '25% · 50.0 kB/s'
    >>> pace.done = 2_000_000
    >>> pace.line(2_000_000, seconds=22.0)
    '50% · 90.9 kB/s · 0:04 left'
    """

    def __init__(self, total: float | None = None) -> None:
        self.total = total
        """how much there is to do, in any unit; None: nobody knows"""
        self.done = 0.0
        self._started = time.perf_counter()
        self._first: tuple[float, float] | None = None
        """seconds and what was done at the first line"""

    def seconds(self) -> float:
        """Since the start; above 0."""
        return max(1e-9, time.perf_counter() - self._started)

    def line(self, size: float, seconds: float | None = None) -> str:
        """The share that is done, bytes per second for ``size`` bytes, and the time left."""
        spent = self.seconds() if seconds is None else seconds
        rate = f"{size / spent / 1000:.1f} kB/s"
        if not self.total or not self.done:
            return rate
        return " · ".join(filter(None, (f"{self.done / self.total:.0%}", rate, self.left(spent))))

    def left(self, spent: float | None = None) -> str:
        """The time left, as ``0:04 left``; empty as long as nothing tells it, and without a total."""
        spent = self.seconds() if spent is None else spent
        if self._first is None and self.done:
            self._first = spent, self.done
        begun, before = self._first or (spent, self.done)
        if not self.total or self.done <= before:
            return ""
        return f"{clock((spent - begun) * (self.total - self.done) / (self.done - before))} left"


class ProgressBar:
    """Progress in bytes on stderr, one task after another; nothing at all when ``quiet``."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = PlainConsole(stderr=True, quiet=quiet, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(sentence)

    def warn(self, sentence: str) -> None:
        """The same for what may be a mistake."""
        self._console.print(Text(f"warning: {sentence}", style="bold yellow"))

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
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=self._console, transient=True) as bar:
            task = bar.add_task(name, total=total)
            yield lambda count: bar.advance(task, count)


class _Lines:
    """A line every ``PLAIN_LINE_EVERY`` seconds, and one at the end."""

    def __init__(self, console: Console, name: str, total: int | None) -> None:
        self._console, self._name, self._total = console, name, total
        self._started = self._told = time.monotonic()
        self._done = 0

    def __call__(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._told < PLAIN_LINE_EVERY:
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
        text = f"{self._name}: {sized(self._done)} at {sized(self._pace())}/s"
        self._console.print(f"{text}, {state}" if state else text)

    def _pace(self) -> float:
        """Bytes per second since the start."""
        return self._done / max(1e-9, time.monotonic() - self._started)
