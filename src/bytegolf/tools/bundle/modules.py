"""A module as a list of top-level statements, each with what it defines, what it refers to, and what can be cut.

Positions are byte offsets in the module's text, so that the text is edited and never printed anew: what comes out
reads as it was written, and is the same with every version of Python.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from bytegolf.tools.bundle.names import Target


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
