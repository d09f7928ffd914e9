"""Drawing by matplotlib, which is optional: the one place that imports it, and how all pictures look."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

from bytegolf.errors import BytegolfError, install
from bytegolf.files import check_replaceable, write_atomically

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which differ in every common form of colour blindness."""


PNG = b"\x89PNG\r\n\x1a\n"
"""How a PNG file begins."""


def canvas(width: float, height: float) -> Any:
    """An empty matplotlib ``Figure`` of so many inches. Raises BytegolfError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BytegolfError(f"pictures need matplotlib: install it with `{install('plots')}`") from error
    return Figure(figsize=(width, height), layout="constrained")


def check() -> None:
    """Raise BytegolfError, before any work is done, where matplotlib is missing."""
    canvas(1, 1)


def save_png(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a figure as a PNG file, the same bytes for the same figure; a picture that is there is made anew."""
    check_replaceable(path, PNG)
    write_atomically(path, functools.partial(figure.savefig, format="png", dpi=dpi, metadata={"Software": None}))


def to_svg(figure: Any) -> str:
    """A figure as an SVG document on no ground of its own, the same text for the same figure."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "bytegolf"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def plain(name: str) -> str:
    """A name in which matplotlib sees no formula."""
    return name.replace("$", r"\$")
