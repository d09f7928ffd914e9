"""What an expression of a script is, as far as that can be told without running it: constants, decoded and joined."""

from __future__ import annotations

import ast
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bytegolf.tools.submission.decoders import DECODERS, MOST_BYTES, TEXT, Unknown
from bytegolf.tools.submission.values import dotted

_DEEPEST = 30
"""Names that stand for names, one behind the other."""

_METHODS = frozenset({"encode", "decode", "join", "replace", "strip", "lstrip", "rstrip", "split", "splitlines", "read",
                      "getvalue", "lower", "upper"})  # fmt: skip


_ORDINARY = frozenset({"open", "io.open", "builtins.open", "pathlib.Path", "Path", "os.path.join", "os.path.dirname",
                       "os.path.abspath", "os.path.realpath", "os.fspath", "bytes", "bytearray", "chr", "ord", "str",
                       "int", "tuple", "list", "io.BytesIO", "io.StringIO", "reversed", "map"})  # fmt: skip


class Folder:
    """What expressions of one source are, as far as that can be told without running them."""

    def __init__(self, folder: Path, nodes: list[ast.AST]) -> None:
        self._folder = folder
        self.read: set[Path] = set()
        """files whose contents entered a value"""
        self.bound: dict[str, ast.expr] = {}
        """names that are given one value in all"""
        self._library: dict[str, str] = {}
        self._defined: set[str] = set()
        counts: dict[str, int] = {}
        for node in nodes:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                counts[node.id] = counts.get(node.id, 0) + 1
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self._defined.add(node.name)
            elif isinstance(node, ast.arg):
                counts[node.arg] = counts.get(node.arg, 0) + 2  # a parameter is given another value by each call
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.partition(".")[0]
                    self._library[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom):
                self._library |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        for node in nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        self.bound[target.id] = node.value
                    elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        self.bound |= {one.id: value for one, value in zip(target.elts, node.value.elts, strict=False)
                                       if isinstance(one, ast.Name)}  # fmt: skip
            elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and isinstance(node.target, ast.Name) and node.value:
                self.bound[node.target.id] = node.value
        # `x = b"…"` and later `x = decode(x)`: which of the two a call sees takes running, so x is not known at all
        self.bound = {name: value for name, value in self.bound.items() if counts.get(name) == 1}

    def shadowed(self, name: str) -> bool:
        """Whether the script itself defines a function of that name."""
        return name in self._defined

    def real(self, node: ast.AST, depth: int = 0) -> str:
        """The full name of what ``node`` stands for: ``base64.b85decode`` of ``b`` after ``from base64 import …``."""
        if depth > _DEEPEST:
            return ""
        if isinstance(node, ast.Name):
            if node.id in self._library:
                return self._library[node.id]
            if node.id in self.bound and isinstance(self.bound[node.id], (ast.Name, ast.Attribute, ast.Call)):
                return self.real(self.bound[node.id], depth + 1) or node.id
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
        if isinstance(node, ast.Subscript) and dotted(node.value) in ("__builtins__", "__builtins__.__dict__"):
            try:
                return f"builtins.{self.value(node.slice, depth + 1)}"
            except Unknown:
                return ""
        return ""

    def path(self, named: object) -> Path | None:
        """The file of the folder that a text names."""
        if not isinstance(named, (str, Path)) or not str(named) or len(str(named)) > 4096 or "\0" in str(named):
            return None
        try:
            path = (self._folder / named).resolve()
            inside = path.is_relative_to(self._folder.resolve()) and path.is_file()
        except (OSError, ValueError):
            return None
        return path if inside else None

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """What an expression is; raises Unknown."""
        if depth > 200:
            raise Unknown("it is nested too deeply")

        def one(part: ast.expr) -> Any:
            return self.value(part, depth + 1)

        try:
            if isinstance(node, ast.Constant):
                return node.value
            if isinstance(node, ast.Name):
                if node.id == "__file__":
                    return str(self._folder / "script.py")
                if node.id in self.bound:
                    return one(self.bound[node.id])
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
        if isinstance(node.op, ast.Mod) and isinstance(left, str) and len(left) < 1000:
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
        plain: dict[str, Callable[..., Any]] = {"bytes": bytes, "bytearray": bytes, "chr": chr, "ord": ord, "str": str}
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
        if isinstance(held, (str, bytes)) and name in _METHODS:
            if (
                name in ("encode", "decode")
                and str(given[0] if given else "utf-8").replace("_", "-").lower() not in TEXT
            ):
                raise Unknown(f"the encoding {given[0]}")
            if name in ("read", "getvalue", "hex"):
                return held.hex() if name == "hex" and isinstance(held, bytes) else held
            if (name == "encode" and isinstance(held, bytes)) or (name == "decode" and isinstance(held, str)):
                return held  # an open file's contents, whose mode is not looked at
            return getattr(held, name)(*given, **named)
        raise Unknown(f".{name}() is not known here")


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, bytes, list)) and len(value) > 4 * MOST_BYTES:
        raise Unknown("it is too large")
    return value
