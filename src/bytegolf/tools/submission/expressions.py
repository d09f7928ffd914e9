"""The expressions of a script: names, attributes, containers and comprehensions, with the labels of what is in them."""

from __future__ import annotations

import ast
import builtins
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from bytegolf.tools.submission.statements import Statements
from bytegolf.tools.submission.values import (
    NOTHING,
    SCORE,
    VALIDATION,
    Class,
    Code,
    Instance,
    Library,
    Module,
    Scope,
    Value,
    dotted,
    named_validation,
    names_validation,
    takes_any_split,
    union,
)

SHAPES = frozenset({"shape", "dtype", "device", "ndim", "numel", "size", "itemsize", "nbytes", "dim"})
"""What tells nothing of a tensor's contents."""

OPAQUE = Library("")
"""An object that a library made; so are those that its methods make."""

_BUILTIN = frozenset(dir(builtins))


class Expressions(Statements):
    """What expressions give."""

    def __init__(self, trees: Mapping[str, ast.Module]) -> None:
        super().__init__(trees)
        self.sources: set[tuple[str, int]] = set()
        """where validation tokens come from: file and line"""

    @abstractmethod
    def _call(self, call: ast.Call) -> Value:
        """What a call gives."""

    @abstractmethod
    def _enter(self, code: Code, given: list[Value], named: dict[str, Value], call: ast.AST) -> Value:
        """Follow a function with these arguments; what it returns."""

    def _value(self, node: ast.expr) -> Value:
        if hasattr(node, "names_validation"):  # an expression that `unpack` worked out
            self.sources.add((self._frame.file, node.lineno))
            return Value(frozenset({VALIDATION}))
        if isinstance(node, ast.Name):
            found = self._scope.find(node.id)
            if found is None and node.id in _BUILTIN:
                return Value(refs=frozenset({Library(node.id)}))
            return self._known(found or NOTHING, node.id, node)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Constant):
            if takes_any_split(node.value):
                said = f"the pattern {node.value!r} takes files of any split"
                self.unresolved.setdefault((self._frame.file, node.lineno), said)
            if names_validation(node.value):
                self.sources.add((self._frame.file, node.lineno))
                return Value(frozenset({VALIDATION}))
            return NOTHING
        if isinstance(node, ast.Compare):
            for one in (node.left, *node.comparators):
                self._value(one)
            return NOTHING
        if isinstance(node, (ast.Tuple, ast.List)):
            items = tuple(map(self._value, node.elts))
            whole = union(items)
            starred = any(isinstance(one, ast.Starred) for one in node.elts)
            return Value(whole.labels, whole.refs, () if starred else items)
        if isinstance(node, ast.Lambda):
            return Value(refs=frozenset({Code(node, self._scope, self._frame.file)}))
        if isinstance(node, ast.NamedExpr):
            value = self._value(node.value)
            self._assign(node.target, value)
            return value
        if isinstance(node, ast.Dict):
            return union(map(self._value, node.values))
        if isinstance(node, ast.Subscript):
            whole, index = self._value(node.value), self._value(node.slice)
            if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int) and whole.items:
                return whole.items[node.slice.value % len(whole.items)]
            labels = index.labels - {VALIDATION} if isinstance(node.slice, ast.Constant) else index.labels
            return Value(whole.labels | labels, whole.refs)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            return self._comprehension(node)
        if isinstance(node, ast.IfExp):
            self._value(node.test)
            return self._value(node.body).join(self._value(node.orelse))
        if isinstance(node, (ast.Yield, ast.YieldFrom, ast.Await)):
            value = self._value(node.value) if node.value else NOTHING
            if not isinstance(node, ast.Await):
                self._frame.returned.append(Value(value.labels, value.refs))
            return value
        whole = union(self._value(one) for one in ast.iter_child_nodes(node) if isinstance(one, ast.expr))
        return whole if isinstance(node, (ast.BoolOp, ast.Starred)) else Value(whole.labels, whole.refs & {OPAQUE})

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Value:
        outer = self._scope
        self._scope = Scope(outer)
        for clause in node.generators:
            value = self._value(clause.iter)
            self._assign(clause.target, Value(value.labels, value.refs))
            for test in clause.ifs:
                self._value(test)
        wanted = node.value if isinstance(node, ast.DictComp) else node.elt
        made = self._value(wanted)
        clause = node.generators[0]
        items: list[Value] = []
        if len(node.generators) == 1 and not clause.ifs and isinstance(clause.iter, (ast.Tuple, ast.List)):
            for one in clause.iter.elts:  # `(read(split) for split in ("train", "val"))`: each by itself
                self._assign(clause.target, self._value(one))
                items.append(self._value(wanted))
        self._scope = outer
        return Value(made.labels, made.refs, tuple(items)) if not items else replace(union(items), items=tuple(items))

    def _known(self, value: Value, name: str, node: ast.expr) -> Value:
        """A value, or what its name says where nothing is known of it."""
        if value.labels or value.refs - {OPAQUE} or not named_validation(name):
            return value
        self.sources.add((self._frame.file, node.lineno))
        return value.labelled({VALIDATION})

    def _attribute(self, node: ast.Attribute) -> Value:
        base = self._value(node.value)
        if node.attr in SHAPES:
            return Value(base.labels - {VALIDATION, SCORE})
        found = [one for ref in base.refs if (one := self._member(ref, node.attr, node)) is not None]
        if found:
            value = found[0]
            for other in found[1:]:
                value = value.join(other)
            if any(isinstance(ref, Library) for ref in base.refs):
                value = value.labelled(base.labels)
            return self._known(value, node.attr, node)
        # a method of an object, an attribute of a tensor: made of what it belongs to
        objects = any(isinstance(ref, (Instance, Class, Module)) for ref in base.refs)
        return self._known(Value(frozenset() if objects else base.labels), node.attr, node)

    def _member(self, ref: object, name: str, node: ast.expr) -> Value | None:
        if isinstance(ref, Library):
            return Value(refs=frozenset({Library(f"{ref.name}.{name}") if ref.name else ref}))
        if isinstance(ref, Module):
            return ref.scope.names.get(name)
        if isinstance(ref, Class):
            return ref.find(name)
        if isinstance(ref, Instance):
            found = self._attributes.get((ref, name))
            if found is not None:
                return found
            found = ref.of.find(name)
            if found is None:
                return None
            bound: list[Value] = []
            for one in found.refs:
                if not isinstance(one, Code) or isinstance(one.node, ast.Lambda):
                    bound.append(Value(refs=frozenset({one})))
                    continue
                decorators = {dotted(decorator).rpartition(".")[2] for decorator in one.node.decorator_list}
                code = one if "staticmethod" in decorators else replace(one, this=ref)
                is_property = decorators & {"property", "cached_property"}
                bound.append(self._enter(code, [], {}, node) if is_property else Value(refs=frozenset({code})))
            return union([Value(found.labels), *bound])
        return None
