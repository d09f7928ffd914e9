"""The figures of the documentation: what a trained model gave, and the SVG files drawn from it.

    bytegolf prepare --tokenizer byte260,sp1024 --out data/both
    bytegolf train cpu-demo train.max_seconds=0 train.max_steps=500 --data data/both --out runs/figures
    python docs/figures/make.py measure runs/figures --data data/both   # measured.json
    python docs/figures/make.py                                         # the SVG files, from measured.json alone

500 steps take two minutes on two cores. Drawing uses the standard library only and gives the same bytes everywhere, so
a test can tell whether the committed files are up to date.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MEASURED = HERE / "measured.json"

PASSAGE = (
    "And all the world knows that no successful system builds a wall to keep its people in and freedom out--and the "
    "wall of shame dividing Berlin is a symbol of Communist failure."
)
"""From Kennedy's message of 1963, which is in the default corpus' validation split: no model was trained on it."""

WINDOW, WINDOWS, APART = 1024, 400, 2000
"""Capacity's histogram: chunks of so many bytes, in so many windows, which begin so many bytes apart."""

# ------------------------------------------------------------------------------------------------------- measuring


def measure(run: Path, data: Path) -> dict[str, Any]:
    """What the figures show of the model in the folder ``run``; ``data`` has byte260 and sp1024."""
    import numpy as np
    import sentencepiece

    import bytegolf

    model = bytegolf.load(run)
    summary = json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    log_probs = model.log_probs(PASSAGE)
    bits = -log_probs[np.arange(len(PASSAGE)), list(PASSAGE.encode())] / np.log(2)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(next(data.glob("tokenizers/*.model"))))
    text = _validation(data)
    return {
        "run": {key: summary[key] for key in ("name", "steps", "train_bytes", "bpb")},
        "standard": {"before": summary["chunks_before"], "after": summary["chunks_after"]},
        "starts": model.boundaries(PASSAGE),
        "bits": [round(float(value), 3) for value in bits],
        "pieces": [len(piece.replace("\u2581", " ")) for piece in pieces.encode(PASSAGE, out_type=str)],
        "counts": [len(model.boundaries(text[k * APART : k * APART + WINDOW])) for k in range(WINDOWS)],
        "curve": [[row["bytes"], round(row["bpb"], 4)] for row in rows if row["kind"] == "train"],
    }


def _validation(data: Path) -> bytes:
    """The validation split's bytes."""
    import numpy as np

    (shard,) = data.glob("datasets/*byte260/*_val_000000.bin")
    tokens = np.fromfile(shard, "<u2")[512:]
    return (tokens[tokens >= 4] - 4).astype(np.uint8).tobytes()


# --------------------------------------------------------------------------------------------------------- drawing

STANDARD = (
    "The quick brown fox jumps over the lazy dog. Natural language processing has made remarkable progress in recent "
    "years."
)
COLOURS = ("#cfe3f7", "#fbe3c4", "#d5edcf", "#f6d3d8", "#e2d8f2", "#f3efc0")
INK, SOFT, ACCENT = "#24292f", "#6e7781", "#b35900"
CHAR, LINE = 8.4, 26.0
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"


class Drawing:
    """An SVG file in the making; coordinates are pixels from the upper left corner."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.parts = width, height, [f"<title>{escape(title)}</title>"]
        self.box(0, 0, width, height, "#ffffff")

    def box(self, x: float, y: float, width: float, height: float, fill: str, edge: str = "none", r: float = 3) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{r:g}" fill="{fill}" '
            f'stroke="{edge}"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = SOFT, more: str = "") -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>')

    def arrow(self, x1: float, y1: float, x2: float, y2: float, colour: str = SOFT) -> None:
        self.line(x1, y1, x2, y2, colour, 'marker-end="url(#tip)"')

    def path(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        data = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{data}" fill="none" stroke="{colour}" stroke-width="2"/>')

    def words(self, x: float, y: float, text: str, size: float = 13, colour: str = SOFT, anchor: str = "start") -> None:
        """A label in the viewer's sans-serif font."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-family="system-ui,sans-serif" font-size="{size:g}" fill="{colour}" '
            f'text-anchor="{anchor}">{escape(text)}</text>'
        )

    def letters(self, x: float, y: float, text: str, colour: str = INK) -> None:
        """Monospaced text, ``CHAR`` pixels per character whatever the viewer's font."""
        shown = escape(text).replace(" ", "\u00a0")
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-family="{FONT}" font-size="14" fill="{colour}" '
            f'textLength="{len(text) * CHAR:.1f}" lengthAdjust="spacingAndGlyphs">{shown}</text>'
        )

    def svg(self) -> str:
        tip = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{SOFT}"/></marker></defs>'
        )
        size = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n{tip}\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def pieces_of(text: str, starts: Sequence[int]) -> list[str]:
    """The text cut before each of the offsets ``starts``, of which the first is 0."""
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def strip(drawing: Drawing, x: float, y: float, pieces: Sequence[str], columns: int) -> float:
    """Chunks as coloured boxes, broken into lines of at most ``columns`` characters; the y below the last line."""
    column = 0
    for number, piece in enumerate(pieces):
        if column + len(piece) > columns:
            column, y = 0, y + LINE
        left = x + column * CHAR
        drawing.box(left + 0.6, y, len(piece) * CHAR - 1.2, 20, COLOURS[number % len(COLOURS)])
        drawing.letters(left, y + 14.5, piece)
        column += len(piece)
    return y + LINE


def chunks(found: dict[str, Any]) -> Drawing:
    """The picture of the README: before and after training, and a passage that no model was trained on."""
    before, after = (pieces_of(STANDARD, found["standard"][key]) for key in ("before", "after"))
    drawing = Drawing(700, 282, "Chunks of a byte-level H-Net before and after training")
    run, columns = found["run"], 80
    y = 14.0
    for title, pieces in (
        (f"before training: {len(before)} chunks", before),
        (f"after {run['steps']} steps ({run['train_bytes'] / 1e6:.1f} MB of text): {len(after)} chunks", after),
        ("the same model, a passage from its validation split (Kennedy, 1963)", pieces_of(PASSAGE, found["starts"])),
    ):
        drawing.words(14, y + 8, title)
        y = strip(drawing, 14, y + 16, pieces, columns) + 10
    return drawing


def sequences(found: dict[str, Any]) -> Drawing:
    """One text as bytes, as tokens of a fixed vocabulary, and as chunks."""
    size = 78
    offsets = [0]
    for length in found["pieces"]:
        offsets.append(offsets[-1] + length)
    rows = (
        ("bytes", list(range(size)), len(PASSAGE)),
        ("tokens of sp1024, a vocabulary fixed beforehand", offsets[:-1], len(found["pieces"])),
        ("chunks that the model finds", found["starts"], len(found["starts"])),
    )
    drawing = Drawing(700, 172, "The same text as bytes, tokens and chunks")
    for row, (name, starts, count) in enumerate(rows):
        y = 14.0 + 52 * row
        drawing.words(14, y + 8, f"{name}: {count} in the whole passage")
        strip(drawing, 14, y + 16, pieces_of(PASSAGE[:size], [s for s in starts if s < size]), size + 1)
    return drawing


def chunking(found: dict[str, Any]) -> Drawing:
    """One level of an H-Net over the beginning of the passage."""
    size, wide, left = 24, 27.0, 30.0
    starts = [start for start in found["starts"] if start < size]
    pieces = pieces_of(PASSAGE[:size], starts)
    drawing = Drawing(700, 400, "One level of an H-Net: encode, route, select, main network, smooth, expand, decode")

    def middle(position: int) -> float:
        return left + (position + 0.5) * wide

    def stack(y: float, label: str, x: float, width: float) -> None:
        drawing.box(x, y, width, 26, "#eef1f4", SOFT)
        drawing.words(x + width / 2, y + 17, label, colour=INK, anchor="middle")

    full = size * wide
    centres = [left + full * (number + 0.5) / len(starts) for number in range(len(starts))]
    drawing.words(left, 386, "bytes x_t; a bold edge marks a boundary, where the router's p_t is one half or more")
    for position in range(size):
        chunk = sum(start <= position for start in starts) - 1
        for y in (334.0, 14.0):
            drawing.box(left + position * wide + 1, y, wide - 2, 26, COLOURS[chunk % len(COLOURS)])
        drawing.letters(middle(position) - CHAR / 2, 352, PASSAGE[position])
        drawing.letters(middle(position) - CHAR / 2, 32, PASSAGE[position + 1], SOFT)
        if position in starts:
            drawing.line(left + position * wide, 332, left + position * wide, 362, ACCENT, 'stroke-width="3"')
        drawing.arrow(middle(position), 330, middle(position), 318)
        drawing.arrow(middle(position), 64, middle(position), 44)
    stack(290, "encoder: one vector per byte", left, full)
    for number, (start, piece) in enumerate(zip(starts, pieces, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        drawing.arrow(middle(start), 288, centres[number], 238, ACCENT)
        for y in (210.0, 140.0):
            drawing.box(centres[number] - 44, y, 88, 26, colour)
            drawing.letters(centres[number] - len(piece) * CHAR / 2, y + 18, piece)
        for position in range(start, start + len(piece)):
            drawing.line(centres[number], 140, middle(position), 92, COLOURS[number % len(COLOURS)], 'stroke-width="2"')
    drawing.box(left + 206, 254, 238, 18, "#ffffff")
    drawing.words(350, 268, "select the vectors at the boundaries", anchor="middle")
    stack(176, "main network: one vector per chunk", left + 60, full - 120)
    drawing.box(left + 206, 106, 238, 18, "#ffffff")
    drawing.words(350, 120, "smooth, then one vector per byte again", anchor="middle")
    stack(66, "+ residual from the encoder, then the decoder: the next byte", left, full)
    return drawing


def routers(found: dict[str, Any]) -> Drawing:
    """The standard text, cut by a learned router and by fixed rules."""
    size = 78
    behind = [0, *(n + 1 for n, letter in enumerate(STANDARD[:-1]) if letter == " ")]
    rows = (
        ("cosine, untrained", found["standard"]["before"]),
        (f"cosine, after {found['run']['steps']} steps", found["standard"]["after"]),
        ("whitespace: behind every space", behind),
        ("stride: every 6 bytes", list(range(0, len(STANDARD), 6))),
    )
    drawing = Drawing(700, 224, "The same text cut by different routers")
    for row, (name, starts) in enumerate(rows):
        y = 14.0 + 52 * row
        drawing.words(14, y + 8, f"{name}: {len(starts)} chunks in {len(STANDARD)} bytes")
        strip(drawing, 14, y + 16, pieces_of(STANDARD[:size], [s for s in starts if s < size]), size + 1)
    return drawing


def capacity(found: dict[str, Any]) -> Drawing:
    """How many chunks windows have, against the room that a fixed capacity makes."""
    drawing = Drawing(700, 260, "Chunks per window, and the room of fixed capacities")
    low, high, left, bottom = 110, 270, 40.0, 216.0
    scale = (700 - 2 * left) / (high - low)
    bins: dict[int, int] = {}
    for count in found["counts"]:
        bins[count // 4 * 4] = bins.get(count // 4 * 4, 0) + 1
    tallest = max(bins.values())
    for start, number in sorted(bins.items()):
        height = 140 * number / tallest
        drawing.box(left + (start - low) * scale, bottom - height, 4 * scale - 1, height, "#8db6dd", r=1)
    drawing.line(left, bottom, 700 - left, bottom)
    for tick in range(120, high, 20):
        drawing.words(left + (tick - low) * scale, bottom + 16, str(tick), 12, anchor="middle")
    drawing.words(350, bottom + 36, f"chunks in a window of {WINDOW:,} bytes ({WINDOWS} windows)", anchor="middle")
    for divisor in (8, 6, 4):
        room = WINDOW // divisor
        x = left + (room - low) * scale
        cut = sum(count > room for count in found["counts"]) / len(found["counts"])
        drawing.line(x, 50, x, bottom, ACCENT, 'stroke-dasharray="5 4"')
        drawing.words(x, 26, f"fixed, divisor {divisor}", 12, ACCENT, "middle")
        drawing.words(x, 42, f"room for {room}: {cut:.0%} cut", 12, ACCENT, "middle")
    return drawing


def bits(found: dict[str, Any]) -> Drawing:
    """What each byte of the passage costs, with the chunks below."""
    size = 87
    drawing = Drawing(760, 332, "Bits for each byte of a passage")
    mean = sum(found["bits"]) / len(found["bits"])
    for row in range(2):
        first = row * size
        y = 144.0 + 154 * row
        shown = found["bits"][first : first + size]
        for column, value in enumerate(shown):
            height = min(value, 12) * 9
            drawing.box(14 + column * CHAR + 1, y - height, CHAR - 2, height, "#8db6dd", r=1)
        drawing.line(14, y - mean * 9, 14 + len(shown) * CHAR, y - mean * 9, ACCENT, 'stroke-dasharray="5 4"')
        text = PASSAGE[first : first + size]
        starts = sorted({0, *(start - first for start in found["starts"] if 0 <= start - first < len(text))})
        strip(drawing, 14, y + 4, pieces_of(text, starts), size + 1)
    drawing.words(14, 24, "bits of each byte, −log₂ p(byte | bytes before it)")
    drawing.words(746, 24, f"mean of all {len(PASSAGE)}: {mean:.2f} bits per byte", 13, ACCENT, "end")
    return drawing


def curve(found: dict[str, Any]) -> Drawing:
    """Training loss in bits per byte over the bytes that were read."""
    drawing = Drawing(700, 260, "Bits per byte in training")
    left, bottom, top = 50.0, 216.0, 20.0
    most = found["curve"][-1][0]

    def place(size: float, bpb: float) -> tuple[float, float]:
        return left + (660 - left) * size / most, bottom - (bottom - top) * (bpb - 1) / 3

    for level in (1, 2, 3, 4):
        drawing.line(left, place(0, level)[1], 660, place(0, level)[1], "#e3e6ea")
        drawing.words(left - 8, place(0, level)[1] + 4, str(level), 12, anchor="end")
    for megabytes in range(0, int(most / 1e6) + 1):
        drawing.words(place(megabytes * 1e6, 1)[0], bottom + 16, f"{megabytes}", 12, anchor="middle")
    drawing.path([place(size, bpb) for size, bpb in found["curve"] if bpb <= 4], "#3b78b5")
    drawing.words(355, bottom + 36, "megabytes of training text read", anchor="middle")
    drawing.words(660, 34, "bits per byte of the training batches", 13, "#3b78b5", "end")
    return drawing


FIGURES: dict[str, Callable[[dict[str, Any]], Drawing]] = {
    "chunks": chunks,
    "sequences": sequences,
    "chunking": chunking,
    "routers": routers,
    "capacity": capacity,
    "bits": bits,
    "curve": curve,
}
"""Each file's name, without .svg, and what draws it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb")
    measuring = verbs.add_parser("measure", help="write measured.json, from a trained run")
    measuring.add_argument("run", type=Path)
    measuring.add_argument("--data", type=Path, default=Path("data/both"))
    arguments = parser.parse_args()
    if arguments.verb == "measure":
        MEASURED.write_text(json.dumps(measure(arguments.run, arguments.data)) + "\n")
    found = json.loads(MEASURED.read_text())
    for name, draw in FIGURES.items():
        (HERE / f"{name}.svg").write_text(draw(found).svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
