"""What an expression of a script is, worked out without running it: literals, names that are bound once, slices and
joins, the standard library's decoders and decompressors, and files of the folder.

Whatever could be something else is Unknown: a name that is bound twice, a list that may have been changed, a decoder
that the script defines or replaces itself. Work and memory are bounded.
"""

from __future__ import annotations

import ast
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bytegolf.tools.submission.decoders import DECODERS, ENCODINGS, MOST_BYTES, Unknown
from bytegolf.tools.submission.values import dotted

# ---------------------------------------------------------------------------------------------- what names are bound to


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


# ------------------------------------------------------------------------------------------------------------ constants


MOST_STEPS = 200_000
"""Expressions that are worked out for one source."""

_DEEPEST = 30
"""Names that stand for names, one behind the other."""


class Folder:
    """What expressions of one source are, as far as that can be told without running them."""

    def __init__(self, folder: Path, nodes: list[ast.AST]) -> None:
        self._folder = folder
        self.names = Bindings(nodes)
        self.read: set[Path] = set()
        """files whose contents entered a value"""
        self.used: set[str] = set()
        """names whose values entered one"""
        self._found: dict[int, Any] = {}
        self._steps = 0
        self.patched: set[str] = set()
        """names of libraries that the script gives other values"""
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                self.patched.add(self.real(node))
            elif isinstance(node, ast.Call) and node.args and dotted(node.func) in ("setattr", "delattr"):
                self.patched.add(f"{self.real(node.args[0])}.*")

    def real(self, node: ast.AST, depth: int = 0) -> str:
        """The full name of what ``node`` stands for: ``base64.b85decode`` of ``b`` after ``from base64 import …``."""
        if depth > _DEEPEST:
            return ""
        if isinstance(node, ast.Name):
            if node.id in self.names.library:
                return self.names.library[node.id]
            held = self.names.bound.get(node.id)
            if isinstance(held, (ast.Name, ast.Attribute, ast.Call, ast.Subscript)):
                return self.real(held, depth + 1) or node.id
            return node.id
        if isinstance(node, ast.Attribute):
            before = self.real(node.value, depth + 1)
            return f"{before}.{node.attr}" if before else ""
        if isinstance(node, ast.Call):
            function = self.real(node.func, depth + 1)
            try:
                if function in ("__import__", "importlib.import_module", "builtins.__import__") and node.args:
                    return str(self.value(node.args[0], depth + 1))
                if function == "getattr" and len(node.args) > 1:
                    base = self.real(node.args[0], depth + 1)
                    return f"{base}.{self.value(node.args[1], depth + 1)}".replace("__builtins__", "builtins")
            except Unknown:
                return ""
        if isinstance(node, ast.Subscript):
            table = self.real(node.value, depth + 1)
            try:
                if table == "sys.modules":
                    return str(self.value(node.slice, depth + 1))
                if table in ("__builtins__", "__builtins__.__dict__", "builtins.__dict__"):
                    return f"builtins.{self.value(node.slice, depth + 1)}"
            except Unknown:
                return ""
        return ""

    def constant(self, node: ast.expr) -> Any:
        """What an expression is; None where that is not seen."""
        try:
            return self.value(node)
        except Unknown:
            return None

    def path(self, named: object) -> Path | None:
        """The file of the folder that a text names."""
        inside = self.inside(named)
        return inside if inside is not None and inside.is_file() else None

    def inside(self, named: object) -> Path | None:
        """The place in the folder that a text names, whether something is there or not."""
        if not isinstance(named, (str, Path)) or not str(named) or len(str(named)) > 4096 or "\0" in str(named):
            return None
        try:
            path = (self._folder / named).resolve()
            return path if path.is_relative_to(self._folder.resolve()) else None
        except (OSError, ValueError, RuntimeError):  # the last for links that lead to each other
            return None

    def within(self, inside: Path) -> str:
        """How a place in the folder is named from the folder."""
        return inside.relative_to(self._folder.resolve()).as_posix()

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """What an expression is; raises Unknown."""
        if id(node) not in self._found:
            try:
                self._found[id(node)] = self._value(node, depth)
            except Unknown as why:
                self._found[id(node)] = why
        found = self._found[id(node)]
        if isinstance(found, Unknown):
            raise found
        return found

    def _value(self, node: ast.expr, depth: int) -> Any:
        self._steps += 1
        if depth > 200 or self._steps > MOST_STEPS:
            raise Unknown("it is nested too deeply")

        def one(part: ast.expr) -> Any:
            return self.value(part, depth + 1)

        try:
            if isinstance(node, ast.Constant):
                return node.value
            if isinstance(node, ast.Name):
                if node.id == "__file__":
                    return str(self._folder / "script.py")
                if node.id in self.names.bound and not self.names.star:
                    self.used.add(node.id)
                    held = one(self.names.bound[node.id])
                    if isinstance(held, (list, dict, bytearray)) and not self.names.only_read(node.id):
                        raise Unknown(f"{node.id} may be changed")
                    return held
                raise Unknown(f"{node.id} is not a constant")
            if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
                return [one(part) for part in node.elts]
            if isinstance(node, ast.Dict):
                return {one(key): one(value) for key, value in zip(node.keys, node.values, strict=True) if key}
            if isinstance(node, ast.JoinedStr):
                return "".join(
                    str(one(part.value if isinstance(part, ast.FormattedValue) else part)) for part in node.values
                )
            if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
                return -one(node.operand)
            if isinstance(node, ast.BinOp):
                return _bounded(self._operation(node, one(node.left), one(node.right)))
            if isinstance(node, ast.Subscript):
                return one(node.value)[self._index(node.slice, one)]
            if isinstance(node, ast.Attribute):
                return self._constant(node, one)
            if isinstance(node, ast.Call):
                return _bounded(self._called(node, one))
        except Unknown:
            raise
        except RecursionError:
            raise Unknown("it is nested too deeply") from None
        except Exception as error:  # whatever a decoder says of damaged text
            raise Unknown(f"{type(error).__name__}") from error
        raise Unknown(f"`{ast.unparse(node)[:60]}` is computed")

    def _operation(self, node: ast.BinOp, left: Any, right: Any) -> Any:
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Div) and isinstance(left, Path):
            return left / right
        # `"a" * 10**9` is checked before it is made, as is `%`, whose widths can ask for as much
        if isinstance(node.op, ast.Mult) and len(left) * right <= MOST_BYTES:
            return left * right
        if isinstance(node.op, ast.Mod) and isinstance(left, str) and not _WIDE.search(left[:MOST_BYTES]):
            return left % (tuple(right) if isinstance(right, list) else right)
        raise Unknown(f"`{ast.unparse(node)[:60]}` is computed")

    def _index(self, node: ast.expr, one: Callable[[ast.expr], Any]) -> Any:
        if isinstance(node, ast.Slice):
            return slice(*(one(part) if part else None for part in (node.lower, node.upper, node.step)))
        return one(node)

    def _constant(self, node: ast.Attribute, one: Callable[[ast.expr], Any]) -> Any:
        """``lzma.FORMAT_RAW``, ``path.parent``."""
        module, _, name = self.real(node).rpartition(".")
        if module in ("lzma", "zlib") and name.isupper():
            return getattr({"lzma": lzma, "zlib": zlib}[module], name)
        held = one(node.value)
        if isinstance(held, Path) and node.attr in ("parent", "name", "stem"):
            return getattr(held, node.attr)
        raise Unknown(f"`{ast.unparse(node)[:60]}` is computed")

    def _called(self, call: ast.Call, one: Callable[[ast.expr], Any]) -> Any:
        """The value of a call of a decoder, of a reader of files, or of a method of texts."""
        name = self.real(call.func)
        if name in DECODERS or name in _ORDINARY:
            self._check_own(call.func, name)

        def given() -> list[Any]:
            return [one(part) for part in call.args]

        named = {part.arg: part.value for part in call.keywords if part.arg}
        if name in DECODERS:
            return DECODERS[name](*given(), **{key: one(value) for key, value in named.items()})
        if name in _ORDINARY:
            return self._ordinary(name.rpartition(".")[2], call, given)
        if isinstance(call.func, ast.Attribute):
            return self._method(one(call.func.value), call.func.attr, given(), {k: one(v) for k, v in named.items()})
        raise Unknown(f"`{ast.unparse(call.func)[:60]}` is not a decoder that is known here")

    def _check_own(self, function: ast.expr, name: str) -> None:
        """Raise Unknown where the script, or a file of its folder, may have put something else under a name."""
        root = function
        while isinstance(root, ast.Attribute):
            root = root.value
        module = name.partition(".")[0]
        shadowed = any((self._folder / one).exists() for one in (f"{module}.py", module)) if "." in name else False
        if (
            shadowed
            or (isinstance(root, ast.Name) and self.names.replaced(root.id))
            or {name, f"{module}.*"} & self.patched
        ):
            raise Unknown(f"`{ast.unparse(function)[:60]}` may be the script's own")

    def _ordinary(self, name: str, call: ast.Call, given: Callable[[], list[Any]]) -> Any:
        if name == "map":
            mapped = self.real(call.args[0])
            values = next(self.value(part) for part in call.args[1:])
            mappings: dict[str, Callable[[Any], Any]] = {"chr": chr, "ord": ord, "int": int}
            return [mappings[mapped](value) for value in values]
        arguments = given()
        first = arguments[0] if arguments else ""
        if name == "open":
            path = self.path(first)
            if path is None:
                raise Unknown(f"{Path(str(first)).name[:60]!r} is no file of the folder")
            return path
        if name == "Path" or name in ("abspath", "realpath", "fspath", "dirname", "join"):
            path = Path(*map(str, arguments))
            return path.parent if name == "dirname" else path
        if name == "int":
            return int(*arguments)
        if name in ("BytesIO", "StringIO"):
            return first
        plain: dict[str, Callable[..., Any]] = {
            "bytes": bytes,
            "bytearray": bytearray,
            "chr": chr,
            "ord": ord,
            "str": str,
        }
        if name in ("bytes", "bytearray") and isinstance(first, int):
            raise Unknown("zeros")
        return plain[name](*arguments) if name in plain else list(first)[:: -1 if name == "reversed" else 1]

    def _method(self, held: Any, name: str, given: list[Any], named: dict[str, Any]) -> Any:
        if isinstance(held, Path):
            if name in ("read", "read_text", "read_bytes"):
                path = self.path(held)
                if path is None or path.stat().st_size > 4 * MOST_BYTES:
                    raise Unknown(f"{held.name!r} is no file of the folder, or too large")
                self.read.add(path)
                contents = path.read_bytes()
                try:  # `read` of an open file: bytes or text, whatever it is
                    return contents if name == "read_bytes" else contents.decode()
                except UnicodeDecodeError:
                    return contents
            if name in ("resolve", "absolute", "expanduser"):
                return held
            if name in ("with_name", "joinpath", "with_suffix"):
                return getattr(held, name)(*map(str, given))
        if isinstance(held, (str, bytes, bytearray)) and name in _METHODS:
            if (
                name in ("encode", "decode")
                and str(given[0] if given else "utf-8").replace("_", "-").lower() not in ENCODINGS
            ):
                raise Unknown(f"the encoding {given[0]}")
            if name in ("read", "getvalue", "hex"):
                return held.hex() if name == "hex" and isinstance(held, bytes) else held
            if (name == "encode" and isinstance(held, (bytes, bytearray))) or (
                name == "decode" and isinstance(held, str)
            ):
                return held  # an open file's contents, whose mode is not looked at
            if name == "join":
                parts = list(given[0])
                _room(sum(map(len, parts)) + len(held) * len(parts))
                return held.join(parts)
            if name == "format" and isinstance(held, str) and _WIDE_FORMAT.search(held):
                raise Unknown("it is too large")
            if name in ("zfill", "ljust", "rjust", "center", "expandtabs"):
                _room(sum(one * max(1, len(held)) for one in given if isinstance(one, int)))
            if name == "replace":
                _room(len(held) + (held.count(given[0]) * len(given[1]) if len(given) > 1 else 0))
            return getattr(held, name)(*given, **named)
        raise Unknown(f".{name}() is not known here")


_METHODS = frozenset({"encode", "decode", "join", "replace", "strip", "lstrip", "rstrip", "split", "splitlines", "read",
                      "getvalue", "lower", "upper", "format", "translate", "removeprefix", "removesuffix", "swapcase",
                      "title", "capitalize", "casefold", "partition", "rpartition", "rsplit", "zfill", "ljust",
                      "rjust", "center", "expandtabs", "hex"})  # fmt: skip


_ORDINARY = frozenset({"open", "io.open", "builtins.open", "pathlib.Path", "Path", "os.path.join", "os.path.dirname",
                       "os.path.abspath", "os.path.realpath", "os.fspath", "bytes", "bytearray", "chr", "ord", "str",
                       "int", "tuple", "list", "io.BytesIO", "io.StringIO", "reversed", "map"})  # fmt: skip


_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{4}|\*)")
"""A format that makes more of a value than is there."""


_WIDE_FORMAT = re.compile(r"\d{4}|\{[^}]*\{")
"""The same of `str.format`: a width of four digits, or one that is a field itself (`{:{width}}`)."""


def _room(size: int) -> None:
    if size > 4 * MOST_BYTES:
        raise Unknown("it is too large")


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, bytes, list)) and len(value) > 4 * MOST_BYTES:
        raise Unknown("it is too large")
    return value
