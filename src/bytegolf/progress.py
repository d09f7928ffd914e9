"""What a run says while it goes: rows of metrics.jsonl, one live line on a terminal, alarms in words."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_LINE_EVERY = 15.0
"""Seconds between progress lines where there is no terminal to rewrite one on."""


class Reporter:
    """One live line on stderr, rewritten on a terminal and printed now and then elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
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
            self.console.print(text, markup=False)
            self._last = now

    def say(self, text: str) -> None:
        """Print a lasting line."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a lasting warning."""
        self.console.print(Text(f"warning: {text}", style="bold yellow"))


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
