"""What a module is to the flattening: top-level statements, what each defines and refers to, and whose names are whose.

Positions are byte offsets in the module's text, so that the text is edited and never printed anew: what comes out
reads as it was written, and is the same with every version of Python.

A name in a function belongs to the innermost scope that binds it, else to the module. Only the module's names change
when modules become one file, so this is all that has to be told apart.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (*NAMED, ast.Lambda)


class Target(NamedTuple):
    """What a module's name stands for."""

    module: str
    """the module of this package that defines it; empty for what comes from elsewhere"""
    name: str
    """its name there; empty for the module itself; the import statement, for what comes from elsewhere"""

    @property
    def natural(self) -> str:
        """The name that it goes by where nothing else is called so."""
        return self.name if self.module else self.name.split()[-1].partition(".")[0]


@dataclass
class Scope:
    """A function, class or comprehension, from the inside."""

    is_class: bool = False
    names: set[str] = field(default_factory=set)
    aliases: dict[str, Target] = field(default_factory=dict)
    """what it imports of the package itself"""


def bound(nodes: Sequence[ast.AST], imports: list[ast.ImportFrom] | None = None) -> set[str]:
    """The names that statements bind in their own scope: assigned, imported, defined; not those of scopes inside.

    ``imports`` gets the ``from`` imports among them.
    """
    waiting = list(nodes)
    found: set[str] = set()
    elsewhere: set[str] = set()
    while waiting:
        node = waiting.pop()
        kind = type(node)
        if kind in _SCOPES:
            if isinstance(node, NAMED):
                found.add(node.name)
            continue
        if kind in _COMPREHENSIONS:
            found.update(part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr))
            continue
        if isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                found.add(node.id)
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
            if imports is not None and isinstance(node, ast.ImportFrom):
                imports.append(node)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            elsewhere.update(node.names)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
        waiting += ast.iter_child_nodes(node)
    return found - elsewhere


def arguments(function: Function) -> Iterator[ast.arg]:
    """Every parameter of a function."""
    given = function.args
    yield from (*given.posonlyargs, *given.args, *given.kwonlyargs)
    yield from (one for one in (given.vararg, given.kwarg) if one)


def inner(node: Function | Comprehension | ast.ClassDef) -> tuple[Scope, list[ast.ImportFrom]]:
    """The scope that a node opens, and what is imported in it."""
    if isinstance(node, Comprehension):
        return Scope(names=bound([part.target for part in node.generators])), []
    if isinstance(node, ast.Lambda):
        return Scope(names={argument.arg for argument in arguments(node)} | bound([node.body])), []
    imports: list[ast.ImportFrom] = []
    names = bound(node.body, imports)
    if isinstance(node, ast.ClassDef):
        return Scope(True, names), imports
    return Scope(names=names | {argument.arg for argument in arguments(node)}), imports


@dataclass(frozen=True)
class Cut:
    """A part of the text that is replaced, mostly by nothing."""

    start: int
    end: int
    text: bytes = b""


@dataclass(frozen=True)
class Reference:
    """A place that refers to something at the top of a module, of this package or from elsewhere."""

    node: ast.expr | None
    """what is written there; None for a name in a ``global`` statement"""
    start: int
    end: int
    target: Target
    written: str
    owner: ast.JoinedStr | None = None
    """the f-string that it is in, whose insides have no dependable positions before Python 3.12"""


@dataclass
class Statement:
    """One statement at the top of a module."""

    start: int
    end: int
    names: frozenset[str]
    references: list[Reference] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)


@dataclass
class Module:
    """A module that has been read."""

    name: str
    text: bytes
    title: str
    """the first line of its docstring"""
    statements: list[Statement]
    imports: dict[str, Target]
    """what its own names stand for that it imports"""
    lines: tuple[str, ...]
    """imports of submodules from elsewhere, which bind no name of their own"""
    locals: frozenset[str]
    """every name that some inner scope binds"""

    @property
    def before(self) -> set[str]:
        """The modules of this package that are imported before it runs."""
        return {target.module for target in self.imports.values() if target.module}
