"""What a run says while it goes: rows of metrics.jsonl, one live line on a terminal, alarms in words."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bytegolf.files import disk_errors, make_folder, read_json, write_bytes

PLAIN_LINE_EVERY = 15.0
"""Seconds between progress lines where there is no terminal to rewrite one on."""

COLLAPSED_LOW, COLLAPSED_HIGH = 0.01, 0.90
"""Boundary rates beyond which a router no longer chunks."""


class Metrics:
    """metrics.jsonl, the truth about a run: one JSON object a line, appended and flushed."""

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        make_folder(path.parent)
        self.path = path
        if resume_step is None:
            write_bytes(path, b"")
        else:  # what was logged after the checkpoint happens again
            rows = [row for row in read_metrics(path) if row.get("step", 0) <= resume_step]
            write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def add(self, **row: Any) -> None:
        """Append one row."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Reporter:
    """One live line on stderr, rewritten on a terminal and printed now and then elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._last = 0.0
        self._alarms: set[str] = set()

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
        self.console.print(text, markup=False)

    def alarm(self, key: str, text: str) -> bool:
        """Print a warning once for each ``key``; whether it was new."""
        if key in self._alarms:
            return False
        self._alarms.add(key)
        self.console.print(Text(f"warning: {text}", style="bold yellow"))
        return True

    def routers(self, rates: list[float], step: int) -> list[str]:
        """Warn of each level whose boundary rate says that it no longer chunks; the new warnings."""
        new = []
        for level, rate in enumerate(rates):
            where = f"the router of level {level}"
            if rate < COLLAPSED_LOW:
                text = f"{where} opens almost no chunks (rate {rate:.3f}) at step {step}: raise router.loss_weight"
            elif rate > COLLAPSED_HIGH:
                text = f"{where} makes nearly every position a chunk (rate {rate:.2f}) at step {step}: raise router.loss_weight"
            else:
                continue
            if self.alarm(f"router-{level}-{rate > 0.5}", text):
                new.append(text)
        return new


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
