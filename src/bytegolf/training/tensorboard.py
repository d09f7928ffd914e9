"""The figures of a run for TensorBoard, beside metrics.jsonl: what is in its rows, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bytegolf.errors import BytegolfError

FOLDER = "tensorboard"
"""in a run's folder"""

_NO_FIGURE = ("step", "kind", "text")


def event_log(run: Path, first: int) -> Callable[[dict[str, Any]], None]:
    """What takes a row of metrics.jsonl and writes its figures as events below ``run``.

    Events from step ``first`` on that an interrupted run has left there are hidden: those steps happen again. Raises
    BytegolfError if the package is not there.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BytegolfError(
            "train.tensorboard is on, but the package is not installed: pip install 'bytegolf[tensorboard]', or leave "
            "it off, as metrics.jsonl has all figures too"
        ) from error
    writer: Any = SummaryWriter(str(run / FOLDER), purge_step=first or None)

    def write(row: dict[str, Any]) -> None:
        for name, value in figures(row):
            writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        writer.flush()

    return write


def figures(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a row by name; those of a list by their place, those of a table by theirs."""
    for key, value in row.items():
        if key not in _NO_FIGURE:
            yield from _numbers(key, value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, (int, float)):
        yield name, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _numbers(f"{name}/{number}", inner)
