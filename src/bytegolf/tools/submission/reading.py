"""Findings about a script's text: what is searched in it, and where validation tokens go. Nothing is run.

A search that finds nothing shows nothing; it only says where it looked.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from typing import Literal

from bytegolf.tools.submission.flow import Flow
from bytegolf.tools.submission.searches import SEARCHES, data_elsewhere
from bytegolf.tools.submission.sources import Sources
from bytegolf.tools.submission.verdict import TEXTUAL, Finding

_TAKEN = {
    "gradient": "a gradient is taken of them",
    "calibration": "they are calibrated on",
    "file": "they are kept",
}
_RECURSION = 12_000
"""Calls inside calls, for functions of the script that call each other some forty deep."""


def check_text(sources: Sources, ours: bool = False) -> Iterator[Finding]:
    """Findings of all rules that a text tells something about; ``ours`` is a script that is known byte for byte."""
    every = list(sources.every())
    lines = sum(len({node.lineno for node in ast.walk(source.tree) if hasattr(node, "lineno")}) for source in every)
    read = f"reading {len(every)} pieces of code" if len(every) > 1 else "reading the script"
    modules = {source.name for source in every}
    for obstacle in sources.obstacles:
        for rule in TEXTUAL:
            yield Finding(rule, "not proved", f"code was not read: {obstacle}")
    for rule, search, what in SEARCHES:
        found = [(source.name, line, said) for source in every for line, said in search(source.tree, modules)]
        if found:
            name, line, said = found[0]
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            outcome: Literal["broken", "not proved"] = "not proved" if search is data_elsewhere else "broken"
            yield Finding(rule, outcome, f"{said} ({name}:{line}{more})")
        else:
            yield Finding(rule, "nothing found", f"{read} ({lines:,} lines) found {what}; a run would show it")
    yield from check_flow(sources, ours)


def check_flow(sources: Sources, ours: bool = False) -> Iterator[Finding]:
    """Findings about where the validation tokens go. A script of ``ours`` takes the training split where a pattern or
    a list of files could be of any: it opens the split that it names, which a reader of the text cannot follow.
    """
    trees = {sources.script.name: sources.script.tree}
    names = {sources.script.name: sources.script.name}
    for module, source in sources.modules.items():
        trees[module], names[module] = source.tree, source.name
    unpacked = {key: (source.name, source.tree) for key, source in sources.unpacked.items()}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _RECURSION))
    try:
        flow = Flow(trees, unpacked)
    except RecursionError:
        for rule in ("validation unseen", "score, then update"):
            yield Finding(rule, "not proved", "the script is nested too deeply to be followed")
        return
    finally:
        sys.setrecursionlimit(limit)
    worst = "allowed"
    for sink in sorted(flow.sinks.values(), key=lambda one: one.verdict != "broken"):
        place = f"{names.get(sink.file, sink.file)}:{sink.line}, by way of {' → '.join(sink.way) or 'the script'}"
        taken = _TAKEN[sink.kind]
        if sink.verdict == "allowed":
            yield Finding(
                "score, then update", "nothing found", f"it learns from tokens once they are scored ({place})"
            )
            continue
        worst = "broken" if "broken" in (worst, sink.verdict) else "unsure"
        outcome: Literal["broken", "not proved"] = "broken" if sink.verdict == "broken" else "not proved"
        yield Finding("validation unseen", outcome, f"{taken}: {sink.why} ({place})")
        if sink.kind == "gradient":
            yield Finding("score, then update", outcome, f"{sink.why} ({place})")
    for file, line in sorted(flow.rescored):
        said = f"tokens are scored here after others were learned from ({names.get(file, file)}:{line})"
        yield Finding("score, then update", "not proved", said)
    lost = {} if ours else flow.unresolved
    missed = [f"{names.get(file, file)}:{line} ({why})" for (file, line), why in sorted(lost.items())]
    for place in missed[:5]:
        yield Finding(
            "validation unseen", "not proved", f"validation tokens go where they could not be followed: {place}"
        )
    if sources.obstacles:
        return
    learns = any(sink.kind == "gradient" for sink in flow.sinks.values())
    if worst == "allowed" and flow.sources and not missed:
        seen = "a gradient is taken after scoring alone" if learns else "none leads to a gradient or a calibration"
        said = f"{len(flow.sources)} places read the split, and were followed to their ends: {seen}"
        said += "; the script is, byte for byte, what this bytegolf writes for the artifact" if ours else ""
        yield Finding("validation unseen", "shown", said)
    elif not flow.sources:
        yield Finding("validation unseen", "not proved", "no line is seen that reads the split")
    if flow.sources and not learns:
        yield Finding(
            "score, then update", "nothing found", "reading the script found nothing that learns while it scores"
        )
