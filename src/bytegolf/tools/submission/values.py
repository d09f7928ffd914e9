"""What the data flow knows of a value: what it is made of, and what it may be."""

from __future__ import annotations

import ast
import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

VALIDATION = "validation"
"""Label of what is made of validation tokens."""

SCORE = "score"
"""Label of what a model or a loss function made of its arguments."""


@dataclass(eq=False)
class Scope:
    """The names of a module, class or function call, and where to look for others."""

    parent: Scope | None = None
    names: dict[str, Value] = field(default_factory=dict)
    elsewhere: dict[str, Scope] = field(default_factory=dict)
    """names that `global` and `nonlocal` put into another scope"""

    def find(self, name: str) -> Value | None:
        """The value of ``name`` here or around."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return None

    def put(self, name: str, value: Value) -> None:
        """Give ``name`` a value."""
        self.elsewhere.get(name, self).names[name] = value


@dataclass(frozen=True, eq=False)
class Class:
    """A class of the script: its names, and the classes of the script that it extends."""

    node: ast.ClassDef
    scope: Scope
    bases: tuple[Class, ...]

    def find(self, name: str) -> Value | None:
        """The class's own ``name`` or that of its nearest base."""
        if name in self.scope.names:
            return self.scope.names[name]
        return next((found for base in self.bases if (found := base.find(name)) is not None), None)


@dataclass(frozen=True)
class Instance:
    """The objects that one call constructs (with arguments of the same labels)."""

    of: Class
    site: tuple[int, frozenset[str]]


@dataclass(frozen=True)
class Code:
    """A function or lambda, the scope it was defined in, and the file whose lines it has."""

    node: Function
    scope: Scope
    file: str
    this: Instance | None = None


@dataclass(frozen=True)
class Library:
    """A module, or something of one, by its dotted name."""

    name: str


@dataclass(frozen=True)
class Module:
    """A module whose text is in the folder."""

    scope: Scope


Ref = Class | Instance | Code | Library | Module


@dataclass(frozen=True)
class Value:
    """What an expression may be."""

    labels: frozenset[str] = frozenset()
    refs: frozenset[Ref] = frozenset()
    items: tuple[Value, ...] = ()
    """of a tuple that is written out"""

    def join(self, other: Value) -> Value:
        """What either may be."""
        if self == other:
            return self
        items: tuple[Value, ...] = ()
        if len(self.items) == len(other.items):
            items = tuple(a.join(b) for a, b in zip(self.items, other.items, strict=True))
        return Value(self.labels | other.labels, self.refs | other.refs, items)

    def labelled(self, labels: Iterable[str]) -> Value:
        """The same with more labels, also on its items."""
        more = frozenset(labels)
        if not more:
            return self
        return Value(self.labels | more, self.refs, tuple(item.labelled(more) for item in self.items))


NOTHING = Value()


def union(values: Iterable[Value]) -> Value:
    """What is made of all of ``values``."""
    labels: frozenset[str] = frozenset()
    refs: frozenset[Ref] = frozenset()
    for value in values:
        labels, refs = labels | value.labels, refs | value.refs
    return Value(labels, refs)


def dotted(node: ast.AST) -> str:
    """``torch.hub.load`` of a name or an attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else node.attr
    return ""


_HOLDS = (
    "tokens?|toks?|data|files?|ids?|loader|set|split|docs?|text|stream|shards?|glob|path|pattern|dir|x|y|inputs?|targets?|"
    "iter|dataset|batches"
)
_NAMED = re.compile(rf"(^|_)(val|validation|valid)_({_HOLDS})$|(^|_)({_HOLDS})_(val|validation)$", re.I)
_FIGURE = re.compile(r"loss|bpb|every|step|seconds|count|metric|best|freq", re.I)
_SPLIT = re.compile(r"(^|[^a-z])(val|valid|validation)([^a-z]|$)", re.I)


def named_validation(name: str) -> bool:
    """Whether a name of which nothing else is known says that it holds the validation split, not a figure about it."""
    return bool(_NAMED.search(name)) and not _FIGURE.search(name)


def names_validation(text: object) -> bool:
    """Whether a string names the validation split: "val", "fineweb_val_*.bin"."""
    return (
        isinstance(text, str)
        and len(text) < 80
        and not re.search(r"[\s=:{}%]", text)
        and bool(_SPLIT.search(text))
        and not _FIGURE.search(text)
    )


_LISTS = frozenset({"os.listdir", "os.scandir", "os.walk"})
_SHARD = "fineweb_val_000000.bin"


def takes_any_split(text: object) -> bool:
    """Whether a string is a pattern that takes the validation split's files without naming it: `fineweb_*.bin`."""
    if not isinstance(text, str) or len(text) > 200 or not re.search(r"[*?\[]", text) or names_validation(text):
        return False
    last = text.rpartition("/")[2]
    return fnmatch.fnmatch(_SHARD, last) and ("bin" in last or "fineweb" in last or text.endswith("/*"))


def takes_validation(name: str, call: ast.Call) -> bool:
    """Whether a call lists all files of a folder, or by a pattern those of any split."""
    last = name.rpartition(".")[2] or (call.func.attr if isinstance(call.func, ast.Attribute) else "")
    named = getattr(call, "named", None)
    return name in _LISTS or last == "iterdir" or (last in ("glob", "iglob", "rglob") and takes_any_split(named))
