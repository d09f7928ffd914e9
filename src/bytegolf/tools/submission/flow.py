"""Where validation tokens go in a script, by abstract interpretation of its syntax tree; nothing of it is run.

The module's body is followed in order, as Python would: functions by the scope that defines them, methods by the class
of ``self`` or of the object that was constructed, branches apart, loops twice. A value carries labels: whether it is
made of validation tokens, whether a model made it, and which loops' variables it depends on. Places of interest are a
gradient taken of validation tokens, and a calibration on them.

Test-time training may learn from tokens whose score is booked (added to a sum, or put into a list or a table). So the
interpretation also carries whether that has happened on every path so far, on some, or on none:

    for chunk in chunks:                # labels of x: validation, loop 1
        total += loss(model(chunk))     # booked on every path
        for epoch in range(3):          # encloses the update alone: allowed
            loss(model(chunk)).backward()

    for epoch in range(3):              # encloses booking and update, and x does not depend on it: the tokens of
        for chunk in chunks:            # epoch 2 are scored by a model that has learned from them
            total += ...; ....backward()

A call whose function is not known is not followed, and told where it gets validation tokens: then nothing is shown.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from bytegolf.tools.submission.expressions import OPAQUE, SHAPES, Expressions
from bytegolf.tools.submission.learning import Ends, Frame, State
from bytegolf.tools.submission.values import (
    NOTHING,
    SCORE,
    VALIDATION,
    Class,
    Code,
    Instance,
    Library,
    Scope,
    Value,
    dotted,
    takes_validation,
    union,
)

# What names mean in such scripts. They decide where nothing else is known of a call, and err towards "unsure".
_CALIBRATES = re.compile(r"calib|hessian|fisher|second_moment", re.I)
_SCORES = re.compile(r"cross_entropy|nll|log_softmax|logsumexp|^log2?$|loss", re.I)
_FORGETS = frozenset({"len", "isinstance", "print", "range", "str", "repr", "type", "id", "bool", "hasattr", "format"})
_KEEPS = frozenset(
    {"save", "savez", "savez_compressed", "tofile", "dump", "dumps", "write", "write_bytes", "write_text"}
)
_ADDS = frozenset({"scatter_", "scatter_add_", "index_add_", "index_put_", "index_copy_", "put_"})
_COLLECTS = _ADDS | frozenset({"append", "extend", "add", "add_", "copy_", "insert", "update", "put", "setdefault"})
_WRAPS = frozenset({"compile", "partial", "wraps", "script", "checkpoint", "to", "cuda", "eval", "train", "half",
                    "float", "bfloat16", "requires_grad_", "deepcopy", "iter", "next", "enumerate", "zip", "list",
                    "tuple", "reversed", "sorted", "values", "items"})  # fmt: skip
_DEEPEST = 40


class Flow(Expressions):
    """The flow of validation tokens through a script.

    Args:
        trees: the script first, then other files that it may import, by module name.
        unpacked: by id of a call of exec, eval or alike: the name and tree of the code that it runs.
    """

    def __init__(self, trees: Mapping[str, ast.Module], unpacked: Mapping[int, tuple[str, ast.Module]]) -> None:
        super().__init__(trees)
        self._unpacked = unpacked
        classes = [node for tree in self._every() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        self._methods = {part.name for node in classes for part in node.body if isinstance(part, ast.FunctionDef)}
        self._done: dict[object, tuple[Value, State]] = {}
        self._quiet: dict[object, Value] = {}
        self._entered: set[int] = set()
        main = next(iter(trees))
        for _ in range(3):  # until attributes that are set in one place are known in the others
            before = dict(self._attributes)
            self._done.clear()
            self._quiet.clear()
            self._modules.clear()
            self._state = State()
            self.sinks.clear()
            self.rescored.clear()
            self._run_module(main)
            if before == self._attributes:
                break
        for name, scope in list(self._modules.items()):  # callbacks and dead code: seen, but proof of nothing
            self._alone(name, scope)

    def _every(self) -> Iterable[ast.Module]:
        yield from self._trees.values()
        yield from (tree for _, tree in self._unpacked.values())

    def _alone(self, file: str, scope: Scope) -> None:
        """Follow the functions of a scope that were not reached; what is found there is unsure."""
        waiting = list(scope.names.values())
        found = dict(self.sinks)
        self._state = State()
        while waiting:
            for ref in waiting.pop().refs:
                if isinstance(ref, Class) and id(ref.node) not in self._entered:
                    self._entered.add(id(ref.node))
                    instance = Instance(ref, (id(ref.node), frozenset()))
                    waiting += [
                        Value(refs=frozenset({replace(code, this=instance)}))
                        for value in ref.scope.names.values()
                        for code in value.refs
                        if isinstance(code, Code)
                    ]
                elif isinstance(ref, Code) and id(ref.node) not in self._entered:
                    self._frame, self._state = Frame(file, ()), State()
                    self._enter(ref, [], {}, ref.node)
        for key, sink in self.sinks.items():
            if key not in found and sink.verdict != "allowed":
                why = f"{sink.why}, in code that no call that could be followed reaches"
                self.sinks[key] = replace(sink, verdict="unsure", why=why)

    def _call(self, call: ast.Call) -> Value:
        function = self._value(call.func)
        name = dotted(call.func).rpartition(".")[2] or (call.func.attr if isinstance(call.func, ast.Attribute) else "")
        receiver = self._value(call.func.value) if isinstance(call.func, ast.Attribute) else NOTHING
        given = [self._value(one) for one in call.args]
        named = {keyword.arg or "**": self._value(keyword.value) for keyword in call.keywords}
        everything = union([receiver, *given, *named.values()])
        if id(call) in self._unpacked:
            file, tree = self._unpacked[id(call)]
            self._inline(file, tree)
            return NOTHING
        if name == "backward" or (name == "grad" and "autograd" in dotted(call.func)):
            self._learns(call, everything)
        if _CALIBRATES.search(name) and any(VALIDATION in one.labels for one in (*given, *named.values())):
            self._sink("calibration", call, "broken", f"{name} is given them")
        if name in _COLLECTS and isinstance(call.func, ast.Attribute):
            self._collect(call.func.value, receiver, union([*given, *named.values()]), call.lineno)
        if name == "at" and len(call.args) > 1:  # `np.add.at(table, index, 1)`
            self._collect(call.args[0], given[0], union(given[1:]), call.lineno)
        if name in _KEEPS and VALIDATION in everything.labels and SCORE not in everything.labels:
            self._sink("file", call, "unsure", "what is written is made of them")
        if name in _FORGETS or name in SHAPES:
            return Value(everything.labels - {VALIDATION, SCORE})
        if takes_validation(getattr(call, "real", "") or dotted(call.func), call):
            self.unresolved.setdefault((self._frame.file, call.lineno), "the files it takes may be any split's")
        results = [self._apply(ref, call, given, named, everything) for ref in function.refs]
        known = [one for one in results if one is not None]
        if known:
            result = known[0]
            for other in known[1:]:
                result = result.join(other)
            return result
        if (
            name != "backward"
            and VALIDATION in everything.labels
            and (not isinstance(call.func, ast.Attribute) or name in self._methods)
        ):
            self.unresolved.setdefault(
                (self._frame.file, call.lineno), f"{ast.unparse(call.func)[:40]} is not followed"
            )
        made = {SCORE} if not isinstance(call.func, ast.Attribute) or _SCORES.search(name) else set()
        refs = everything.refs if name in _WRAPS else frozenset()
        return Value(everything.labels | (made if VALIDATION in everything.labels else set()), refs)

    def _apply(
        self, ref: object, call: ast.Call, given: list[Value], named: dict[str, Value], everything: Value
    ) -> Value | None:
        if isinstance(ref, Code):
            return self._enter(ref, given, named, call)
        if isinstance(ref, Class):
            labels = union([*given, *named.values()]).labels
            made = Instance(ref, (id(call), labels))
            self._entered.add(id(ref.node))
            for member in ref.scope.names:
                self._attributes.setdefault((made, "__class__"), NOTHING)
                if member == "__init__":
                    break
            init = self._member(made, "__init__", call)
            for one in init.refs if init else ():
                if isinstance(one, Code):
                    self._enter(one, given, named, call)
            if init is None and labels:  # a dataclass, or one that extends a library's
                self._fields(made, given, named)
            return Value(refs=frozenset({made}))
        if isinstance(ref, Instance):
            for method in ("forward", "__call__"):
                found = self._member(ref, method, call)
                codes = [one for one in found.refs if isinstance(one, Code)] if found else []
                if codes:
                    value = union(self._enter(one, given, named, call) for one in codes)
                    return value.labelled(everything.labels)
            return None
        if isinstance(ref, Library):
            last = ref.name.rpartition(".")[2]
            scored = {SCORE} if VALIDATION in everything.labels and _SCORES.search(last) else set()
            passes = last in _WRAPS or last[:1].isupper()
            kept = frozenset(one for one in everything.refs if not isinstance(one, Library)) if passes else frozenset()
            return Value(everything.labels | scored, kept | {OPAQUE})
        return None

    def _fields(self, made: Instance, given: list[Value], named: dict[str, Value]) -> None:
        fields = [one.target.id for one in made.of.node.body
                  if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]  # fmt: skip
        for name, value in [*zip(fields, given, strict=False), *named.items()]:
            self._attributes[made, name] = self._attributes.get((made, name), value).join(value)

    def _enter(self, code: Code, given: list[Value], named: dict[str, Value], call: ast.AST) -> Value:
        """Follow a function with these arguments; what it returns."""
        node, frame = code.node, self._frame
        name = "lambda" if isinstance(node, ast.Lambda) else node.name
        self._entered.add(id(node))
        scope = Scope(code.scope)
        scope.names = self._parameters(code, given, named)
        given_key = (id(node), id(code.scope), code.this, frozenset(scope.names.items()))
        # A function is followed once for each set of labels of its arguments, not once per call: a model's `forward` is
        # called in dozens of places, and with calls inside calls the paths would be counted in billions.
        if given_key in self._quiet:  # it books and learns nothing: what is around it does not matter
            return self._quiet[given_key]
        key = (*given_key, self._around, self._state.key())
        events = self._events
        if key in self._done:
            self._events += 1
            value, after = self._done[key]
            self._state = after.copy()
            return value
        if len(frame.way) >= _DEEPEST:
            return union(scope.names.values())
        # a call of itself, with the same labels, finds this and adds nothing: the recursion ends
        self._done[key] = (NOTHING, self._state.copy())
        outer, self._scope = self._scope, scope
        self._frame = Frame(code.file, (*frame.way, name))
        try:
            if isinstance(node, ast.Lambda):
                self._frame.returned.append(self._value(node.body))
            else:
                self._block(node.body)
        except Ends:
            pass
        returned = self._frame.returned
        self._scope, self._frame = outer, frame
        result = returned[0] if returned else NOTHING
        for other in returned[1:]:
            result = result.join(other)
        self._done[key] = (result, self._state.copy())
        if self._events == events:
            self._quiet[given_key] = result
        return result

    def _parameters(self, code: Code, given: list[Value], named: dict[str, Value]) -> dict[str, Value]:
        spec = code.node.args
        places = [one.arg for one in (*spec.posonlyargs, *spec.args)]
        found: dict[str, Value] = {}
        if code.this is not None and places:
            found[places.pop(0)] = Value(refs=frozenset({code.this}))
        outer, self._scope = self._scope, code.scope
        for one, default in zip(reversed((*spec.posonlyargs, *spec.args)), reversed(spec.defaults), strict=False):
            found[one.arg] = self._value(default)
        for one, default_or_none in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
            if default_or_none is not None:
                found[one.arg] = self._value(default_or_none)
        self._scope = outer
        found |= dict(zip(places, given, strict=False))
        names = {*places, *(one.arg for one in spec.kwonlyargs)}
        found |= {name: value for name, value in named.items() if name in names}
        if spec.vararg:
            found[spec.vararg.arg] = union(given[len(places) :])
        if spec.kwarg:
            found[spec.kwarg.arg] = union(value for name, value in named.items() if name not in names)
        return found

    def _inline(self, file: str, tree: ast.Module) -> None:
        frame = self._frame
        self._frame = Frame(file, frame.way)
        with contextlib.suppress(Ends):
            self._block(tree.body)
        self._frame = frame
