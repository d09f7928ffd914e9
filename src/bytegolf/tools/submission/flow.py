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
import builtins
import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

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
    union,
)

_CALIBRATES = re.compile(r"calib|hessian|fisher|second_moment", re.I)
_SCORES = re.compile(r"cross_entropy|nll|log_softmax|logsumexp|^log2?$|loss", re.I)
_FORGETS = frozenset({"len", "isinstance", "print", "range", "str", "repr", "type", "id", "bool", "hasattr", "format"})
_SHAPES = frozenset({"shape", "dtype", "device", "ndim", "numel", "size", "itemsize", "nbytes", "dim"})
_KEEPS = frozenset(
    {"save", "savez", "savez_compressed", "tofile", "dump", "dumps", "write", "write_bytes", "write_text"}
)
_ADDS = frozenset({"scatter_", "scatter_add_", "index_add_", "index_put_", "index_copy_", "put_"})
_COLLECTS = _ADDS | frozenset({"append", "extend", "add", "add_", "copy_", "insert", "update", "put", "setdefault"})
_WRAPS = frozenset({"compile", "partial", "wraps", "script", "checkpoint", "to", "cuda", "eval", "train", "half",
                    "float", "bfloat16", "requires_grad_", "deepcopy", "iter", "next", "enumerate", "zip", "list",
                    "tuple", "reversed", "sorted", "values", "items"})  # fmt: skip
_BUILTIN = frozenset(dir(builtins))
_DEEPEST = 40
_UNROLLED = 16
_MOST = 400_000
"""Statements that are followed, each as often as its function is called with other labels."""

_OPAQUE = Library("")
"""An object that a library made; so are those that its methods make."""

NEVER, SOMETIMES, ALWAYS = range(3)


@dataclass(frozen=True)
class Sink:
    """A place where something is learned from validation tokens."""

    kind: str
    """gradient, calibration or file"""
    file: str
    line: int
    way: tuple[str, ...]
    """the functions on the way there"""
    verdict: str
    """allowed, unsure or broken"""
    why: str


@dataclass
class State:
    """What holds at a place of the interpretation."""

    booked: dict[str, int] = field(default_factory=dict)
    """by loop: whether a score was booked in its present iteration; "" is the whole run"""
    learned: tuple[str, ...] | None = None
    """the loops and branches around the last update on validation tokens"""

    def copy(self) -> State:
        """An independent one."""
        return State(dict(self.booked), self.learned)

    def join(self, other: State) -> None:
        """What holds after either of two paths."""
        for loop in {*self.booked, *other.booked}:
            if self.booked.get(loop, NEVER) != other.booked.get(loop, NEVER):
                self.booked[loop] = SOMETIMES
        self.learned = self.learned or other.learned

    def key(self) -> object:
        """What tells two states apart."""
        return frozenset(self.booked.items()), self.learned


@dataclass
class Frame:
    """A call: where it is, and what it has returned so far."""

    file: str
    way: tuple[str, ...]
    returned: list[Value] = field(default_factory=list)


class Ends(Exception):  # noqa: N818  (no error)
    """The path ends here: return, raise, continue, break."""


class Flow:
    """The flow of validation tokens through a script.

    Args:
        trees: the script first, then other files that it may import, by module name.
        unpacked: by id of a call of exec, eval or alike: the name and tree of the code that it runs.
    """

    def __init__(self, trees: Mapping[str, ast.Module], unpacked: Mapping[int, tuple[str, ast.Module]]) -> None:
        self.sinks: dict[tuple[str, int], Sink] = {}
        self.sources: set[tuple[str, int]] = set()
        self.unresolved: dict[tuple[str, int], str] = {}
        self.rescored: set[tuple[str, int]] = set()
        self._trees, self._unpacked = trees, unpacked
        self._modules: dict[str, Scope] = {}
        self._attributes: dict[tuple[Instance, str], Value] = {}
        classes = [node for tree in self._every() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        self._methods = {part.name for node in classes for part in node.body if isinstance(part, ast.FunctionDef)}
        self._done: dict[object, tuple[Value, State]] = {}
        self._quiet: dict[object, Value] = {}
        self._events = 0
        self._entered: set[int] = set()
        self._steps, self._scope = 0, Scope()
        self._frame, self._state = Frame("", ()), State()
        self._around: tuple[str, ...] = ()
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

    def _run_module(self, name: str) -> Scope:
        if name not in self._modules:
            scope = self._modules[name] = Scope()
            scope.names["__name__"] = NOTHING
            before, self._scope, self._frame = (self._scope, self._frame), scope, Frame(name, ())
            with contextlib.suppress(Ends):
                self._block(self._trees[name].body)
            self._scope, self._frame = before
        return self._modules[name]

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

    # ------------------------------------------------------------------------------------------------- statements

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

    def _counters(self) -> frozenset[str]:
        """Labels of what is counted up: in a `while` it may say how far the text is, as a `for`'s variable does."""
        return frozenset(one for one in self._around if one.startswith("while"))

    def _branches(self, bodies: list[list[ast.stmt]], kind: str = "if") -> None:
        names, state, around = self._scope.names, self._state, self._around
        ends: list[tuple[dict[str, Value], State]] = []
        for number, body in enumerate(bodies):
            self._scope.names, self._state = dict(names), state.copy()
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

    # ------------------------------------------------------------------------------------------------ expressions

    def _value(self, node: ast.expr) -> Value:
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
        return whole if isinstance(node, (ast.BoolOp, ast.Starred)) else Value(whole.labels, whole.refs & {_OPAQUE})

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
        if value.labels or value.refs - {_OPAQUE} or not named_validation(name):
            return value
        self.sources.add((self._frame.file, node.lineno))
        return value.labelled({VALIDATION})

    def _attribute(self, node: ast.Attribute) -> Value:
        base = self._value(node.value)
        if node.attr in _SHAPES:
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

    # ------------------------------------------------------------------------------------------------------ calls

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
        if name in _FORGETS or name in _SHAPES:
            return Value(everything.labels - {VALIDATION, SCORE})
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
            return Value(everything.labels | scored, kept | {_OPAQUE})
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

    # ----------------------------------------------------------------------------------------- scores and updates

    def _collect(self, node: ast.expr, held: Value, value: Value, line: int) -> None:
        self._books(value, line)
        ours = any(isinstance(ref, Instance) for ref in held.refs)
        if isinstance(node, (ast.Name, ast.Attribute)) and (value.labels or value.refs) and not ours:
            self._assign(node, Value(held.labels | value.labels, held.refs | value.refs))

    def _books(self, value: Value, line: int) -> None:
        """Note a score that is added up or stored (not what a model keeps for itself)."""
        if {VALIDATION, SCORE} <= value.labels and "forward" not in " ".join(self._frame.way):
            if self._state.learned is not None and not _loops(self._state.learned, self._around):
                self.rescored.add((self._frame.file, line))
            self._events += 1
            self._state.booked |= dict.fromkeys(("", *_loops(self._around, self._around)), ALWAYS)

    def _learns(self, call: ast.Call, value: Value) -> None:
        """Judge a gradient of ``value``: see the module's example."""
        if VALIDATION not in value.labels:
            return
        booked, loops = self._state.booked, _loops(self._around, self._around)
        scored = [loop for loop in loops if loop in value.labels and booked.get(loop)]
        if scored:
            level = max(booked[loop] for loop in scored)
            inner = next(loop for loop in reversed(scored) if booked[loop] == level)
            again = [loop for loop in loops[: loops.index(inner)] if loop not in value.labels]
            conditional = again and any(one.startswith("if") for one in self._around[self._around.index(again[0]) :])
            if again:
                sure = level == ALWAYS and not conditional and again[0].startswith("for")
                verdict, why = (
                    "broken" if sure else "unsure",
                    f"the loop at {again[0].partition(' ')[2]} goes over scored tokens again",
                )
            elif level == SOMETIMES:
                verdict, why = "unsure", "a score is booked before on some paths only"
            else:
                verdict, why = "allowed", "a score is booked before on every path"
        elif any(booked.get(loop) == ALWAYS for loop in loops):
            verdict, why = "unsure", "scores are booked before, perhaps of other tokens"
        elif booked and any(one.startswith("if") for one in self._around):
            verdict, why = "unsure", "under a condition, and the scores booked before are of another pass"
        else:
            verdict, why = "broken", "no score of them is booked before"
        self._sink("gradient", call, verdict, why)
        self._state.learned = self._around

    def _sink(self, kind: str, call: ast.Call, verdict: str, why: str) -> None:
        self._events += 1
        order = ("allowed", "unsure", "broken")
        key = (self._frame.file, call.lineno)
        old = self.sinks.get(key)
        if old is None or order.index(old.verdict) < order.index(verdict):
            self.sinks[key] = Sink(kind, *key, self._frame.way, verdict, why)


def _loops(a: tuple[str, ...], b: tuple[str, ...]) -> list[str]:
    """The loops that are around both of two places, outermost first."""
    return [one for one in a if not one.startswith("if") and one in b]
