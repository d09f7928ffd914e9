"""One HTML page of an analysis that needs nothing but itself: chunks, surprisal and p of each byte, tables, curves.

Whatever comes from a text, a file's name or a model is escaped by the template, and set as text by the script, so it
never becomes markup. Should that fail all the same, the page's content security policy runs no script but the one
whose hash it names, and loads nothing. Curves are images: what an SVG image holds can neither run nor load.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from jinja2 import Environment

from bytegolf.analyze import plots
from bytegolf.analyze.figures import figures
from bytegolf.analyze.packing import packed_reading
from bytegolf.analyze.reading import Reading
from bytegolf.analyze.results import AnalysisResult
from bytegolf.analyze.segment import Segmentation, visible
from bytegolf.analyze.tables import grids
from bytegolf.errors import BytegolfError

POLICY = "default-src 'none'"


def live_page() -> dict[str, tuple[str, str]]:
    return {}


def page(
    analysis: AnalysisResult, readings: list[list[Reading]], standard: list[tuple[str, Segmentation]], show: int
) -> str:
    """The page of an analysis; ``readings[m][t]`` is what model m made of text t, and ``standard`` its beginning in
    chunks, side by side, each with a title.

    The first ``show`` bytes of the texts, in equal parts, are there to be looked at; tables and curves are of all of
    them. Without matplotlib there are no curves, and the page says what to install.
    """
    style, script = _asset("page.css"), _asset("page.js")
    names = [model.name for model in analysis.models]
    size = max(1, show // max(1, len(analysis.texts)))
    data = {
        "names": names,
        "chunking": [model.chunking for model in analysis.models],
        "depth": max(len(model.levels) for model in analysis.models),
        "texts": [
            {"name": text.name, "models": [_packed(of_model[at].head(size)) for of_model in readings]}
            for at, text in enumerate(analysis.texts)
        ],
    }
    policy = f"style-src {_hash(style)}; script-src {_hash(script)}; img-src data:"
    images, advice = [], ""
    try:
        for one in figures(analysis.models):
            svg = base64.b64encode(plots.to_svg(one.drawn()).encode()).decode()
            images.append((one.title, f"data:image/svg+xml;base64,{svg}"))
    except BytegolfError as error:
        advice = str(error)
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_asset("page.html"))
    return template.render(
        policy=f"default-src 'none'; {policy}; base-uri 'none'; form-action 'none'",
        title=f"Chunks of {', '.join(names)}",
        style=style,
        script=script,
        data=_json(data),
        about=_about(analysis, size),
        standard=[(title, [visible(piece) for piece in one.chunks()]) for title, one in standard],
        tables=list(grids(analysis.models)),
        figures=images,
        advice=advice,
    )


def _packed(reading: Reading) -> dict[str, Any]:
    return {"data": base64.b64encode(reading.data).decode(), **packed_reading(reading)}


def _asset(name: str) -> str:
    return (resources.files("bytegolf.analyze") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that ends no script element, whatever it holds."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _about(analysis: AnalysisResult, size: int) -> str:
    texts = analysis.texts
    total = sum(text.bytes for text in texts)
    shown = sum(min(size, text.bytes) for text in texts)
    what = texts[0].name if len(texts) == 1 else f"{len(texts)} texts"
    part = "all of it is shown" if shown == total else f"the first {shown:,} are shown here"
    return f"{total:,} bytes of {what}; {part}, tables and curves are of all. {analysis.note}"
