"""metrics.jsonl, the rows that a training run writes and others read, and alarms about routers in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, parse_json, write_bytes

COLLAPSED_LOW, COLLAPSED_HIGH = 0.01, 0.90
"""Boundary rates beyond which a router no longer chunks."""

TRUNCATED_SHARE = 0.01
"""Share of sequences beyond which a capacity that truncates is worth a warning."""


PATIENCE = 5
"""Rows of metrics in a row that a rate must be so before anyone is warned: untrained routers pass through 0.003."""


class Metrics:
    """metrics.jsonl, the truth about a run: one JSON object a line, appended and flushed."""

    def __init__(
        self,
        path: Path,
        keep: Callable[[dict[str, Any]], bool] | None = None,
        also: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Start the file anew, or go on with those of its rows that ``keep`` says; ``also`` gets each new row too."""
        make_folder(path.parent)
        self._also = also
        self.path = path
        self.rows = [row for row in read_metrics(path) if keep(row)] if keep else []
        """what the file held when it was opened"""
        write_bytes(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def add(self, **row: Any) -> None:
        """Append one row."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._also:
            self._also(row)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut short by a crash is left out.

    Raises BytegolfError for a line that is JSON, but no row.
    """
    if not path.exists():
        return []
    with disk_errors(path, "read the metrics"):
        text = path.read_text(encoding="utf-8", errors="replace")
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = parse_json(line)
        except ValueError:
            break
        if not _is_row(row):
            raise BytegolfError(f"{path}, line {number} is no row of metrics: delete that line")
        rows.append(row)
    return rows


def _is_row(row: Any) -> bool:
    """Whether a row has what is looked at again when a run is resumed."""
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or type(row.get("step")) is not int:
        return False
    lists = [row.get(key, []) for key in ("rates", "truncated", "truncated_sequences")]
    if not all(isinstance(values, list) and all(type(value) in (int, float) for value in values) for values in lists):
        return False
    return len(lists[1]) == len(lists[2])


class RouterWatch:
    """Tells of routers that do not chunk, or are cut short, once that is so for ``PATIENCE`` rows of metrics."""

    def __init__(self) -> None:
        self._streaks: dict[tuple[int, str], int] = {}

    def see(self, rates: list[float], step: int, learned: Sequence[bool] = ()) -> list[str]:
        """Take in each level's boundary rate of one row; warnings, one a level when its patience has just run out.

        ``learned`` tells which routers have a loss that could be weighed more (none given: all); what a fixed rule does
        follows from the rule and the text.
        """
        warnings = []
        for level, rate in enumerate(rates):
            for side, collapsed in (("low", rate < COLLAPSED_LOW), ("high", rate > COLLAPSED_HIGH)):
                if self._lasts(level, side, collapsed):
                    advice = "raise router.loss_weight"
                    if learned and not learned[level]:
                        advice = "it follows a fixed rule, so choose another router.kind, or its router.target"
                    what = "opens almost no chunks" if side == "low" else "makes nearly every position a chunk"
                    warnings.append(
                        f"the router of level {level} {what} (rate {rate:.3f} at step {step}, and so in {PATIENCE} "
                        f"rows of metrics in a row): {advice}"
                    )
        return warnings

    def see_truncation(self, truncated: list[int], sequences: list[float], step: int) -> list[str]:
        """The same for what a fixed capacity truncated: each level's boundaries in one row, and share of sequences.

        Untrained routers propose half of the positions, and a capacity is for trained ones.
        """
        return [
            f"the capacity of level {level} truncated {boundaries:,} boundaries in {share:.0%} of sequences (the row "
            f"of step {step}, and likewise {PATIENCE} rows in a row): lower router.capacity_divisor, or set "
            "router.capacity=bucketed, which truncates nothing"
            for level, (boundaries, share) in enumerate(zip(truncated, sequences, strict=True))
            if self._lasts(level, "truncated", share > TRUNCATED_SHARE)
        ]

    def _lasts(self, level: int, what: str, now: bool) -> bool:
        """Count how long ``what`` has been so; whether it has just become too long."""
        streak = self._streaks.get((level, what), 0) + 1 if now else 0
        self._streaks[level, what] = streak
        return streak == PATIENCE
