"""The frontier of an export, bytes against bits per byte: as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from bytegolf.analyze import plots
from bytegolf.artifact.results import FrontierPoint


def table(rows: Sequence[FrontierPoint], limit: int) -> Table:
    """One line per point, the largest first; what does not fit is marked."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("total bytes", "model", "bpb", "loss of the sample"):
        drawn.add_column(heading, justify="right")
    drawn.add_column("bits")
    for row in rows:
        total = f"{row.total_bytes:,}" + (" " if row.total_bytes <= limit else "!")
        figures = (f"{row.model_bytes:,}", f"{row.bpb:.4f}", f"{row.sample_loss:.4f}")
        drawn.add_row(total, *figures, widths(row.widths))
    scored = f"{rows[0].tokens:,}" if rows else "no"
    drawn.caption = f"bpb: of the first {scored} validation tokens; !: over {limit:,} bytes"
    drawn.caption_justify = "left"
    return drawn


def widths(labels: dict[str, str]) -> str:
    """Groups by their width, the widest first: ``8: embedding · 5: mixer, mlp``."""
    found: dict[str, list[str]] = {}
    for group, label in labels.items():
        found.setdefault(label, []).append(group.removeprefix("network."))
    return " · ".join(f"{label}: {', '.join(found[label])}" for label in sorted(found, reverse=True))


def draw(rows: Sequence[FrontierPoint], limit: int, path: Path) -> None:
    """Draw the points into a PNG file.

    Raises BytegolfError where matplotlib is missing or the file cannot be written.
    """
    figure = plots.canvas(7, 4.5)
    axes = figure.add_subplot()
    axes.plot([row.total_bytes / 1e6 for row in rows], [row.bpb for row in rows], "o-", color=plots.COLORS[0])
    axes.axvline(limit / 1e6, color=plots.COLORS[1], linestyle="--", linewidth=1, label=f"{limit / 1e6:g} MB")
    axes.set_xlabel("code and model, millions of bytes")
    axes.set_ylabel("bits per byte")
    axes.legend()
    axes.grid(alpha=0.3)
    plots.save_png(figure, path)
