"""One HTML page of an analysis that needs nothing but itself: chunks, surprisal and p of each byte, tables, curves.

Whatever comes from a text, a file's name or a model is escaped here, and set as text by the script, so it never becomes
markup. Should that fail all the same, the page's content security policy runs no script but the one whose hash it
names, and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytegolf.analyze.figures import COLORS, Figure, figures, svg
from bytegolf.analyze.grid import Grid
from bytegolf.analyze.reading import Reading
from bytegolf.analyze.render import chunks, visible
from bytegolf.analyze.segment import Segmentation
from bytegolf.analyze.tables import grids

_NOTHING = 65535


def page(
    analysis: dict[str, Any],
    readings: list[list[Reading]],
    standard: list[tuple[str, Segmentation]],
    show: int,
) -> str:
    """The page of ``recipes.analysis``'s result; ``readings[m][t]`` is what model m made of text t, and ``standard``
    the standard text in chunks, side by side, each with a title.

    The first ``show`` bytes of the texts, in equal parts, are there to be looked at; tables and curves are of it all.
    """
    style, script = _asset("page.css"), _asset("page.js")
    names = [model["name"] for model in analysis["models"]]
    size = max(1, show // max(1, len(analysis["texts"])))
    data = {
        "names": names,
        "chunking": [model["chunking"] for model in analysis["models"]],
        "depth": max(len(model["levels"]) for model in analysis["models"]),
        "texts": [
            {"name": text["name"], "models": [_packed(of_model[at].head(size)) for of_model in readings]}
            for at, text in enumerate(analysis["texts"])
        ],
    }
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    title = f"Chunks of {', '.join(names)}"
    return _PAGE.format(
        policy=escape(policy),
        title=escape(title),
        style=style,
        script=script,
        data=_json(data),
        about=escape(_about(analysis, size)),
        scale_bits=_scale("0 bits", "8 or more"),
        scale_p=_scale("0", "1"),
        standard=_standard(standard),
        tables="".join(map(_table, grids(analysis))),
        figures="".join(map(_figure, figures(analysis))),
    )


def _asset(name: str) -> str:
    return (resources.files("bytegolf.analyze") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that ends no script element, whatever it holds."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(reading: Reading) -> dict[str, Any]:
    """Arrays for the script: surprisal in thousandths of a bit, p in ten-thousandths, as little-endian 16 bits."""
    return {
        "data": base64.b64encode(reading.data).decode(),
        "bits": _shorts(reading.bits * 1000),
        "levels": [
            {
                "p": _shorts(level.p * 10000),
                "boundary": base64.b64encode(level.boundary.astype(np.uint8).tobytes()).decode(),
            }
            for level in reading.levels
        ],
    }


def _shorts(values: NDArray[np.float32]) -> str:
    whole = np.where(np.isfinite(values), np.clip(np.rint(np.nan_to_num(values)), 0, _NOTHING - 1), _NOTHING)
    return base64.b64encode(whole.astype("<u2").tobytes()).decode()


def _about(analysis: dict[str, Any], size: int) -> str:
    texts = analysis["texts"]
    total = sum(text["bytes"] for text in texts)
    shown = sum(min(size, text["bytes"]) for text in texts)
    what = texts[0]["name"] if len(texts) == 1 else f"{len(texts)} texts"
    part = "all of it is shown" if shown == total else f"the first {shown:,} are shown here"
    return f"{total:,} bytes of {what}; {part}, tables and curves are of all. {analysis['note']}"


def _scale(low: str, high: str) -> str:
    shades = "".join(f'<span class="h{shade}">&nbsp;</span>' for shade in range(9))
    return f'{low} <span class="scale">{shades}</span> {high}'


def _standard(found: list[tuple[str, Segmentation]]) -> str:
    """The standard text as each of the models cuts it, or one of them over training."""
    if not found:
        return ""
    panels = []
    for title, one in found:
        pieces = chunks(one.data, one.boundaries)
        spans = (
            f'<span class="chunk{" odd" * (number % 2)}">{escape(visible(piece))}</span>'
            for number, piece in enumerate(pieces)
        )
        heading = escape(f"{title}: {len(pieces)} chunks")
        panels.append(f'<section><h3>{heading}</h3><pre class="text chunks">{"".join(spans)}</pre></section>')
    return f'<h2>Side by side: two sentences in chunks</h2><div class="panels">{"".join(panels)}</div>'


def _table(grid: Grid) -> str:
    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in grid.rows)
    title = grid.title[0].upper() + grid.title[1:]
    return f'<h2>{escape(title)}</h2><div class="wide"><table>{row(grid.head, "th")}{body}</table></div>'


def _figure(figure: Figure) -> str:
    keys = [(line.label, line) for line in figure.lines if not line.dashed]
    if dashed := next((line for line in figure.lines if line.dashed), None):
        keys.append((f"dashed: {dashed.label}", dashed))
    items = []
    for label, line in keys:
        dashes = ' stroke-dasharray="4 4"' if line.dashed else ""
        stroke = f'<path class="line s{line.color % len(COLORS)}" d="M0 4H24"{dashes}/>'
        items.append(f'<li><svg viewBox="0 0 24 8" aria-hidden="true">{stroke}</svg>{escape(label)}</li>')
    drawn = svg(figure) or "<p>nothing to draw</p>"
    title = escape(figure.title)
    return f'<figure><figcaption>{title}</figcaption>{drawn}<ul class="key">{"".join(items)}</ul></figure>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="soft">{about}</p>
<div class="controls">
<label>text <select id="text"></select></label>
<label>colours <select id="view">
<option value="chunks">chunks</option>
<option value="bits">surprisal</option>
<option value="p" id="view-p">boundary probability</option>
</select></label>
<label><span id="depth">level</span> <select id="level"></select></label>
<span class="soft" id="legend-chunks">a new colour is a new chunk<span id="legend-tick" hidden>; a line, a chunk of the
outermost level</span></span>
<span class="soft" id="legend-bits" hidden>{scale_bits}; a line is a boundary</span>
<span class="soft" id="legend-p" hidden>{scale_p}; a line is a boundary</span>
</div>
<noscript><p>The text itself needs JavaScript; tables and curves do not.</p></noscript>
<div id="panels" class="panels"></div>
<aside id="info" aria-live="polite">Point at a byte, tap it, or focus a text and walk with the arrow keys.</aside>
{standard}
<section>{tables}</section>
<h2>Curves</h2>
<section class="figures">{figures}</section>
<h2>What is counted</h2>
<ul>
<li>A boundary at a byte means that it starts a chunk. The first byte of a window or a document always does: it is
drawn, but not counted, as nobody chose it.</li>
<li>A boundary lies <em>behind</em> whitespace if the byte before it is ASCII whitespace, <em>at</em> it if its own byte
is, and <em>touches</em> it if either holds.</li>
<li>Soft chunking cuts nothing: its b is the share of its own vector that a position keeps, beside what came before it.
At 1 everywhere it is the identity, up to a linear map. The distance from that is ‖blended − own‖ / ‖own‖ behind the
map.</li>
<li>Figures in brackets and dashed lines are chance: as many boundaries at random places where there could be one.</li>
<li>Surprisal is −log₂ of the probability that the model gave to a byte; over subwords a token's bits are shared out
evenly among its bytes. “In the most surprising tenth” is the share of boundaries there, over a tenth: chance
has 1.</li>
<li>A boundary moves, or flips, if a chunk begins at a token in one of two readings only: in windows that begin a few
tokens later, or with the float weights and the quantised ones. What a router proposes counts, before a fixed capacity
cuts any of it.</li>
<li>A word is a run of letters, digits and non-ASCII bytes; it is cut if a boundary lies behind its first byte.</li>
</ul>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
