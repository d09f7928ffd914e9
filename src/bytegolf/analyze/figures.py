"""The curves of an analysis and the frontier of an export, made from results: for a page as SVG, for files as PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bytegolf.analyze import plots
from bytegolf.analyze.results import Level, ModelAnalysis, Moment, named
from bytegolf.analyze.stability_results import Stability, StabilityLevel
from bytegolf.artifact.results import FrontierPoint
from bytegolf.files import make_folder


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


LONGEST = 32
"""Chunks beyond this many bytes are not drawn."""

INK = "#808080"
"""Of axes and words: it can be read on the page's light ground and on its dark one."""


@dataclass(frozen=True)
class Line:
    """A curve; a dashed one is what chance would give for the curve of the same colour."""

    label: str
    color: int
    points: list[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Figure:
    """Curves over common axes; ``ticks`` names places on the x axis (empty: numbers)."""

    name: str
    title: str
    x: str
    y: str
    lines: list[Line]
    ticks: tuple[str, ...] = ()

    def drawn(self) -> Any:
        """The matplotlib figure. Raises BytegolfError where matplotlib is missing."""
        figure = plots.canvas(6, 4)
        axes = figure.subplots()
        for number, line in enumerate(self.lines):
            first = line.dashed and not any(one.dashed for one in self.lines[:number])
            axes.plot(
                [x for x, _ in line.points],
                [y for _, y in line.points],
                color=plots.COLORS[line.color % len(plots.COLORS)],
                linestyle="--" if line.dashed else "-",
                label=plots.plain(line.label) if first or not line.dashed else None,
            )
        axes.set_title(plots.plain(self.title), color=INK)
        axes.set_xlabel(self.x, color=INK)
        axes.set_ylabel(self.y, color=INK)
        axes.set_ylim(bottom=0)
        if self.ticks:
            axes.set_xticks(range(len(self.ticks)), self.ticks)
        axes.tick_params(colors=INK)
        axes.spines[:].set_color(INK)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, labelcolor=INK)
        return figure


def save_png(all_figures: Iterable[Figure], folder: Path) -> list[Path]:
    """Draw each figure into ``folder`` and say where. Raises BytegolfError where matplotlib is missing."""
    drawn = [(figure.drawn(), folder / f"{figure.name}.png") for figure in all_figures]
    make_folder(folder)
    for figure, path in drawn:
        plots.save_png(figure, path)
    return [path for _, path in drawn]


def figures(models: Sequence[ModelAnalysis]) -> Iterator[Figure]:
    """The figures that there is data for."""
    levels = [pair for model in models for pair in model.named_levels()]
    yield from _of_soft(models)
    if levels:
        yield from _of_chunks(levels)
        yield _of_words(levels)
    stable = [found for model in models for found in model.stable_levels()]
    if stable:
        yield _of_shifts(stable)
        yield _of_room(stable)
    histories = [(model.name, model.history) for model in models if model.history]
    if histories:
        yield from _of_training(histories)


def _of_soft(models: Sequence[ModelAnalysis]) -> Iterator[Figure]:
    lines: list[Line] = []
    for model in models:
        for name, layer in named(model.name, "layer", model.soft.layers if model.soft else []):
            shares = layer.histogram
            middles = _known(((place + 0.5) / len(shares), share) for place, share in enumerate(shares))
            lines.append(Line(name, len(lines), middles))
    if lines:
        width = len(lines[0].points)
        yield Figure("soft_b", "Soft chunking", "b", f"share of positions, in {width} parts", lines)


def _of_chunks(levels: Sequence[tuple[str, Level]]) -> Iterator[Figure]:
    lengths, inside, deciles = [], [], []
    for color, (name, level) in enumerate(levels):
        total, counts = max(1, level.chunks), dict(level.lengths)
        shares = [(float(size), counts.get(size, 0) / total) for size in range(1, LONGEST + 1)]
        lengths.append(Line(name, color, shares))
        found = level.surprisal
        inside.append(Line(name, color, _known((n + 1, bits) for n, bits in enumerate(found.bits_in_chunk))))
        deciles.append(Line(name, color, _known((n + 1, rate) for n, rate in enumerate(found.rate_by_decile))))
        if level.rate is not None:
            deciles.append(Line("at random", color, [(1, level.rate), (10, level.rate)], True))
    yield Figure("lengths", "Chunk lengths", "bytes", "share of chunks", lengths)
    yield Figure("surprisal_in_chunk", "Surprisal inside chunks", "byte of the chunk", "bits", inside)
    x, y = "tenth of positions, by surprisal", "boundaries per position"
    yield Figure("rate_by_surprisal", "Where chunks begin", x, y, deciles)


def _of_words(levels: Sequence[tuple[str, Level]]) -> Figure:
    starts = sorted({one.from_ for _, level in levels for one in level.words})
    lines = []
    for color, (name, level) in enumerate(levels):
        lines.append(Line(name, color, _known((starts.index(one.from_), one.cut) for one in level.words)))
        chance = _known((starts.index(one.from_), one.random_cut) for one in level.words)
        lines.append(Line("at random", color, chance, True))
    ticks = tuple(f"{start}" if start == 1 else f"{start}+" for start in starts)
    return Figure("words_cut", "Words cut inside", "occurrences of the word", "share of words", lines, ticks)


def _of_shifts(levels: Sequence[tuple[str, Stability, StabilityLevel]]) -> Figure:
    moved = [
        Line(name, color, _known((math.log2(one.from_), one.per_position) for one in level.shift.distances))
        for color, (name, _, level) in enumerate(levels)
    ]
    most = max((len(level.shift.distances) for _, _, level in levels), default=0)
    ticks = tuple(f"{1 << power}" for power in range(most))
    x, y = "tokens behind the window's start, from", "flips per position"
    return Figure("flips", "Boundaries that a shift moves", x, y, moved, ticks)


def _of_room(levels: Sequence[tuple[str, Stability, StabilityLevel]]) -> Figure:
    """For each number of chunks, the share of windows that want more: a staircase, two points per step."""
    beyond = []
    for color, (name, whole, level) in enumerate(levels):
        left, points = whole.windows, []
        for count, windows in level.counts:
            points.append((100 * count / whole.length, left / whole.windows))
            left -= windows
            points.append((100 * count / whole.length, left / whole.windows))
        beyond.append(Line(name, color, points))
        if level.limit is not None:
            share = 100 * level.limit / whole.length
            beyond.append(Line("room", color, [(share, 0.0), (share, 1.0)], True))
    x, y = "chunks, % of the window's tokens", "share of windows"
    return Figure("room", "Windows that want more chunks", x, y, beyond)


def _of_training(histories: Sequence[tuple[str, list[Moment]]]) -> Iterator[Figure]:
    for key, what in (("bpb", "bits per byte"), ("whitespace_agreement", "share of boundaries at whitespace")):
        lines = [
            Line(name, color, _known((point.step, getattr(point, key)) for point in points))
            for color, (name, points) in enumerate(histories)
        ]
        yield Figure(f"training_{key}", f"{what[0].upper()}{what[1:]} over training", "step", what, lines)


def _known(points: Iterable[tuple[float, float | None]]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points if y is not None]
