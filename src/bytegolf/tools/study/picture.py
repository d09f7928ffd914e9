"""A study as a picture: paired differences with their intervals and seeds, and scores against artifact sizes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from bytegolf.errors import BytegolfError
from bytegolf.files import write_atomically
from bytegolf.tools.study.table import BETTER, SAME, UNKNOWN, WORSE, Line, Table

STYLES = {BETTER: ("#0072b2", "o"), WORSE: ("#d55e00", "s"), SAME: ("#6e6e6e", "D"), UNKNOWN: ("#6e6e6e", "D")}
"""Colour and marker of a verdict: Okabe and Ito's blue and vermilion, and shapes that tell without colour."""

CONTROL = ("#1c1c1a", "*")


def draw(table: Table, path: Path) -> None:
    """Write ``table`` as the PNG file ``path``.

    On the left a row a variant, the best on top: its difference to the control in bits a byte, the 95 % interval and a
    ring a seed. On the right each one's mean score against its size.

    Raises BytegolfError where matplotlib is missing, or no variant can be compared with the control yet.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BytegolfError(
            "plots need matplotlib: install it with `pip install matplotlib`, or leave out --plot"
        ) from error
    compared = [line for line in table.lines if line.difference]
    if not compared:
        raise BytegolfError(
            f"no run of {table.study.config.name} can be compared with its control yet: run it before it is drawn"
        )
    scored = [line for line in table.lines if line.bpb and line.means["total_bytes"] is not None]
    rows = max(len(compared), len(scored))
    figure = Figure(figsize=(11, 1.9 + 0.34 * rows), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(_plain(f"{table.study.config.name}: {table.study.config.budget} a run"), fontsize=11)
    _differences(left, compared, table.study.config.control)
    _sizes(right, scored, table.study.config.control)
    write_atomically(path, functools.partial(figure.savefig, format="png", dpi=130))


def _differences(axes: Any, lines: list[Line], control: str) -> None:
    ordered = sorted(lines, key=lambda line: line.difference.mean if line.difference else 0.0, reverse=True)
    for height, line in enumerate(ordered):
        gap = line.difference
        assert gap
        color, marker = STYLES[line.verdict]
        axes.plot(gap.each, [height] * len(gap.each), "o", mfc="none", mec=color, ms=5, alpha=0.8)
        axes.errorbar(gap.mean, height, xerr=gap.half, fmt=marker, color=color, ms=7, capsize=4, lw=1.6)
    axes.axvline(0, color=CONTROL[0], lw=1)
    axes.set_yticks(range(len(ordered)), [_plain(line.variant) for line in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel(f"BPB − that of {_plain(control)}, paired by seed (95 % interval; rings are seeds)\n← better")
    axes.grid(axis="x", alpha=0.3)


def _sizes(axes: Any, lines: list[Line], control: str) -> None:
    """Names stand beside the axes, in the order of the scores, each with a line to what it names."""
    for line in lines:
        mean, deviation = line.bpb or (0.0, None)
        size = (line.means["total_bytes"] or 0) / 1e6
        color, marker = CONTROL if line.variant == control else STYLES.get(line.verdict, STYLES[UNKNOWN])
        axes.errorbar(
            size, mean, yerr=deviation, fmt=marker, color=color, ms=11 if marker == "*" else 7, capsize=3, lw=1.2
        )
    axes.margins(x=0.1, y=0.08)
    axes.set_xlabel("artifact and code, MB")
    axes.set_ylabel("bits per byte (mean ± std)")
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    least = 0.9 / max(len(lines), 10)
    ordered = sorted(lines, key=lambda line: line.bpb or (0.0, None))
    at = 0.0
    for rank, line in enumerate(ordered):
        mean = (line.bpb or (0.0, None))[0]
        above = len(ordered) - 1 - rank
        at = min(max((mean - low) / (high - low), at + least if rank else 0.0), 1 - above * least)
        color = CONTROL[0] if line.variant == control else STYLES.get(line.verdict, STYLES[UNKNOWN])[0]
        axes.annotate(
            _plain(line.variant),
            ((line.means["total_bytes"] or 0) / 1e6, mean),
            xytext=(1.04, at),
            textcoords="axes fraction",
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "alpha": 0.5, "shrinkB": 4, "relpos": (0, 0.5)},
        )


def _plain(name: str) -> str:
    """No formulas from a name."""
    return name.replace("$", r"\$")
