"""What a script's names and shapes say to ``flow``: which values hold the validation split, where scores are booked.

A reading of names: it errs where a script's names do.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bytegolf.tools.submission.reading import dotted

Function = ast.FunctionDef | ast.AsyncFunctionDef

_VALIDATION = re.compile(r"(^|_)(val|validation|valid)(_|$)", re.I)
_FIGURE = re.compile(
    r"loss|bpb|bpt|every|step|batch|time|seconds|byte|count|interval|log|acc|metric|best|size|len|num|n_val|sum|nats|bits"
    r"|check|error|range",
    re.I,
)
_SPLIT = re.compile(r"(^|[^a-z])(val|valid|validation)([^a-z]|$)", re.I)
_BOOKED = re.compile(r"nats|loss|total|bits|bpb|score|sum", re.I)
_EPOCHS = re.compile(r"epoch|pass(es)?$|repeat", re.I)


@dataclass(frozen=True)
class Shape:
    """What of a function matters here."""

    parts: Sequence[ast.AST]
    """assignments, loops, calls and results, in order of lines"""
    booked: list[int]
    """lines that add to a sum of losses"""
    epochs: list[tuple[int, int]]
    """first and last lines of loops over epochs"""


def shape_of(node: ast.AST) -> Shape:
    """What is in a function or script, but not in the functions and classes in it; in order of lines."""
    found: list[ast.AST] = []
    waiting = list(ast.iter_child_nodes(node))
    while waiting:
        part = waiting.pop()
        found.append(part)
        if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            waiting += ast.iter_child_nodes(part)
    found.sort(key=lambda part: getattr(part, "lineno", 0))
    added = [part for part in found if isinstance(part, ast.AugAssign) and _BOOKED.search(dotted(part.target))]
    loops = [part for part in found if isinstance(part, ast.For) and _EPOCHS.search(dotted(part.target))]
    relevant = [part for part in found if isinstance(part, _RELEVANT)]
    return Shape(
        relevant, [part.lineno for part in added], [(part.lineno, part.end_lineno or part.lineno) for part in loops]
    )


_RELEVANT = (
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.For, ast.AsyncFor, ast.comprehension, ast.withitem),
    *(ast.Call, ast.Return, ast.Yield, ast.YieldFrom),
)


def assigned(part: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """The targets that a statement or clause gives a value, each with that value (or what it is an item of)."""
    if isinstance(part, ast.Assign):
        pairs: list[tuple[ast.expr, ast.expr]] = []
        for target in part.targets:
            if isinstance(target, ast.Tuple) and isinstance(part.value, ast.Tuple):
                pairs += zip(target.elts, part.value.elts, strict=False)
            else:
                pairs.append((target, part.value))
        return pairs
    if isinstance(part, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and part.value:
        return [(part.target, part.value)]
    if isinstance(part, (ast.For, ast.AsyncFor, ast.comprehension)):
        return [(part.target, part.iter)]
    if isinstance(part, ast.withitem) and part.optional_vars:
        return [(part.optional_vars, part.context_expr)]
    return []


def holds_validation(name: str) -> bool:
    """Whether a name says that it holds the validation split, and not a figure about it."""
    return bool(_VALIDATION.search(name)) and name not in ("val", "valid") and not _FIGURE.search(name)


def says_validation(value: ast.expr) -> bool:
    """Whether an argument names the validation split: "val", "fineweb_val_*.bin"."""
    return any(
        isinstance(part, ast.Constant)
        and isinstance(part.value, str)
        and len(part.value) < 80
        and bool(_SPLIT.search(part.value))
        and not _FIGURE.search(part.value)
        and " " not in part.value
        for part in ast.walk(value)
    )


def tainted_parameters(function: Function, call: ast.Call, hot: list[bool], method: bool) -> frozenset[str]:
    """The parameters that get tainted arguments."""
    given = function.args
    places = [one.arg for one in (*given.posonlyargs, *given.args)]
    if method and places[:1] in (["self"], ["cls"]):
        places = places[1:]
    found: set[str] = set()
    for number, tainted in enumerate(hot[: len(call.args)]):
        if isinstance(call.args[number], ast.Starred) and tainted:
            found.update(places[number:])
        elif tainted and number < len(places):
            found.add(places[number])
        elif tainted and given.vararg:
            found.add(given.vararg.arg)
    for keyword, tainted in zip(call.keywords, hot[len(call.args) :], strict=True):
        if tainted and keyword.arg:
            found.add(keyword.arg)
    return frozenset(found)
