"""The statements of a script, followed in order: assignments, branches apart, loops twice, modules when imported."""

from __future__ import annotations

import ast
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from bytegolf.tools.submission.learning import Ends, Frame, Learning, State
from bytegolf.tools.submission.values import NOTHING, Class, Code, Instance, Library, Module, Scope, Value

_UNROLLED = 16
_MOST = 400_000
"""Statements that are followed, each as often as its function is called with other labels."""


class Statements(Learning, ABC):
    """What statements do to names and attributes; ``trees`` are the script and what it may import, by module name."""

    def __init__(self, trees: Mapping[str, ast.Module]) -> None:
        super().__init__()
        self.unresolved: dict[tuple[str, int], str] = {}
        self._trees = trees
        self._modules: dict[str, Scope] = {}
        self._attributes: dict[tuple[Instance, str], Value] = {}
        self._steps = 0

    @abstractmethod
    def _value(self, node: ast.expr) -> Value:
        """What an expression gives."""

    def _run_module(self, name: str) -> Scope:
        if name not in self._modules:
            scope = self._modules[name] = Scope()
            scope.names["__name__"] = NOTHING
            before, self._scope, self._frame = (self._scope, self._frame), scope, Frame(name, ())
            with contextlib.suppress(Ends):
                self._block(self._trees[name].body)
            self._scope, self._frame = before
        return self._modules[name]

    def _block(self, body: Iterable[ast.stmt]) -> None:
        for part in body:
            self._steps += 1
            if self._steps > _MOST:
                self.unresolved[self._frame.file, part.lineno] = "the script is too large to be followed further"
                raise Ends
            self._statement(part)

    def _statement(self, part: ast.stmt) -> None:
        scope = self._scope
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            scope.put(part.name, Value(refs=frozenset({Code(part, scope, self._frame.file)})))
        elif isinstance(part, ast.ClassDef):
            self._class(part)
        elif isinstance(part, (ast.Import, ast.ImportFrom)):
            self._import(part)
        elif isinstance(part, ast.Assign):
            value = self._value(part.value)
            for target in part.targets:
                self._assign(target, value)
        elif isinstance(part, ast.AnnAssign) and part.value:
            self._assign(part.target, self._value(part.value))
        elif isinstance(part, ast.AugAssign):
            value = self._value(part.value)
            self._books(value, part.lineno)
            self._assign(part.target, self._value(part.target).join(value).labelled(self._counters()))
        elif isinstance(part, (ast.For, ast.AsyncFor)):
            value = self._value(part.iter)
            self._loop(part, value)
        elif isinstance(part, ast.While):
            self._value(part.test)
            self._loop(part, None)
        elif isinstance(part, ast.If):
            self._value(part.test)
            self._branches([part.body, part.orelse], "main" if "__name__" in ast.unparse(part.test) else "if")
        elif isinstance(part, ast.Match):
            self._value(part.subject)
            self._branches([*(case.body for case in part.cases), []])
        elif isinstance(part, (ast.Try, ast.TryStar)):
            self._branches([[*part.body, *part.orelse], *([*part.body, *one.body] for one in part.handlers)], "try")
            self._block(part.finalbody)
        elif isinstance(part, (ast.With, ast.AsyncWith)):
            for item in part.items:
                value = self._value(item.context_expr)
                if item.optional_vars:
                    self._assign(item.optional_vars, value)
            self._block(part.body)
        elif isinstance(part, ast.Return):
            self._frame.returned.append(self._value(part.value) if part.value else NOTHING)
            raise Ends
        elif isinstance(part, (ast.Raise, ast.Break, ast.Continue)):
            raise Ends
        elif isinstance(part, (ast.Global, ast.Nonlocal)):
            self._outside(part)
        elif isinstance(part, ast.Expr):
            self._value(part.value)

    def _outside(self, part: ast.Global | ast.Nonlocal) -> None:
        for name in part.names:
            scope = self._scope.parent or self._scope
            while scope.parent is not None and (isinstance(part, ast.Global) or name not in scope.names):
                scope = scope.parent
            self._scope.elsewhere[name] = scope

    def _class(self, part: ast.ClassDef) -> None:
        bases = [ref for base in part.bases for ref in self._value(base).refs if isinstance(ref, Class)]
        inner, outer = Scope(self._scope), self._scope
        self._scope = inner
        try:
            self._block(part.body)
        finally:
            self._scope = outer
        outer.put(part.name, Value(refs=frozenset({Class(part, inner, tuple(bases))})))

    def _import(self, part: ast.Import | ast.ImportFrom) -> None:
        for alias in part.names:
            module = alias.name if isinstance(part, ast.Import) else part.module or ""
            if module in self._trees and module != next(iter(self._trees)):
                scope = self._run_module(module)
                if isinstance(part, ast.Import):
                    self._scope.put(alias.asname or module, Value(refs=frozenset({Module(scope)})))
                elif alias.name == "*":
                    self._scope.names |= scope.names
                else:
                    self._scope.put(alias.asname or alias.name, scope.names.get(alias.name, NOTHING))
                continue
            name = alias.asname or (alias.name.partition(".")[0] if isinstance(part, ast.Import) else alias.name)
            whole = (
                f"{module}.{alias.name}" if isinstance(part, ast.ImportFrom) else alias.name if alias.asname else name
            )
            self._scope.put(name, Value(refs=frozenset({Library(whole)})))

    def _loop(self, part: ast.For | ast.AsyncFor | ast.While, iterated: Value | None) -> None:
        label = f"{'while' if iterated is None else 'for'} {self._frame.file}:{part.lineno}"
        before, around = dict(self._scope.names), self._around
        self._around = (*around, label)
        turns = [Value(iterated.labels, iterated.refs) if iterated else NOTHING] * 2
        if iterated is not None and 0 < len(iterated.items) <= _UNROLLED:  # a tuple that is written out
            turns = [*iterated.items]
        # Twice: what the first turn leaves behind (a list that grew, a booked score) is there in the second.
        for turn in turns:
            self._state.booked.pop(label, None)
            if not isinstance(part, ast.While):
                self._assign(part.target, turn.labelled({label}))
            with contextlib.suppress(Ends):
                self._block(part.body)
        self._around = around
        for name, value in before.items():  # the loop may have run no time; its booking is taken to have happened
            self._scope.names[name] = self._scope.names.get(name, value).join(value)
        self._block(part.orelse)

    def _branches(self, bodies: list[list[ast.stmt]], kind: str = "if") -> None:
        names, state, around = self._scope.names, self._state, self._around
        ends: list[tuple[dict[str, Value], State]] = []
        for number, body in enumerate(bodies):
            self._scope.names, self._state = dict(names), state.copy()
            # a `try`, and `if __name__ == "__main__"`, are entered in any case: no condition on what is in them
            if body and kind == "if":
                self._around = (*around, f"if {id(body[0])} {number}")
            try:
                self._block(body)
                ends.append((self._scope.names, self._state))
            except Ends:
                pass
            self._around = around
        self._scope.names, self._state = names, state
        if not ends:
            raise Ends
        state.booked, state.learned = ends[0][1].booked, ends[0][1].learned
        for _, other in ends[1:]:
            state.join(other)
        for name in {name for found, _ in ends for name in found}:
            values = [found[name] for found, _ in ends if name in found]
            value = values[0]
            for other_value in values[1:]:
                value = value.join(other_value)
            names[name] = value

    def _assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._scope.put(target.id, value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            whole = Value(value.labels, value.refs)
            exact = len(value.items) == len(target.elts)
            for number, one in enumerate(target.elts):
                self._assign(one, value.items[number] if exact else whole)
        elif isinstance(target, ast.Starred):
            self._assign(target.value, value)
        elif isinstance(target, ast.Attribute):
            for ref in self._value(target.value).refs:
                if isinstance(ref, Instance):
                    self._attributes[ref, target.attr] = self._attributes.get((ref, target.attr), value).join(value)
        elif isinstance(target, ast.Subscript):
            index = self._value(target.slice)
            self._books(value, target.lineno)
            held: ast.expr = target
            while isinstance(held, ast.Subscript):
                held = held.value
            if isinstance(held, (ast.Name, ast.Attribute)):
                old = self._value(held)
                self._assign(held, Value(old.labels | value.labels | index.labels, old.refs | value.refs))

    def _collect(self, node: ast.expr, held: Value, value: Value, line: int) -> None:
        self._books(value, line)
        ours = any(isinstance(ref, Instance) for ref in held.refs)
        if isinstance(node, (ast.Name, ast.Attribute)) and (value.labels or value.refs) and not ours:
            self._assign(node, Value(held.labels | value.labels, held.refs | value.refs))
