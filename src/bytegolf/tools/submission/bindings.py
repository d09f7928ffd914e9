"""What the names of one piece of code are bound to, and whether a name may come to mean something else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

_READS = frozenset(
    re.findall(
        r"\w+", "bytes bytearray tuple list len map enumerate zip sorted reversed print str min max sum iter range"
    )
)
"""Functions that leave a list as it is."""


class Bindings:
    """The names of one source; scopes are not told apart, so what is bound in two of them counts as bound twice."""

    def __init__(self, nodes: list[ast.AST]) -> None:
        self.library: dict[str, str] = {}
        """names that imports bind, and the full names that they stand for"""
        self.modules: set[str] = set()
        """those of them that are modules for sure"""
        self.bound: dict[str, ast.expr] = {}
        """names that are given one value in all"""
        self.parents = {id(child): node for node in nodes for child in ast.iter_child_nodes(node)}
        self._top = {id(part): part for node in nodes if isinstance(node, ast.Module) for part in node.body}
        self._imports: dict[str, set[str]] = {}
        self._counts: dict[str, int] = {}
        self._loads: dict[str, list[ast.Name]] = {}
        self._deleted: set[str] = set()
        self.star = False
        """whether all of a module is imported: that may bind any name once more"""
        for node in nodes:
            self._note(node)
        for node in nodes:
            self._bind(node)
        # `x = b"…"` and later `x = decode(x)`: which of the two a call sees takes running, so x is not known at all
        self.bound = {name: value for name, value in self.bound.items()
                      if self._counts.get(name) == 1 and name not in self._imports}  # fmt: skip

    def _note(self, node: ast.AST) -> None:
        """Count the names that ``node`` binds."""
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if isinstance(node, ast.Import):
                    first = alias.name.partition(".")[0]
                    name, whole = alias.asname or first, alias.name if alias.asname else first
                    self.modules.add(name)
                else:
                    name, whole = alias.asname or alias.name, f"{node.module}.{alias.name}"
                    self.star |= alias.name == "*"
                self.library[name] = whole
                self._imports.setdefault(name, set()).add(whole)
            return
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                self._loads.setdefault(node.id, []).append(node)
                return
            if isinstance(node.ctx, ast.Del):
                self._deleted.add(node.id)
        for name in _bound_by(node):  # a parameter is given another value by each call
            self._counts[name] = self._counts.get(name, 0) + (2 if isinstance(node, ast.arg) else 1)

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    self.bound[target.id] = node.value
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(target.elts, node.value.elts, strict=False)
                    self.bound |= {one.id: value for one, value in pairs if isinstance(one, ast.Name)}
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and isinstance(node.target, ast.Name) and node.value:
            self.bound[node.target.id] = node.value

    def replaced(self, name: str) -> bool:
        """Whether a name of the standard library may mean something of the script's own."""
        if name in self.bound and name not in self._imports:
            root = _root(self.bound[name])
            return root is not None and root != name and self.replaced(root)
        return self.star or self._counts.get(name, 0) > 0 or len(self._imports.get(name, ())) > 1

    def only_read(self, name: str) -> bool:
        """Whether no line can change the list or dictionary that ``name`` is bound to."""
        return all(self._reads(node) for node in self._loads.get(name, ()))

    def _reads(self, node: ast.Name) -> bool:
        parent = self.parents.get(id(node))
        if isinstance(parent, ast.Subscript):
            above = self.parents.get(id(parent))
            return parent.value is node and isinstance(parent.ctx, ast.Load) and not isinstance(above, ast.Attribute)
        if isinstance(parent, ast.Call) and parent.func is not node:
            function = parent.func
            return (isinstance(function, ast.Attribute) and function.attr in ("join", "fromhex", "pack")) or (
                isinstance(function, ast.Name) and function.id in _READS
            )
        if isinstance(parent, (ast.For, ast.comprehension)):
            return parent.iter is node
        return isinstance(parent, (ast.BinOp, ast.Compare, ast.Starred))

    def own(self, node: ast.Name) -> bool:
        """Whether a name here means something of the script's own for sure: a parameter of a function around it, or
        what an earlier line of the module defines unconditionally.
        """
        child: ast.AST = node
        parent = self.parents.get(id(child))
        while parent is not None:
            if isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                inside = parent.body is child if isinstance(parent, ast.Lambda) else child in parent.body
                if inside and node.id in {one.arg for one in ast.walk(parent.args) if isinstance(one, ast.arg)}:
                    return True
            child, parent = parent, self.parents.get(id(parent))
        if node.id in self._deleted:
            return False
        return any(node.id in _defines(part) and (part.end_lineno or 0) < node.lineno for part in self._top.values())


def _defines(part: ast.stmt) -> Iterable[str]:
    if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return (part.name,)
    if isinstance(part, ast.Assign):
        return [target.id for target in part.targets if isinstance(target, ast.Name)]
    return ()


def _bound_by(node: ast.AST) -> Iterator[str]:
    """The names that a node other than an import binds or deletes."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest


def stored(tree: ast.Module) -> set[str]:
    """The names that a module binds anywhere."""
    found = {name for node in ast.walk(tree) for name in _bound_by(node) if not _loaded(node)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return found


def _loaded(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def _root(node: ast.expr) -> str | None:
    """The first name of a chain of attributes, calls and subscripts."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None
