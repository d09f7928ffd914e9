"""What a row of results must hold before tables are made of it: results.jsonl may come from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bytegolf.errors import BytegolfError, presentable

_LARGEST = 1e18
"""No figure of a run is beyond it."""

_FIGURES = ("bpb", "total_bytes", "params", "train_seconds", "steps", "train_bytes", "train_bytes_per_second")
_CHUNKS = ("rate", "whitespace_agreement", "cv", "mean_chunk_bytes")


def check_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    """``row``, with an error text that can be printed. Raises BytegolfError, naming ``where``, if it is no row."""
    _need(row, where, str, "definition", "data")
    _need(row, where, int, "seed")
    if row["status"] == "done":
        check_summary(row.get("summary"), where)
        check_made(row, where)
        return row
    if row["status"] != "failed" or not isinstance(row.get("error"), str):
        raise _wrong(where, "status", row["status"])
    return {**row, "error": presentable(row["error"])}


def check_summary(summary: Any, where: str) -> None:
    """Raise BytegolfError, naming ``where``, if ``summary`` is none of a finished run."""
    if not isinstance(summary, dict):
        raise _wrong(where, "summary", summary)
    for key in _FIGURES:
        if not _is_figure(summary.get(key)):
            raise _wrong(where, key, summary.get(key))
    if "bpb_original" not in summary or not (summary["bpb_original"] is None or _is_figure(summary["bpb_original"])):
        raise _wrong(where, "bpb_original", summary.get("bpb_original"))
    if (before := summary.get("bpb_unquantised")) is not None and not _is_figure(before):
        raise _wrong(where, "bpb_unquantised", before)
    _need(summary, where, bool, "subset", "fits")
    chunks = summary.get("boundaries", "none")
    if not isinstance(chunks, dict | None):
        raise _wrong(where, "boundaries", chunks)
    for key in _CHUNKS:
        if (value := (chunks or {}).get(key)) is not None and not _is_figure(value):
            raise _wrong(where, key, value)


def check_made(made: Mapping[str, Any], where: str) -> None:
    """Raise BytegolfError unless ``made`` has the git state and the versions that a run was made with."""
    if (git := made.get("git")) is not None:
        if not isinstance(git, dict):
            raise _wrong(where, "git", git)
        _need(git, where, str, "commit")
        _need(git, where, bool, "modified")
    versions = made.get("versions")
    if not isinstance(versions, dict):
        raise _wrong(where, "versions", versions)
    _need(versions, where, str, "torch")


def _need(table: Mapping[str, Any], where: str, kind: type, *keys: str) -> None:
    for key in keys:
        value = table.get(key)
        if type(value) is not kind or (isinstance(value, str) and not value.isprintable()):
            raise _wrong(where, key, table.get(key))


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < _LARGEST


def _wrong(where: str, key: str, value: Any) -> BytegolfError:
    return BytegolfError(
        f"{where} has no valid {key} ({str(value)[:60]!r}): restore it, or delete it to run that again"
    )
