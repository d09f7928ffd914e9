"""The tables of an analysis, for a terminal and for a page alike: made from its result and from nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from bytegolf.analyze import results, stability_results

FORCED = {"open": "b = 1 everywhere", "closed": "b = 0 everywhere", "shuffled": "b shuffled"}
"""What b is replaced by in each of the scores besides its own."""


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn: the first column says what a row is."""

    title: str
    head: list[str]
    rows: list[list[str]]
    wide: bool = False
    """too many columns for a terminal"""

    def drawn(self) -> Table:
        """For a terminal."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(self.title, style="bold"), title_justify="left")
        for place, heading in enumerate(self.head):
            table.add_column(Text(heading), justify="right" if place else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def grids(models: Sequence[results.ModelAnalysis]) -> Iterator[Grid]:
    """The tables of an analysis, the most important one first."""
    columns = [pair for model in models for pair in model.named_levels()]
    yield _scores(models)
    soft = [(model.name, model.soft.bpb, model.soft.layers) for model in models if model.soft]
    if soft:
        yield soft_chunking(soft)
    if columns:
        yield _boundaries([name for name, _ in columns], [level for _, level in columns])
    stable = [found for model in models for found in model.stable_levels()]
    if stable:
        yield _room(stable)
        yield _moved(stable)
    for name, level in columns:
        if level.words:
            yield _words(name, level.words)
    for name, level in columns:
        yield _frequent(name, level.frequent)
    for model in models:
        if len(model.texts) > 1:
            yield _parts(f"by text: {model.name}", "text", [(one.text, one) for one in model.texts])
        if len(model.scripts) > 1 or len(model.texts) > 1:
            yield _parts(f"by script: {model.name}", "script", [(one.script, one) for one in model.scripts])
        if model.history:
            yield _history(f"over training: {model.name}", model.history)


def of_probe(found: results.Probe) -> Iterator[Grid]:
    """The tables of a probe of soft chunking."""
    yield soft_chunking([("", found.bpb, found.layers)])
    if found.history:
        yield _training(found.history)


def _scores(models: Sequence[results.ModelAnalysis]) -> Grid:
    rows = [
        ["bits per byte", *(number(model.bpb, 4) for model in models)],
        ["bytes", *(f"{model.bytes:,}" for model in models)],
        ["parameters", *(f"{model.params:,}" for model in models)],
        ["chunking", *map(_chunking, models)],
    ]
    return Grid("model", ["", *(model.name for model in models)], rows)


def _chunking(model: results.ModelAnalysis) -> str:
    """What a model has to chunk with."""
    found = [f"{len(model.soft.layers)} × soft"] if model.soft else []
    found += [f"{len(model.levels)} × router"] if model.chunking == "router" else []
    return " + ".join(found) or "none: flat"


def _boundaries(names: list[str], levels: list[results.Level]) -> Grid:
    """A figure per row; "a (b)" is a figure and, in brackets, what chance would give."""

    def row(what: str, cell: Callable[[results.Level], str]) -> list[str]:
        return [what, *map(cell, levels)]

    def beside_bpe(one: results.Level, figure: Callable[[results.Agreement], tuple[float | None, float | None]]) -> str:
        return beside(*figure(one.bpe)) if one.bpe else "–"

    rows = [
        row("touch whitespace", lambda one: beside(one.whitespace_agreement, one.random_agreement)),
        row("· behind it", lambda one: beside(one.whitespace_behind, one.random_behind)),
        row("· at it", lambda one: beside(one.whitespace_at, one.random_at)),
        row("per 256 bytes", lambda one: number(one.boundaries_per_256_bytes, 1)),
        row("mean chunk, bytes", lambda one: number(one.mean_chunk_bytes, 2)),
        row("CV of chunk lengths", lambda one: number(one.cv, 2)),
        row("split a character", lambda one: beside(one.utf8_splits, one.random_utf8_splits)),
    ]
    if any(level.bpe for level in levels):
        rows += [
            row("at BPE boundaries", lambda one: beside_bpe(one, lambda bpe: (bpe.precision, bpe.random_precision))),
            row("BPE boundaries met", lambda one: beside_bpe(one, lambda bpe: (bpe.recall, bpe.random_recall))),
            row("· F1", lambda one: beside_bpe(one, lambda bpe: (bpe.f1, bpe.random_f1))),
        ]
    rows += [
        row("in the most surprising tenth", lambda one: times(one.surprisal.enrichment)),
        row("bits per byte at boundaries", lambda one: number(one.surprisal.bits_at_boundaries, 2)),
        row("bits per byte elsewhere", lambda one: number(one.surprisal.bits_elsewhere, 2)),
        row("boundaries", lambda one: f"{one.boundaries:,}"),
    ]
    return Grid("boundaries, and in brackets what chance would give", ["", *names], rows)


def _words(name: str, classes: list[results.WordClass]) -> Grid:
    def occurrences(one: results.WordClass) -> str:
        if one.to is None:
            return f"{one.from_}× or more"
        return "once" if one.to == 1 else f"{one.from_}–{one.to}×"

    rows = [
        [
            occurrences(one),
            f"{one.words:,}",
            number(one.mean_bytes, 1),
            beside(one.cut, one.random_cut),
            beside(one.opened, one.random_opened),
            number(one.pieces, 2),
        ]
        for one in classes
    ]
    return Grid(f"words: {name}", ["word occurs", "words", "bytes", "cut inside", "opened", "chunks per word"], rows)


def _frequent(name: str, found: results.Frequent) -> Grid:
    """Two rows, so that spaces at a chunk's ends can be seen: they are written ␣."""
    chunks = [one.chunk.replace(" ", "␣") for one in found.top]
    return Grid(
        f"most frequent chunks of {found.distinct:,} different ones: {name}",
        ["", *(str(rank) for rank in range(1, len(chunks) + 1))],
        [["chunk", *chunks], ["count", *(f"{one.count:,}" for one in found.top)]],
        wide=True,
    )


def _parts(title: str, first: str, parts: Sequence[tuple[str, results.Part]]) -> Grid:
    chunked = any(part.windows for _, part in parts)
    head = [first, "bytes", "bits per byte"]
    head += ["touch whitespace", "mean chunk", "in characters", "CV", "split a character"] if chunked else []
    rows = []
    for name, part in parts:
        row = [name, f"{part.bytes:,}", number(part.bpb, 3)]
        if chunked:
            row += [
                beside(part.whitespace_agreement, part.random_agreement),
                number(part.mean_chunk_bytes, 2),
                number(part.mean_chunk_characters, 2),
                number(part.cv, 2),
                beside(part.utf8_splits, part.random_utf8_splits),
            ]
        rows.append(row)
    return Grid(title, head, rows)


def _history(title: str, moments: list[results.Moment]) -> Grid:
    head = ["weights", "step", "bits per byte", "touch whitespace", "mean chunk", "CV", "per 256 bytes", "enrichment"]
    rows = [
        [
            point.what,
            f"{point.step:,}",
            number(point.bpb, 3),
            percent(point.whitespace_agreement),
            number(point.mean_chunk_bytes, 2),
            number(point.cv, 2),
            number(point.boundaries_per_256_bytes, 1),
            times(point.enrichment),
        ]
        for point in moments
    ]
    if any(point.b is not None for point in moments):
        head.append("mean b")
        for row, point in zip(rows, moments, strict=True):
            row.append(number(point.b, 3))
    return Grid(title, head, rows)


# ---------------------------------------------------------------------------------------------- stability


def _room(found: Sequence[tuple[str, stability_results.Stability, stability_results.StabilityLevel]]) -> Grid:
    """Boundaries per window against the room for them, a column per level."""
    levels = [level for _, _, level in found]
    rows = [
        ["windows, of tokens", *(f"{whole.windows:,} of {whole.length:,}" for _, whole, _ in found)],
        ["boundaries per window", *(f"{level.mean:.1f} ± {level.std:.1f}" for level in levels)],
        ["least, median, most", *(f"{one.least:,}, {one.median:,.0f}, {one.most:,}" for one in levels)],
        ["room for", *("all" if level.limit is None else f"{level.limit:,}" for level in levels)],
        ["windows cut (boundaries)", *map(_cut, levels)],
    ]
    tried = [{one.divisor: one for one in level.divisors} for level in levels]
    for divisor in sorted({divisor for one in tried for divisor in one}):
        rows.append([f"· with room for 1/{divisor:g}", *(_cut(one.get(divisor)) for one in tried)])
    return Grid("room for boundaries", ["", *(name for name, _, _ in found)], rows)


def _cut(one: stability_results.CapacityCost | stability_results.StabilityLevel | None) -> str:
    return "–" if one is None else f"{percent(one.cut_windows)} ({percent(one.cut_boundaries)})"


def _moved(found: Sequence[tuple[str, stability_results.Stability, stability_results.StabilityLevel]]) -> Grid:
    """What a shift and what other weights move, a column per level."""
    levels = [level for _, _, level in found]

    def moved(title: str, of: Sequence[stability_results.Flips | None]) -> Iterator[list[str]]:
        yield [f"{title}: flips per window", *(number(one.per_window, 2) if one else "–" for one in of)]
        yield ["· per boundary", *(percent(one.per_boundary, 3) if one else "–" for one in of)]
        yield ["· per position", *(percent(one.per_position, 3) if one else "–" for one in of)]

    by = sorted({level.shift.by for level in levels})
    rows = list(moved(f"shifted by {' or '.join(map(str, by))}", [level.shift for level in levels]))
    distances = [{one.from_: one for one in level.shift.distances} for level in levels]
    for start in sorted({start for one in distances for start in one}):
        end = next(one[start].to for one in distances if start in one)
        label = f"· {start:,}–{end:,} behind the start" if end > start else f"· {start} behind the start"
        rows.append([label, *(percent(one[start].per_position, 3) if start in one else "–" for one in distances)])
    weights = [{one.weights: one for one in level.weights} for level in levels]
    for what in dict.fromkeys(what for one in weights for what in one):
        rows += moved(f"float → {what}", [one.get(what) for one in weights])
    return Grid("boundaries that move", ["", *(name for name, _, _ in found)], rows)


# ---------------------------------------------------------------------------------------------- soft chunking


def soft_chunking(models: Sequence[tuple[str, results.ForcedScores, list[results.SoftLayerFigures]]]) -> Grid:
    """What soft chunking does, a column per layer; the scores are a model's, and stand in its first column."""
    columns = [column for model, _, own in models for column in results.named(model, "layer", own)]
    names, layers = [name for name, _ in columns], [layer for _, layer in columns]
    scores = [None if place else bpb for _, bpb, own in models for place in range(len(own))]
    rows = [["bits per byte, b as it is", *(number(bpb.as_is if bpb else None, 4) for bpb in scores)]]
    rows += [[f"· {what}", *(_against(bpb, key) for bpb in scores)] for key, what in FORCED.items()]
    rows += [
        ["b, mean ± std", *(f"{one.mean:.3f} ± {one.std:.3f}" for one in layers)],
        *([f"· {at} % of them below", *(f"{one.quantiles[at]:.3f}" for one in layers)] for at in ("10", "50", "90")),
        ["· below ½", *(percent(one.below_half) for one in layers)],
        ["from the identity", *(number(one.from_identity, 3) for one in layers)],
        ["boundaries per position", *(percent(one.boundaries.rate) for one in layers)],
        ["· mean chunk, bytes", *(number(one.boundaries.mean_chunk_bytes, 2) for one in layers)],
    ]
    rows += _extremes("whitespace", [one.whitespace for one in layers])
    if any(one.bpe for one in layers):
        rows += _extremes("BPE boundaries", [one.bpe for one in layers])
    return Grid("soft chunking; in brackets the change, or what all positions have", ["", *names], rows)


def _extremes(what: str, shares: Sequence[results.Extremes | None]) -> list[list[str]]:
    return [
        [f"highest tenth of b at {what}", *(beside(one.highest, one.all) if one else "–" for one in shares)],
        [f"· lowest tenth at {what}", *(beside(one.lowest, one.all) if one else "–" for one in shares)],
    ]


def _against(bpb: results.ForcedScores | None, key: str) -> str:
    return "–" if bpb is None else f"{getattr(bpb, key):.4f} ({getattr(bpb, key) - bpb.as_is:+.4f})"


def _training(history: list[results.SoftStep]) -> Grid:
    rows = [
        [f"{row.step:,}", f"{place}", f"{one['b']:.3f} ± {one['std']:.3f}", f"{one['gradient']:.2e}"]
        for row in history
        for place, one in enumerate(row.layers)
    ]
    return Grid("over training", ["step", "layer", "b, mean ± std", "gradient"], rows)


# ---------------------------------------------------------------------------------------------- figures in a cell


def beside(value: float | None, chance: float | None) -> str:
    """A share and, in brackets, the one that chance would give."""
    return "–" if value is None else f"{percent(value)} ({percent(chance)})"


def times(value: float | None) -> str:
    """A factor."""
    return "–" if value is None else f"{value:.2f}×"


def percent(value: float | None, digits: int = 1) -> str:
    """A share."""
    return "–" if value is None else f"{value:.{digits}%}"


def number(value: float | None, digits: int) -> str:
    """Any other figure."""
    return "–" if value is None else f"{value:.{digits}f}"
