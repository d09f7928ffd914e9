"""Pages: of an analysis, one HTML file that needs nothing but itself; and the live one, of the same assets.

Whatever comes from a text, a file's name or a model is escaped by the template, and set as text by the scripts, so it
never becomes markup. Should that fail all the same, the page's content security policy runs no script but its own (the
one whose hash it names, or what its own server sends), and loads nothing from elsewhere. Curves are images: what an SVG
image holds can neither run nor load.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from jinja2 import Environment, Template

from bytegolf.analyze import plots
from bytegolf.analyze.figures import figures
from bytegolf.analyze.packing import ShownText
from bytegolf.analyze.report import Analysis
from bytegolf.analyze.segment import visible
from bytegolf.analyze.tables import grids
from bytegolf.errors import BytegolfError

SHARED = ("reading.js", "picture.js", "facts.js", "controls.js")
"""The scripts of both pages, in their order."""

LIVE = (*SHARED, "live.js", "extras.js")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'"
)
"""The content security policy of the live page."""

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def live_page() -> dict[str, tuple[str, str]]:
    """The files of the live page by the path that they are served at: what each holds, and its media type."""
    names = {f"/{name}": name for name in ("page.css", "icon.svg", *LIVE)}
    files = {path: (_asset(name), KINDS[name.rpartition(".")[2]]) for path, name in names.items()}
    html = _template().render(live=True, policy=POLICY, title="bytegolf", about="")
    return {"/": (html, KINDS["html"]), **files}


def page(found: Analysis) -> str:
    """The page of an analysis: its texts to be looked at, tables and curves of all of it.

    Without matplotlib there are no curves, and the page says what to install.
    """
    style, script = _asset("page.css"), "".join(map(_asset, (*SHARED, "still.js")))
    analysis = found.result
    data = {
        "models": [
            {"name": model.name, "chunking": model.chunking, "levels": len(model.levels)} for model in analysis.models
        ],
        "reference": analysis.bpe,
        "texts": [
            {"name": text.name, "models": [_packed(of_model[at]) for of_model in found.shown]}
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
    return _template().render(
        live=False,
        policy=f"default-src 'none'; {policy}; base-uri 'none'; form-action 'none'",
        title=f"Chunks of {', '.join(model.name for model in analysis.models)}",
        style=style,
        script=script,
        data=_json(data),
        about=_about(found),
        standard=[(title, [visible(piece) for piece in one.chunks()]) for title, one in found.standard],
        tables=list(grids(analysis.models)),
        figures=images,
        advice=advice,
    )


def _packed(text: ShownText) -> dict[str, Any]:
    return {"data": base64.b64encode(text.live.reading.data).decode(), **text.packed()}


def _template() -> Template:
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return (resources.files("bytegolf.analyze") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that ends no script element, whatever it holds."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _about(found: Analysis) -> str:
    texts = found.result.texts
    total = sum(text.bytes for text in texts)
    shown = sum(len(text.live.reading.data) for text in found.shown[0])
    what = texts[0].name if len(texts) == 1 else f"{len(texts)} texts"
    part = "all of it is shown" if shown >= total else f"the first {shown:,} are shown here"
    return f"{total:,} bytes of {what}; {part}, tables and curves are of all. {found.result.note}"
