"""Reads a module: follows its scopes, and notes what each top-level statement refers to and what can be cut from it."""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections.abc import Iterator

from bytegolf.tools.bundle.syntax import (
    NAMED,
    Comprehension,
    Cut,
    Function,
    Module,
    Reference,
    Scope,
    Statement,
    Target,
    arguments,
    bound,
    inner,
)

PACKAGE = "bytegolf"


class _Reader(ast.NodeVisitor):
    """Reads one module; see ``read``."""

    def __init__(self, name: str, text: bytes, modules: frozenset[str]) -> None:
        self.name, self.text, self.modules = name, text, modules
        self.starts = [0]
        for line in text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.imports: dict[str, Target] = {}
        self.lines: list[str] = []
        self.defined: set[str] = set()
        self.scopes: list[Scope] = []
        self.locals: set[str] = set()
        self.references: list[Reference] = []
        self.cuts: list[Cut] = []
        self.comments = list(self._comments())
        self.owner: ast.JoinedStr | None = None

    def _comments(self) -> Iterator[tuple[int, int, int]]:
        """Where each comment's line begins, the comment begins, and both end."""
        for token in tokenize.tokenize(io.BytesIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                line = self.starts[token.start[0] - 1]
                at = line + len(token.line[: token.start[1]].encode())
                yield line, at, at + len(token.string.encode())

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node begins and ends; decorators are part of what they decorate."""
        # the ignored attributes: what is parsed from a text has its position, which `ast.AST` alone does not promise
        first = node.decorator_list[0] if isinstance(node, NAMED) and node.decorator_list else node
        start = self.starts[first.lineno - 1] + first.col_offset - (first is not node)  # type: ignore[attr-defined]
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def cut(self, start: int, end: int, text: bytes = b"") -> None:
        self.cuts.append(Cut(start, end, text))

    def cut_lines(self, node: ast.stmt) -> None:
        """Cut a statement's lines, and what is blank behind them."""
        start, end = self.span(node)
        start = self.text.rfind(b"\n", 0, start) + 1
        end = self.text.find(b"\n", end) + 1 or len(self.text)
        while self.text[end : end + 1] == b"\n":
            end += 1
        self.cut(start, end)

    def target(self, module: str, name: str) -> Target:
        """What ``from module import name`` of this package gives."""
        whole = f"{module}.{name}"
        return Target(whole, "") if whole in self.modules else Target(module, name)

    def imported(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Target]]:
        """The names that an import binds."""
        for alias in node.names:
            name = alias.asname or alias.name
            own = (node.module if isinstance(node, ast.ImportFrom) else alias.name) or ""
            if own.partition(".")[0] == PACKAGE:
                assert isinstance(node, ast.ImportFrom), f"{self.name}:{node.lineno} imports {own} as a value"
                yield name, self.target(own, alias.name)
                continue
            renamed = f" as {alias.asname}" if alias.asname else ""
            if isinstance(node, ast.ImportFrom):
                yield name, Target("", f"from {node.module} import {alias.name}{renamed}")
            elif alias.asname or "." not in name:
                yield name, Target("", f"import {alias.name}{renamed}")
            else:
                self.lines.append(f"import {name}")
                yield name.partition(".")[0], Target("", f"import {name.partition('.')[0]}")

    def resolve(self, name: str) -> Target | None:
        """What a name stands for at the top of some module; None for a local one and for Python's own."""
        for depth, scope in enumerate(reversed(self.scopes)):
            if scope.is_class and depth:
                continue
            if name in scope.aliases:
                return scope.aliases[name]
            if name in scope.names:
                return None
        if name in self.defined:
            return Target(self.name, name)
        return self.imports.get(name)

    def module(self) -> Module:
        """The whole module."""
        tree = ast.parse(self.text)
        kept = []
        for statement in tree.body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                if not (isinstance(statement, ast.ImportFrom) and statement.module == "__future__"):
                    self.imports |= dict(self.imported(statement))
            elif not self.is_idle(statement) and not _is_aside(statement):
                kept.append(statement)
        self.defined = set(bound(kept))
        statements = [self.statement(statement) for statement in kept]
        title = (ast.get_docstring(tree) or "").partition("\n")[0]
        return Module(self.name, self.text, title, statements, self.imports, tuple(self.lines), frozenset(self.locals))

    def statement(self, node: ast.stmt) -> Statement:
        self.references, self.cuts = [], []
        self.visit(node)
        start, end = self.span(node)
        for line, at, stop in self.comments:
            if start <= at < end and not any(cut.start <= at < cut.end for cut in self.cuts):
                before = self.text[line:at].rstrip()
                self.cut(line + len(before), stop if before else stop + 1)
        return Statement(start, end, frozenset(bound([node])), self.references, self.cuts)

    def body(self, statements: list[ast.stmt]) -> None:
        """Visit a block; what says nothing when run is cut, and replaced by ``pass`` where nothing else is left."""
        idle = [statement for statement in statements if self.is_idle(statement)]
        for statement in statements:
            if statement not in idle:
                self.visit(statement)
            elif len(idle) == len(statements) and statement is idle[0]:
                self.cut(*self.span(statement), b"pass")
            else:
                self.cut_lines(statement)

    def is_idle(self, statement: ast.stmt) -> bool:
        """Docstrings, imports of the package itself, and declarations of types without a value."""
        if isinstance(statement, ast.Expr):
            return isinstance(statement.value, ast.Constant)
        if isinstance(statement, ast.ImportFrom):
            return _is_own(statement)
        declared = isinstance(statement, ast.AnnAssign) and statement.value is None
        return declared and not (self.scopes and self.scopes[-1].is_class)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(part)
        for argument in arguments(node):
            if argument.annotation:
                start, end = self.span(argument)[0] + len(argument.arg.encode()), self.span(argument.annotation)[1]
                default = self.text[end : end + 3] == b" = "
                self.cut(start, end + 3 if default else end, b"=" if default else b"")
        if node.returns:
            start, end = self.span(node.returns)
            self.cut(self.text.rindex(b"->", 0, start) - 1, end)
        self.within(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def within(self, node: Function | Comprehension | ast.ClassDef) -> None:
        scope, imports = inner(node)
        self.locals |= scope.names
        for statement in filter(_is_own, imports):
            scope.aliases |= dict(self.imported(statement))
        self.scopes.append(scope)
        if isinstance(node, ast.Lambda):
            self.visit(node.body)
        elif isinstance(node, NAMED):
            self.body(node.body)
        else:
            for number, part in enumerate(node.generators):
                for child in (part.target, *([part.iter] if number else []), *part.ifs):
                    self.visit(child)
            for child in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
                self.visit(child)
        self.scopes.pop()

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for part in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(part)
        self.within(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(part)
        self.within(node)

    def _comprehension(self, node: Comprehension) -> None:
        self.visit(node.generators[0].iter)  # the only part that does not see the comprehension's own names
        self.within(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension  # noqa: N815

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value:
            self.visit(node.value)
        if self.scopes and self.scopes[-1].is_class:  # dataclasses live on it
            self.visit(node.annotation)
        else:
            self.cut(self.span(node.target)[1], self.span(node.annotation)[1])

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """``Float[Tensor, "B L"]`` becomes ``Tensor``: a fresh environment need not have jaxtyping."""
        target = self.resolve(node.value.id) if isinstance(node.value, ast.Name) else None
        if target and not target.module and target.name.startswith("from jaxtyping"):
            assert isinstance(node.slice, ast.Tuple)
            first = node.slice.elts[0]
            self.cut(self.span(node)[0], self.span(first)[0])
            self.cut(self.span(first)[1], self.span(node)[1])
            self.visit(first)
        else:
            self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        if self.owner:
            self.generic_visit(node)
            return
        self.owner = node
        self.generic_visit(node)
        self.owner = None

    def generic_visit(self, node: ast.AST) -> None:
        """Every block goes through ``body``."""
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                self.body(value)
            else:
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        self.visit(child)

    def visit_Global(self, node: ast.Global) -> None:
        start, end = self.span(node)
        for name in node.names:
            at = self.text.index(name.encode(), start + len("global"), end)
            self.references.append(Reference(None, at, at + len(name.encode()), Target(self.name, name), name))

    def visit_Name(self, node: ast.Name) -> None:
        target = self.resolve(node.id)
        if target:
            assert target.name, f"{self.name}:{node.lineno} uses the module {target.module} as a value"
            self.refer(node, target, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        target = self.resolve(node.value.id) if isinstance(node.value, ast.Name) else None
        if target and target.module and not target.name:
            self.refer(node, Target(target.module, node.attr), "")
        else:
            self.visit(node.value)

    def refer(self, node: ast.expr, target: Target, written: str) -> None:
        self.references.append(Reference(node, *self.span(node), target, written, self.owner))


def _is_own(statement: ast.ImportFrom) -> bool:
    return (statement.module or "").partition(".")[0] == PACKAGE


def _is_aside(statement: ast.stmt) -> bool:
    """What only type checkers, ``import *`` or a module run by itself need."""
    if isinstance(statement, ast.If):
        return any(isinstance(part, ast.Name) and part.id in _ASIDE for part in ast.walk(statement.test))
    return isinstance(statement, ast.Assign) and "__all__" in bound([statement])


_ASIDE = {"TYPE_CHECKING", "__name__"}


@functools.cache  # nearly all of a script's cost, and the same for every configuration
def read(name: str, text: bytes, modules: frozenset[str]) -> Module:
    """Read the module ``name``; ``modules`` are the names of all there are."""
    return _Reader(name, text, modules).module()
