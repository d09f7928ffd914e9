"""The tables of an analysis, for a terminal and for a page alike: made from its JSON data and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bytegolf.analyze.grid import Grid, fine, number, percent, times, with_chance
from bytegolf.analyze.soft_table import soft_chunking


def grids(analysis: dict[str, Any]) -> Iterator[Grid]:
    """The tables of ``recipes.analysis``'s result, the most important one first."""
    models = analysis["models"]
    columns = [(f"{name}{suffix}", level) for name, suffix, level in _levels(models)]
    yield _scores(models)
    yield from soft_chunking(models)
    if columns:
        yield _boundaries([name for name, _ in columns], [level for _, level in columns])
    yield from _stability(models)
    for name, level in columns:
        if level["words"]:
            yield _words(name, level["words"])
    for name, level in columns:
        yield _frequent(name, level["frequent"])
    for model in models:
        if len(model["texts"]) > 1:
            yield _parts(f"by text: {model['name']}", "text", "text", model["texts"])
        if len(model["scripts"]) > 1 or len(model["texts"]) > 1:
            yield _parts(f"by script: {model['name']}", "script", "script", model["scripts"])
        if model["history"]:
            yield _history(model)


def _levels(models: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for model in models:
        for depth, level in enumerate(model["levels"]):
            yield model["name"], f" · {kind(model)} {depth}" if len(model["levels"]) > 1 else "", level


def kind(model: dict[str, Any]) -> str:
    """What one of a model's levels is called."""
    return "layer" if model["chunking"] == "soft" else "level"


def _scores(models: list[dict[str, Any]]) -> Grid:
    rows = [
        ["bits per byte", *(number(model["bpb"], 4) for model in models)],
        ["bytes", *(f"{model['bytes']:,}" for model in models)],
        ["parameters", *(f"{model['params']:,}" for model in models)],
        ["chunking", *map(_chunking, models)],
    ]
    return Grid("model", ["", *(model["name"] for model in models)], rows)


def _chunking(model: dict[str, Any]) -> str:
    """What a model has to chunk with."""
    found = [f"{len(model['soft']['layers'])} × soft"] if model["soft"] else []
    found += [f"{len(model['levels'])} × router"] if model["chunking"] == "router" else []
    return " + ".join(found) or "none: flat"


def _boundaries(names: list[str], levels: list[dict[str, Any]]) -> Grid:
    """A figure a row; "a (b)" is a figure and, in brackets, what chance would give."""

    def row(what: str, key: str, chance: str = "", digits: int | None = None) -> list[str]:
        return [what, *(with_chance(level, key, chance, digits) for level in levels)]

    rows = [
        row("touch whitespace", "whitespace_agreement", "random_agreement"),
        row("· behind it", "whitespace_behind", "random_behind"),
        row("· at it", "whitespace_at", "random_at"),
        row("per 256 bytes", "boundaries_per_256_bytes", digits=1),
        row("mean chunk, bytes", "mean_chunk_bytes", digits=2),
        row("CV of chunk lengths", "cv", digits=2),
        row("split a character", "utf8_splits", "random_utf8_splits"),
    ]
    if any(level["edges"] for level in levels):
        for what, key in (("at BPE edges", "precision"), ("BPE edges met", "recall"), ("· F1", "f1")):
            rows.append([what, *(with_chance(level["edges"] or {}, key, f"random_{key}", None) for level in levels)])
    surprisal = [level["surprisal"] for level in levels]
    rows += [
        ["in the most surprising tenth", *(times(one["enrichment"]) for one in surprisal)],
        ["bits a byte at boundaries", *(number(one["bits_at_boundaries"], 2) for one in surprisal)],
        ["bits a byte elsewhere", *(number(one["bits_elsewhere"], 2) for one in surprisal)],
        ["boundaries", *(f"{level['boundaries']:,}" for level in levels)],
    ]
    return Grid("boundaries, and in brackets what chance would give", ["", *names], rows)


def _stability(models: list[dict[str, Any]]) -> Iterator[Grid]:
    """Boundaries a window against the room for them, then what moves them: a column a level."""
    found = [(name + suffix, whole, level) for name, suffix, whole, level in firm_levels(models)]
    if not found:
        return
    names, levels = [name for name, _, _ in found], [level for _, _, level in found]
    rows = [
        ["windows, of tokens", *(f"{whole['windows']:,} of {whole['length']:,}" for _, whole, _ in found)],
        ["boundaries a window", *(f"{level['mean']:.1f} ± {level['std']:.1f}" for level in levels)],
        ["least, median, most", *(f"{one['least']:,}, {one['median']:,.0f}, {one['most']:,}" for one in levels)],
        ["room for", *("all" if level["limit"] is None else f"{level['limit']:,}" for level in levels)],
        ["windows cut (boundaries)", *map(_cut, levels)],
    ]
    tried = [{one["divisor"]: one for one in level["divisors"]} for level in levels]
    for divisor in sorted({divisor for one in tried for divisor in one}):
        rows.append([f"· with room for 1/{divisor:g}", *(_cut(one.get(divisor)) for one in tried)])
    yield Grid("room for boundaries", ["", *names], rows)

    def moved(title: str, of: list[dict[str, Any] | None]) -> Iterator[list[str]]:
        for what, key, write in (
            (f"{title}: flips a window", "per_window", lambda value: number(value, 2)),
            ("· a boundary", "per_boundary", fine),
            ("· a position", "per_position", fine),
        ):
            yield [what, *(write(one[key]) if one else "–" for one in of)]

    by = sorted({level["shift"]["by"] for level in levels})
    rows = list(moved(f"shifted by {' or '.join(map(str, by))}", [level["shift"] for level in levels]))
    distances = [{one["from"]: one for one in level["shift"]["distances"]} for level in levels]
    for start in sorted({start for one in distances for start in one}):
        shown = next(one[start] for one in distances if start in one)
        label = (
            f"· {start:,}–{shown['to']:,} behind the start" if shown["to"] > start else f"· {start} behind the start"
        )
        rows.append([label, *(fine(one[start]["per_position"]) if start in one else "–" for one in distances)])
    weights = [{one["weights"]: one for one in level["weights"]} for level in levels]
    for what in dict.fromkeys(what for one in weights for what in one):
        rows += moved(f"float → {what}", [one.get(what) for one in weights])
    yield Grid("boundaries that move", ["", *names], rows)


def firm_levels(models: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """A model's name, what tells its level, its stability and the level's part of it."""
    for model in models:
        found = model["stability"]
        for depth, level in enumerate(found["levels"] if found else ()):
            yield model["name"], f" · level {depth}" if len(found["levels"]) > 1 else "", found, level


def _cut(one: dict[str, Any] | None) -> str:
    return "–" if one is None else f"{percent(one['cut_windows'])} ({percent(one['cut_boundaries'])})"


def _words(name: str, classes: list[dict[str, Any]]) -> Grid:
    rows = [
        [
            _occurrences(one),
            f"{one['words']:,}",
            number(one["mean_bytes"], 1),
            with_chance(one, "cut", "random_cut", None),
            with_chance(one, "opened", "random_opened", None),
            number(one["pieces"], 2),
        ]
        for one in classes
    ]
    return Grid(f"words: {name}", ["word occurs", "words", "bytes", "cut inside", "opened", "pieces"], rows)


def _occurrences(one: dict[str, Any]) -> str:
    if one["to"] is None:
        return f"{one['from']}× or more"
    return "once" if one["to"] == 1 else f"{one['from']}–{one['to']}×"


def _frequent(name: str, found: dict[str, Any]) -> Grid:
    """Two rows, so that spaces at a chunk's ends can be seen: they are written ␣."""
    top = found["top"]
    chunks = [one["chunk"].replace(" ", "␣") for one in top]
    return Grid(
        f"most frequent chunks of {found['distinct']:,} different ones: {name}",
        ["", *(str(rank) for rank in range(1, len(top) + 1))],
        [["chunk", *chunks], ["count", *(f"{one['count']:,}" for one in top)]],
        wide=True,
    )


def _parts(title: str, first: str, key: str, parts: list[dict[str, Any]]) -> Grid:
    chunked = any("cv" in part for part in parts)
    head = [first, "bytes", "bits per byte"]
    head += ["touch whitespace", "mean chunk", "in characters", "CV", "split a character"] if chunked else []
    rows = []
    for part in parts:
        row = [part[key], f"{part['bytes']:,}", number(part["bpb"], 3)]
        if chunked:
            row += [
                with_chance(part, "whitespace_agreement", "random_agreement", None),
                number(part["mean_chunk_bytes"], 2),
                number(part["mean_chunk_characters"], 2),
                number(part["cv"], 2),
                with_chance(part, "utf8_splits", "random_utf8_splits", None),
            ]
        rows.append(row)
    return Grid(title, head, rows)


def _history(model: dict[str, Any]) -> Grid:
    rows = [
        [
            point["what"],
            f"{point['step']:,}",
            number(point["bpb"], 3),
            percent(point["whitespace_agreement"]),
            number(point["mean_chunk_bytes"], 2),
            number(point["cv"], 2),
            number(point["boundaries_per_256_bytes"], 1),
            times(point["enrichment"]),
        ]
        for point in model["history"]
    ]
    head = ["weights", "step", "bits per byte", "touch whitespace", "mean chunk", "CV", "per 256 bytes", "enrichment"]
    if model["chunking"] == "soft":
        head.append("mean b")
        for row, point in zip(rows, model["history"], strict=True):
            row.append(number(point["b"], 3))
    return Grid(f"over training: {model['name']}", head, rows)
