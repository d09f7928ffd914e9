"""The curves of an analysis: made from its JSON data, drawn as SVG for a page and by matplotlib as PNG files."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bytegolf.analyze.tables import firm_levels
from bytegolf.errors import BytegolfError
from bytegolf.files import make_folder, write_atomically

LONGEST = 32
"""Chunks beyond this many bytes are not drawn."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which differ in every common form of colour blindness."""


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


def figures(analysis: dict[str, Any]) -> Iterator[Figure]:
    """The figures that there is data for."""
    levels = []
    for model in analysis["models"]:
        for number, level in enumerate(model["levels"]):
            levels.append((f"{model['name']}{f' · {number}' if len(model['levels']) > 1 else ''}", level))
    yield from _of_soft(analysis["models"])
    if levels:
        yield from _of_chunks(levels)
        yield _of_words(levels)
    firm = [(name + suffix, whole, level) for name, suffix, whole, level in firm_levels(analysis["models"])]
    if firm:
        yield from _of_stability(firm)
    histories = [(model["name"], model["history"]) for model in analysis["models"] if model["history"]]
    if histories:
        for key, what in (("bpb", "bits per byte"), ("whitespace_agreement", "share of boundaries at whitespace")):
            lines = [
                Line(name, color, _known((point["step"], point[key]) for point in points))
                for color, (name, points) in enumerate(histories)
            ]
            yield Figure(f"training_{key}", f"{what[0].upper()}{what[1:]} over training", "step", what, lines)


def _of_soft(models: list[dict[str, Any]]) -> Iterator[Figure]:
    lines: list[Line] = []
    for model in models:
        layers = model["soft"]["layers"] if model["soft"] else []
        for number, layer in enumerate(layers):
            shares = layer["histogram"]
            middles = _known(((place + 0.5) / len(shares), share) for place, share in enumerate(shares))
            name = f"{model['name']} · {number}" if len(layers) > 1 else model["name"]
            lines.append(Line(name, len(lines), middles))
    if lines:
        width = len(lines[0].points)
        yield Figure("soft_b", "Soft chunking", "b", f"share of positions, in {width} parts", lines)


def _of_chunks(levels: list[tuple[str, dict[str, Any]]]) -> Iterator[Figure]:
    lengths, inside, deciles = [], [], []
    for color, (name, level) in enumerate(levels):
        total, counts = max(1, level["chunks"]), dict(level["lengths"])
        shares = [(size, counts.get(size, 0) / total) for size in range(1, LONGEST + 1)]
        lengths.append(Line(name, color, [(float(size), share) for size, share in shares]))
        found = level["surprisal"]
        inside.append(Line(name, color, _known((n + 1, bits) for n, bits in enumerate(found["bits_in_chunk"]))))
        deciles.append(Line(name, color, _known((n + 1, rate) for n, rate in enumerate(found["rate_by_decile"]))))
        if level["rate"] is not None:
            deciles.append(Line("at random", color, [(1, level["rate"]), (10, level["rate"])], True))
    yield Figure("lengths", "Chunk lengths", "bytes", "share of chunks", lengths)
    yield Figure("surprisal_in_chunk", "Surprisal inside chunks", "byte of the chunk", "bits", inside)
    yield Figure(
        "rate_by_surprisal", "Where chunks begin", "tenth of positions, by surprisal", "boundaries a position", deciles
    )


def _of_words(levels: list[tuple[str, dict[str, Any]]]) -> Figure:
    starts = sorted({one["from"] for _, level in levels for one in level["words"]})
    lines = []
    for color, (name, level) in enumerate(levels):
        for label, key, dashed in ((name, "cut", False), ("at random", "random_cut", True)):
            points = _known((starts.index(one["from"]), one[key]) for one in level["words"])
            lines.append(Line(label, color, points, dashed))
    ticks = tuple(f"{start}" if start == 1 else f"{start}+" for start in starts)
    return Figure("words_cut", "Words cut inside", "occurrences of the word", "share of words", lines, ticks)


def _of_stability(levels: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> Iterator[Figure]:
    moved = [
        Line(
            name,
            color,
            _known((math.log2(one["from"]), one["per_position"]) for one in level["shift"]["distances"]),
        )
        for color, (name, _, level) in enumerate(levels)
    ]
    most = max((len(level["shift"]["distances"]) for _, _, level in levels), default=0)
    yield Figure(
        "flips",
        "Boundaries that a shift moves",
        "tokens behind the window's start, from",
        "flips a position",
        moved,
        tuple(f"{1 << power}" for power in range(most)),
    )
    beyond = []
    for color, (name, whole, level) in enumerate(levels):
        left, points = whole["windows"], []
        for count, windows in level["counts"]:
            points.append((100 * count / whole["length"], left / whole["windows"]))
            left -= windows
            points.append((100 * count / whole["length"], left / whole["windows"]))
        beyond.append(Line(name, color, points))
        if level["limit"] is not None:
            share = 100 * level["limit"] / whole["length"]
            beyond.append(Line("room", color, [(share, 0.0), (share, 1.0)], True))
    yield Figure(
        "room", "Windows that want more chunks", "chunks, % of the window's tokens", "share of windows", beyond
    )


def _known(points: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points if y is not None]


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 260, 52, 12, 12, 44
"""Of an SVG, in its own units, and the margins around the axes."""


def svg(figure: Figure) -> str:
    """The figure as an SVG element whose colours are the page's classes; every text in it is escaped."""
    points = [point for line in figure.lines for point in line.points]
    if not points:
        return ""
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    top = max(y for _, y in points) or 1.0
    step = 10 ** math.floor(math.log10(top))
    step = next(step * part for part in (0.2, 0.5, 1, 2) if top / (step * part) <= 6)
    top = step * math.ceil(top / step - 1e-9)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(figure.title)}">']
    for count in range(round(top / step) + 1):
        value = count * step
        (x, y), (end, _) = at(low, value), at(high, value)
        parts.append(f'<path class="grid" d="M{x} {y}H{end}"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for place, label in _ticks(figure, low, high):
        x, y = at(place, 0)
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{escape(label)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(figure.x)}</text>')
    across = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(12 {across}) rotate(-90)" text-anchor="middle">{escape(figure.y)}</text>')
    for line in figure.lines:
        if line.points:
            path = "L".join("{} {}".format(*at(x, y)) for x, y in line.points)
            dashes = ' stroke-dasharray="4 4"' if line.dashed else ""
            parts.append(f'<path class="line s{line.color % len(COLORS)}" d="M{path}"{dashes}/>')
    return "".join([*parts, "</svg>"])


def _ticks(figure: Figure, low: float, high: float) -> list[tuple[float, str]]:
    """At most ten places on the x axis and what is written there."""
    if figure.ticks:
        return [(place, label) for place, label in enumerate(figure.ticks) if low <= place <= high]
    if high - low <= 1:  # shares
        return [(place / 10, f"{place / 10:g}") for place in range(math.ceil(10 * low), math.floor(10 * high) + 1)]
    step = next(
        step for power in range(12) for step in (10**power, 2 * 10**power, 5 * 10**power) if high - low <= 8 * step
    )
    first = math.ceil(low / step) * step
    return [(place, f"{place:,}") for place in range(first, math.floor(high) + 1, step)]


def save_png(all_figures: list[Figure], folder: Path) -> list[Path]:
    """Draw each figure into ``folder`` and say where. Raises BytegolfError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise BytegolfError(
            "plots need matplotlib: install it with `pip install matplotlib`, or leave out --plots"
        ) from error
    make_folder(folder)
    paths = []
    for figure in all_figures:
        canvas = Canvas(figsize=(6, 4), layout="constrained")
        axes = canvas.subplots()
        for number, line in enumerate(figure.lines):
            first = line.dashed and not any(one.dashed for one in figure.lines[:number])
            axes.plot(
                [x for x, _ in line.points],
                [y for _, y in line.points],
                color=COLORS[line.color % len(COLORS)],
                linestyle="--" if line.dashed else "-",
                label=line.label.replace("$", r"\$") if first or not line.dashed else None,  # no formulas from a name
            )
        axes.set(title=figure.title, xlabel=figure.x, ylabel=figure.y)
        axes.set_ylim(bottom=0)
        if figure.ticks:
            axes.set_xticks(range(len(figure.ticks)), figure.ticks)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        path = folder / f"{figure.name}.png"
        write_atomically(path, functools.partial(canvas.savefig, format="png", dpi=150))
        paths.append(path)
    return paths
