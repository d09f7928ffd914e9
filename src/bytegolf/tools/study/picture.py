"""A study as a picture: paired differences with their intervals and seeds, and scores against artifact sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bytegolf.analyze import plots
from bytegolf.errors import BytegolfError
from bytegolf.tools.study.differences import BETTER, SAME, UNKNOWN, WORSE, Difference
from bytegolf.tools.study.table import Table, VariantResult

STYLES = {
    BETTER: (plots.COLORS[0], "o"),
    WORSE: (plots.COLORS[1], "s"),
    SAME: ("#6e6e6e", "D"),
    UNKNOWN: ("#6e6e6e", "D"),
}
"""Colour and marker of a verdict: shapes tell without colour."""

CONTROL = ("#1c1c1a", "*")


def draw(table: Table, path: Path) -> None:
    """Write ``table`` as the PNG file ``path``.

    On the left a row per variant, the best on top: its difference to the control in bits per byte, the 95 % interval
    and a ring per seed. On the right the mean score of each against its size.

    Raises BytegolfError where matplotlib is missing, or no variant can be compared with the control yet.
    """
    config = table.study.config
    scored = [one for one in table.variants if one.bpb is not None and one.total_bytes is not None]
    figure = plots.canvas(11, 1.9 + 0.34 * max(len(table.gaps), len(scored)))
    if not table.gaps:
        raise BytegolfError(f"no run of {config.name} can be compared with its control yet: run it before it is drawn")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figure.suptitle(plots.plain(f"{config.name}: {config.budget} per run"), fontsize=11)
    _differences(left, table.gaps, config.control)
    _sizes(right, scored, config.control)
    plots.save_png(figure, path, dpi=130)


def _differences(axes: Any, gaps: dict[str, Difference], control: str) -> None:
    ordered = sorted(gaps.items(), key=lambda item: item[1].mean, reverse=True)
    for height, (_, gap) in enumerate(ordered):
        color, marker = STYLES[gap.verdict]
        axes.plot(gap.each, [height] * len(gap.each), "o", mfc="none", mec=color, ms=5, alpha=0.8)
        axes.errorbar(gap.mean, height, xerr=gap.half, fmt=marker, color=color, ms=7, capsize=4, lw=1.6)
    axes.axvline(0, color=CONTROL[0], lw=1)
    axes.set_yticks(range(len(ordered)), [plots.plain(name) for name, _ in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel(f"BPB − that of {plots.plain(control)}, paired by seed (95 % interval; rings are seeds)\n← better")
    axes.grid(axis="x", alpha=0.3)


def _sizes(axes: Any, results: list[VariantResult], control: str) -> None:
    """Names stand beside the axes, in the order of the scores, each with a line to what it names."""
    ordered = sorted(results, key=lambda one: one.bpb or 0.0)
    styles = [CONTROL if one.variant == control else STYLES.get(one.verdict or "", STYLES[UNKNOWN]) for one in ordered]
    places = [((one.total_bytes or 0) / 1e6, one.bpb or 0.0) for one in ordered]
    for (size, mean), one, (color, marker) in zip(places, ordered, styles, strict=True):
        large = {"ms": 11 if marker == "*" else 7}
        axes.errorbar(size, mean, yerr=one.bpb_std, fmt=marker, color=color, capsize=3, lw=1.2, **large)
    axes.margins(x=0.1, y=0.08)
    axes.set_xlabel("artifact and code, MB")
    axes.set_ylabel("bits per byte (mean ± std)")
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    # from the lowest score up, each name at the height of its score, but not nearer to the last name than a line's
    # height, and not so high that those above it have no room
    least, at = 0.9 / max(len(results), 10), 0.0
    for rank, (place, one, (color, _)) in enumerate(zip(places, ordered, styles, strict=True)):
        highest = 1 - (len(ordered) - 1 - rank) * least
        at = min(max((place[1] - low) / (high - low), at + least if rank else 0.0), highest)
        axes.annotate(
            plots.plain(one.variant),
            place,
            xytext=(1.04, at),
            textcoords="axes fraction",
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "alpha": 0.5, "shrinkB": 4, "relpos": (0, 0.5)},
        )
