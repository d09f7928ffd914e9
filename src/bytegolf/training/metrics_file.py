"""metrics.jsonl: the rows that a training run writes and others read, and the same figures for TensorBoard."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bytegolf.errors import BytegolfError, install
from bytegolf.files import disk_errors, lines_of, make_folder, parse_json, write_bytes

TENSORBOARD = "tensorboard"
"""in a run's folder"""


@dataclass(frozen=True)
class SoftRow:
    """A layer of soft chunking in a row of training."""

    b: float
    """mean"""
    std: float
    """standard deviation of b"""
    gradient: float
    """norm of the gradient of its boundary predictor"""


@dataclass(frozen=True)
class TrainRow:
    """The steps since the last such row."""

    step: int
    """steps taken"""
    seconds: float
    """of training so far, as tokens and bytes"""
    tokens: int
    bytes: int
    loss: float
    """nats per token, without the routers' losses"""
    bpb: float
    rates: list[float]
    """chunks per position at each level, the outermost first, as the next two"""
    truncated: list[int]
    """boundaries beyond a fixed capacity"""
    truncated_sequences: list[float]
    """share of sequences that had some"""
    lr: float
    """factor on the peak learning rates in the last of the steps"""
    bytes_per_second: float
    soft: list[SoftRow]
    """of each layer of soft chunking; left out where there are none"""
    kind: Literal["train"] = "train"


@dataclass(frozen=True)
class ValidationRow:
    """The score of a sample of the validation split, with the weights that would be exported."""

    step: int
    seconds: float
    bpb: float
    tokens: int
    kind: Literal["validation"] = "validation"


@dataclass(frozen=True)
class AlarmRow:
    """What is wrong, in words."""

    step: int
    text: str
    kind: Literal["alarm"] = "alarm"


class MetricsFile:
    """metrics.jsonl, the truth about a run: one JSON object per line, appended and flushed."""

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

    def add(self, row: TrainRow | ValidationRow | AlarmRow) -> None:
        """Append one row."""
        told = dataclasses.asdict(row)
        told = {"kind": told.pop("kind"), **told}
        if not told.get("soft", True):
            del told["soft"]
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told, allow_nan=False) + "\n")
        if self._also:
            self._also(told)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut short by a crash is left out.

    Raises BytegolfError for a line that is JSON, but no row.
    """
    if not path.exists():
        return []
    with disk_errors(path, "read the metrics"):
        text = path.read_text(encoding="utf-8", errors="replace")
    rows = []
    for number, line in enumerate(lines_of(text), start=1):
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


def event_log(run: Path, first: int) -> Callable[[dict[str, Any]], None]:
    """What takes a row of metrics.jsonl and writes its figures as events below ``run``.

    Events from step ``first`` on that an interrupted run has left there are hidden: those steps happen again. Raises
    BytegolfError if the package is not there.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BytegolfError(
            f"train.tensorboard is on, but the package is not installed: {install('tensorboard')}, or leave "
            "it off, as metrics.jsonl has all figures too"
        ) from error
    writer: Any = SummaryWriter(str(run / TENSORBOARD), purge_step=first or None)

    def write(row: dict[str, Any]) -> None:
        for name, value in figures(row):
            writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        writer.flush()

    return write


def figures(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a row by name; those of a list by their place, those of a table by theirs."""
    for key, value in row.items():
        if key not in ("step", "kind", "text"):
            yield from _numbers(key, value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, (int, float)):
        yield name, float(value)
    elif isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(f"{name}/{key}", inner)
