"""Modules made one text: the statements that are reached from some roots, in an order in which they can run.

Every definition keeps its name where no other has it, and else gets its module's before it.
"""

from __future__ import annotations

import ast
import builtins
import graphlib
import keyword
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from bytegolf.tools.bundle.reader import read
from bytegolf.tools.bundle.syntax import Cut, Module, Statement, Target


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
