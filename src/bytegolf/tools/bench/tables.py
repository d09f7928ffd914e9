"""Benchmarks as tables for people: a row per figure, models side by side in the order they were named."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bytegolf.tools.bench.results import Accuracy, BenchmarkResult


def show(console: Console, found: BenchmarkResult) -> None:
    """Print what there is."""
    _noise(console, found)
    _accuracies(console, "characters", [one.characters for one in found.models], found)
    _accuracies(console, "questions", [one.choices for one in found.models], found)
    _boundaries(console, found)
    for one in found.models:
        for task, figures in one.harness.items():
            words = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
            console.print(f"{one.model}, {task}: {words}", soft_wrap=True)


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _names(found: BenchmarkResult) -> list[str]:
    return [f"{one.model} ({one.tokenizer})" for one in found.models]


def _noise(console: Console, found: BenchmarkResult) -> None:
    rows = []
    for same in zip(*(one.noise for one in found.models), strict=True):
        cells = [f"{each.bpb:.3f} ± {each.standard_error:.3f} ({each.bits_per_clean_byte:.3f})" for each in same]
        rows.append([same[0].noise or "clean", *cells, f"{same[0].chance:.0f}", f"{same[0].n}"])
    title = "bits per byte under noise (in brackets: the same bits per byte before the noise)"
    _table(console, title, ["", *_names(found), "chance", "texts"], rows)


def _accuracies(console: Console, title: str, of_models: Sequence[Sequence[Accuracy]], found: BenchmarkResult) -> None:
    rows = []
    for same in zip(*of_models, strict=True):
        first = same[0]
        cells = [f"{each.accuracy:.3f} ± {each.standard_error:.3f}" for each in same]
        name = f"{first.task}, {first.noise}" if first.noise else first.task
        rows.append([name, *cells, f"{first.chance:.3f}", f"{first.n}"])
    _table(console, f"{title}: share of right answers", ["", *_names(found), "chance", "n"], rows)


def _boundaries(console: Console, found: BenchmarkResult) -> None:
    rows = [
        [
            f"{one.model}, level {each.level}, {each.gold}",
            _or_dash(each.f1, each.standard_error),
            _or_dash(each.chance),
            _or_dash(each.precision),
            _or_dash(each.recall),
            _or_dash(each.enrichment),
            str(each.n),
        ]
        for one in found.models
        for each in one.boundaries
    ]
    columns = ["", "F1", "chance", "precision", "recall", "enrichment", "n"]
    _table(console, "chunks against gold segmentations", columns, rows)


def _or_dash(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")
