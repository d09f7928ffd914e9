"""Where validation tokens go in a script: followed through assignments and calls to whatever learns from them.

A value is tainted if it is read from the validation split (a call with "val" among its texts, a name like val_tokens),
or made of a tainted one. Two places must not be reached: a backward pass, unless a score was booked before it on the
way there, and a calibration. It is a reading of names, not a proof: what it finds is shown by line, and whether scores
come first is tried by experiment as well (``trial``).
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from bytegolf.tools.submission.reading import dotted
from bytegolf.tools.submission.script_parts import (
    Function,
    Shape,
    assigned,
    holds_validation,
    says_validation,
    shape_of,
    tainted_parameters,
)
from bytegolf.tools.submission.verdict import Finding

Steps = tuple[tuple[ast.AST, ast.Call], ...]
"""Calls on the way: the function (or script) that each is in, and the call."""

_CALIBRATES = re.compile(r"gptq|calib|hessian|second_moment|fisher", re.I)
_LOOKS = frozenset({"len", "isinstance", "print", "range", "str", "repr", "type", "id", "hash", "bool"})
_SHAPES = frozenset({"shape", "dtype", "device", "ndim", "numel", "size", "itemsize", "nbytes"})
_DEEPEST = 12
_MOST = 20_000
"""Functions that are followed, counted once for each set of tainted parameters: nobody's script needs more."""


@dataclass(frozen=True)
class Sink:
    """A place where something is learned from validation tokens."""

    kind: str
    """backward or calibration"""
    line: int
    path: tuple[str, ...]
    """the functions on the way there"""
    booked: bool
    """whether a score was booked before, on the way"""
    epochs: bool
    """whether it is in a loop over epochs"""


class Flow:
    """The flow of validation tokens through one script."""

    def __init__(self, tree: ast.Module) -> None:
        self.sinks: dict[int, Sink] = {}
        self.sources: set[int] = set()
        self._functions: dict[str, list[Function]] = defaultdict(list)
        self._methods: dict[str, list[Function]] = defaultdict(list)
        self._classes: dict[str, ast.ClassDef] = {}
        self._owner: dict[int, str] = {}
        self._shapes: dict[int, Shape] = {}
        self._attributes: set[tuple[str, str]] = set()
        self._returns: dict[tuple[int, frozenset[str], tuple[bool, ...]], bool] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self._classes[node.name] = node
                for part in node.body:
                    if isinstance(part, Function):
                        self._methods[part.name].append(part)
                        self._owner[id(part)] = node.name
        for node in ast.walk(tree):
            if isinstance(node, Function) and id(node) not in self._owner:
                self._functions[node.name].append(node)
        every = [one for found in (*self._functions.values(), *self._methods.values()) for one in found]
        for _ in range(3):  # until attributes that are set in one place are known in the others
            before = len(self._attributes)
            self._returns.clear()
            for node in (tree, *every):
                self._follow(node, frozenset(), ())
            if len(self._attributes) == before:
                break

    # ---------------------------------------------------------------------------------------------- one function

    def _follow(self, node: Function | ast.Module, given: frozenset[str], steps: Steps) -> bool:
        """Follow what is tainted in a function some of whose parameters are; whether its result is."""
        key = (id(node), given, (self._is_booked(steps), self._in_epochs(steps)))
        if key in self._returns or len(steps) > _DEEPEST or len(self._returns) > _MOST:
            return self._returns.get(key, False)
        self._returns[key] = False
        body = self._shape(node).parts
        names = set(given)
        for _ in range(10):
            before = len(names)
            for part in body:
                self._assign(part, names, node, steps)
            if len(names) == before:
                break
        for part in body:
            if isinstance(part, ast.Call):
                self._call(part, names, node, steps)
            if isinstance(part, (ast.Return, ast.Yield, ast.YieldFrom)) and part.value is not None:
                self._returns[key] |= self._tainted(part.value, names, node, steps)
        return self._returns[key]

    def _assign(self, part: ast.AST, names: set[str], node: Function | ast.Module, steps: Steps) -> None:
        for target, value in assigned(part):
            if not self._tainted(value, names, node, steps):
                continue
            held = target
            while isinstance(held, ast.Subscript):  # a part of it is set
                held = held.value
            for name in ast.walk(held):
                if isinstance(name, ast.Name) and name.id != "self":
                    names.add(name.id)
            owner = self._owner.get(id(node)) if isinstance(node, Function) and node.name == "__init__" else None
            if owner and isinstance(target, ast.Attribute) and dotted(target.value) == "self":
                self._attributes.add((owner, target.attr))

    def _tainted(self, value: ast.expr, names: set[str], node: Function | ast.Module, steps: Steps) -> bool:
        """Whether an expression holds validation tokens, or what was made of them."""
        if isinstance(value, ast.Name):
            return value.id in names or self._source(value.id, value)
        if isinstance(value, ast.Attribute):
            if value.attr in _SHAPES:
                return False
            owner = self._owner.get(id(node), "")
            if dotted(value.value) == "self" and (owner, value.attr) in self._attributes:
                return True
            return self._source(value.attr, value) or self._tainted(value.value, names, node, steps)
        if isinstance(value, ast.Call):
            return self._call(value, names, node, steps)
        if isinstance(value, (ast.Constant, ast.Compare)):
            return False
        if isinstance(value, ast.Subscript):
            return self._tainted(value.value, names, node, steps)
        if isinstance(value, ast.Lambda):
            return False
        parts = list(ast.iter_child_nodes(value))
        parts += [part.iter for part in parts if isinstance(part, ast.comprehension)]
        return any(self._tainted(part, names, node, steps) for part in parts if isinstance(part, ast.expr))

    def _source(self, name: str, node: ast.expr) -> bool:
        """Whether a name says that it holds the validation split; the place is noted."""
        found = holds_validation(name)
        if found:
            self.sources.add(node.lineno)
        return found

    # ------------------------------------------------------------------------------------------------------ calls

    def _call(self, call: ast.Call, names: set[str], node: Function | ast.Module, steps: Steps) -> bool:
        """Follow a call; whether its result is tainted."""
        name = dotted(call.func).rpartition(".")[2]
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        held = receiver is not None and self._tainted(receiver, names, node, steps)
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        hot = [self._tainted(one, names, node, steps) or says_validation(one) for one in values]
        if any(map(says_validation, values)):
            self.sources.add(call.lineno)
        if name in _LOOKS or name in _SHAPES or not (held or any(hot)):
            known = self._functions.get(name, []) if receiver is None else self._methods.get(name, [])
            if name in _LOOKS or name in _SHAPES or not known or name in _COMMON:
                return False
            results = [self._follow(one, frozenset(), ()) for one in known]  # all of them, for what they learn from
            return any(results)
        if name == "backward" or (name == "grad" and "autograd" in dotted(call.func)):
            self._sink("backward", call, node, steps)
        if _CALIBRATES.search(name) and any(hot):
            self._sink("calibration", call, node, steps)
        if name in self._classes:
            return self._construct(name, call, hot, node, steps)
        known = self._functions.get(name, []) if receiver is None else self._methods.get(name, [])
        if isinstance(receiver, ast.Name) and receiver.id not in ("self", "cls") and not known:
            known = self._functions.get(name, [])
        results = [
            self._follow(one, tainted_parameters(one, call, hot, method=receiver is not None), (*steps, (node, call)))
            for one in known
        ]
        return held or not known or any(results)

    def _construct(self, name: str, call: ast.Call, hot: list[bool], node: Function | ast.Module, steps: Steps) -> bool:
        """An object holds validation tokens if at least half of what it is made of does; else some attributes do."""
        made = [part for part in self._classes[name].body if isinstance(part, Function) and part.name == "__init__"]
        if not made or 2 * sum(hot) >= len(hot):
            return True
        for one in made:
            self._follow(one, tainted_parameters(one, call, hot, method=True), (*steps, (node, call)))
        return False

    def _sink(self, kind: str, call: ast.Call, node: Function | ast.Module, steps: Steps) -> None:
        whole = (*steps, (node, call))
        path = tuple(step.name for step, _ in whole if isinstance(step, Function))
        found = Sink(kind, call.lineno, path, self._is_booked(whole), self._in_epochs(whole))
        before = self.sinks.get(call.lineno)
        if before is None or (before.booked and not found.booked):
            self.sinks[call.lineno] = found

    def _is_booked(self, steps: Steps) -> bool:
        """Whether, somewhere on the way, a sum of losses was added to before the call that leads on."""
        return any(line < call.lineno for node, call in steps for line in self._shape(node).booked)

    def _in_epochs(self, steps: Steps) -> bool:
        """Whether a loop over epochs leads there: its tokens are learned from before some of them are scored again."""
        loops = ((call.lineno, *loop) for node, call in steps for loop in self._shape(node).epochs)
        return any(first <= line <= last for line, first, last in loops)

    def _shape(self, node: ast.AST) -> Shape:
        if id(node) not in self._shapes:
            self._shapes[id(node)] = shape_of(node)
        return self._shapes[id(node)]


_COMMON = frozenset(
    {"get", "append", "update", "items", "keys", "values", "join", "format", "to", "add", "copy", "close"}
    | {"read", "write", "open", "encode", "decode", "extend"}
)
"""Methods of Python's own types, whatever class of the script has one of that name."""


def check_flow(trees: dict[str, ast.Module]) -> Iterator[Finding]:
    """Findings about where the validation tokens of the scripts ``trees`` go."""
    sinks, sources = [], 0
    for name, tree in trees.items():
        try:
            flow = Flow(tree)
        except RecursionError:
            yield Finding("validation unseen", "doubt", f"{name} is nested too deeply to be followed")
            continue
        sources += len(flow.sources)
        sinks += [(name, sink) for sink in flow.sinks.values()]
    bad = [(name, sink) for name, sink in sinks if sink.kind == "calibration" or not sink.booked or sink.epochs]
    for name, sink in bad:
        why = "in a loop over epochs" if sink.epochs else "before any score is booked"
        what = "calibrate on them" if sink.kind == "calibration" else f"reach a backward pass {why}"
        way = " → ".join(sink.path) or "the script"
        rule = "validation unseen"
        yield Finding(rule, "BROKEN", f"validation tokens {what} ({name}:{sink.line}, by way of {way})")
        if sink.epochs:
            yield Finding(
                "score, then update", "BROKEN", f"it learns from them in a loop over epochs ({name}:{sink.line})"
            )
    adapting = [(name, sink) for name, sink in sinks if (name, sink) not in bad]
    for name, sink in adapting:
        said = f"it learns from them once a score is booked ({name}:{sink.line}, by way of {' → '.join(sink.path)})"
        yield Finding("score, then update", "pass", said)
    if not bad:
        learned = "a backward pass is reached after scoring alone"
        seen = learned if adapting else "none leads to a backward pass or a calibration"
        none = Finding("validation unseen", "not checked", "no line is seen that reads the split")
        yield (
            Finding("validation unseen", "pass", f"{sources} lines have to do with the split; {seen}")
            if sources
            else none
        )
    if not sinks and sources:
        yield Finding("score, then update", "pass", "nothing learns from tokens that are scored")
