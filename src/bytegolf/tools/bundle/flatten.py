"""Modules made one text: the statements that are reached from some roots, in an order in which they can run.

Positions are byte offsets in the module's text, so that the text is edited and never printed anew: what comes out
reads as it was written, and is the same with every version of Python.

A name in a function belongs to the innermost scope that binds it, else to the module. Only the module's names change
when modules become one file, so this is all that has to be told apart.

Every definition keeps its name where no other has it, and else gets its module's before it.
"""

from __future__ import annotations

import ast
import builtins
import functools
import graphlib
import io
import keyword
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# -------------------------------------------------------------------------------------------- what a module consists of


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


# ----------------------------------------------------------------------------------------------------- reading a module


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


# ------------------------------------------------------------------------------------------------ many modules made one


class Flattened:
    """The statements of some modules that are reached from ``roots``, and the names they get."""

    def __init__(self, texts: Mapping[str, bytes], *roots: Target) -> None:
        """``texts`` are the sources by the modules' names."""
        self._texts = texts
        self.modules: dict[str, Module] = {}
        self.places: dict[Target, list[tuple[Module, Statement]]] = defaultdict(list)
        self.kept: set[int] = set()
        self.used: set[Target] = set()
        self._reach(roots)
        self.flat = self._named()

    def _open(self, name: str) -> Module:
        """A module, read when it is first asked for."""
        if name not in self.modules:
            module = self.modules[name] = read(name, self._texts[name], frozenset(self._texts))
            for statement in module.statements:
                for defined in statement.names:
                    self.places[Target(name, defined)].append((module, statement))
        return self.modules[name]

    def source(self, target: Target) -> Target:
        """Where a name that may have been imported on the way comes from."""
        while target.module:
            module = self._open(target.module)
            if target in self.places:
                break
            target = module.imports[target.name]
        return target

    def _reach(self, roots: tuple[Target, ...]) -> None:
        waiting = list(roots)
        while waiting:
            target = self.source(waiting.pop())
            if target in self.used:
                continue
            self.used.add(target)
            for module, statement in self.places.get(target, ()):
                if id(statement) not in self.kept:
                    self.kept.add(id(statement))
                    waiting += [Target(module.name, name) for name in statement.names]
                    waiting += [reference.target for reference in statement.references]

    def statements(self, module: Module) -> list[Statement]:
        """Those of a module that are reached."""
        return [statement for statement in module.statements if id(statement) in self.kept]

    def _named(self) -> dict[Target, str]:
        """A name for each target: its own, unless another has it, or an inner scope would hide it."""
        hidden = frozenset().union(*(module.locals for module in self.modules.values()))
        wanted: dict[str, list[Target]] = defaultdict(list)
        for target in sorted(self.used):
            wanted[target.natural].append(target)
        written: dict[Target, set[str]] = defaultdict(set)
        for module in self.modules.values():
            for statement in self.statements(module):
                for reference in statement.references:
                    written[self.source(reference.target)].add(reference.written)
        reserved = set(dir(builtins)) | set(keyword.kwlist) | set(wanted)
        flat: dict[Target, str] = {}
        for name, targets in wanted.items():
            for target in sorted(targets, key=lambda one: bool(one.module)):  # what comes from elsewhere keeps its name
                own = written[target] <= {name}
                alone = name not in flat.values() and (not target.module or name not in dir(builtins))
                if alone and (own or name not in hidden):
                    flat[target] = name
                else:
                    flat[target] = self._longer(target, reserved | set(flat.values()) | hidden)
        return flat

    def _longer(self, target: Target, taken: set[str]) -> str:
        """The name with so much of its module's before it as makes it unlike all others."""
        assert target.module, f"{target.name}: its name is taken"
        parts = target.module.split(".")
        bare = target.name.lstrip("_")
        for count in range(1, len(parts) + 1):
            name = "_" * (bare != target.name) + "_".join((*parts[-count:], bare))
            if name not in taken:
                return name
        raise AssertionError(f"no name is left for {target}")

    def imports(self) -> list[str]:
        """The lines that import from elsewhere, sorted, one a library."""
        plain = {target.name for target in self.used if not target.module}
        for module in self.modules.values():
            if self.statements(module):
                plain.update(line for line in module.lines if any(line.startswith(f"{one}.") for one in list(plain)))
        whole: dict[str, list[str]] = defaultdict(list)
        for line in sorted(plain):
            head, middle, name = line.partition(" import ")
            whole[head + middle].append(name)
        return [f"{head}{', '.join(names)}\n" if names[0] else f"{head}\n" for head, names in whole.items()]

    def blocks(self) -> Iterator[tuple[Module, str]]:
        """The modules that have something left, with their text, so that nothing is used before it is there."""
        graph = {name: sorted(module.before & self.modules.keys()) for name, module in sorted(self.modules.items())}
        for name in graphlib.TopologicalSorter(graph).static_order():
            module = self.modules[name]
            statements = self.statements(module)
            if statements:
                yield module, "\n".join(self._text(module, statement) for statement in statements)

    def _text(self, module: Module, statement: Statement) -> str:
        edits = [*statement.cuts, *self._renamed(module, statement)]
        pieces, at = [], statement.start
        for edit in sorted(edits, key=lambda one: one.start):
            assert edit.start >= at, (module.name, edit)
            pieces += [module.text[at : edit.start], edit.text]
            at = edit.end
        return b"".join([*pieces, module.text[at : statement.end]]).decode().rstrip() + "\n"

    def _renamed(self, module: Module, statement: Statement) -> Iterator[Cut]:
        """The changes of names, among them those of what the statement itself defines."""
        strings: dict[int, tuple[ast.JoinedStr, dict[int, str]]] = {}
        for reference in statement.references:
            name = self.flat[self.source(reference.target)]
            if name == reference.written:
                continue
            if reference.owner is None:
                yield Cut(reference.start, reference.end, name.encode())
            else:
                _, names = strings.setdefault(id(reference.owner), (reference.owner, {}))
                names[id(reference.node)] = name
        yield from (_printed(module, string, names) for string, names in strings.values())
        # the name of a function or class is no reference of its own
        if defined := re.search(rb"(?m)^(?:def|class) (\w+)", module.text[statement.start : statement.end]):
            start, end = (statement.start + at for at in defined.span(1))
            yield Cut(start, end, self.flat[Target(module.name, defined[1].decode())].encode())


class _Renamer(ast.NodeTransformer):
    def __init__(self, names: dict[int, str]) -> None:
        self._names = names

    def visit(self, node: ast.AST) -> ast.AST:
        if id(node) in self._names:
            return ast.Name(self._names[id(node)], ast.Load())
        found = super().visit(node)
        assert isinstance(found, ast.AST)
        return found


def _printed(module: Module, string: ast.JoinedStr, names: dict[int, str]) -> Cut:
    """An f-string in which names change is printed anew: the positions of what is in it are not to be relied on."""
    lines = module.text.splitlines(keepends=True)
    start = sum(map(len, lines[: string.lineno - 1])) + string.col_offset
    end = sum(map(len, lines[: (string.end_lineno or 1) - 1])) + (string.end_col_offset or 0)
    return Cut(start, end, ast.unparse(_Renamer(names).visit(string)).encode())
