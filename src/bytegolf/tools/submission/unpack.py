"""Code that a script runs without showing it: packed in literals or files, it is unpacked and read like the rest.

Only what needs no running is computed: literals, names bound once, slices and joins, the standard library's decoders
and decompressors, and files of the folder. Whatever else is executed is an obstacle, with its line.
"""

from __future__ import annotations

import ast
import base64
import binascii
import bz2
import codecs
import importlib.util
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bytegolf.tools.submission.values import dotted

MOST_BYTES = 4_000_000
"""Of a script, and of what one call unpacks: nobody reads more."""

_DEEPEST = 30
_RUNS = frozenset({"exec", "eval", "compile"})
_MODULES = frozenset({"import_module", "__import__", "run_module", "run_path", "spec_from_file_location", "execfile",
                      "resolve_name", "load_source", "load_module", "zipimporter"})  # fmt: skip
_OPAQUE = frozenset({"marshal.loads", "marshal.load", "pickle.loads", "dill.loads", "cloudpickle.loads",
                     "types.CodeType",
                     "types.FunctionType", "code.InteractiveInterpreter", "ctypes.CDLL", "ctypes.cdll.LoadLibrary",
                     "torch.ops.load_library", "torch.jit.load", "torch.classes.load_library"})  # fmt: skip


class Unknown(Exception):  # noqa: N818  (an answer)
    """An expression whose value is not to be had without running the script."""


@dataclass(frozen=True)
class Source:
    """A piece of code, and where it came from."""

    name: str
    tree: ast.Module


@dataclass
class Sources:
    """All code that a submission's script runs, as far as it can be read."""

    script: Source
    modules: dict[str, Source] = field(default_factory=dict)
    """helpers in the folder that it imports, by module name"""
    unpacked: dict[int, Source] = field(default_factory=dict)
    """by the id of the call that runs it"""
    obstacles: list[str] = field(default_factory=list)
    """what could not be read, with file and line"""
    opened: set[Path] = field(default_factory=set)
    """files of the folder that it names"""

    def every(self) -> Iterator[Source]:
        """The script, its modules, and what is packed in them."""
        yield self.script
        yield from self.modules.values()
        yield from self.unpacked.values()


def parse(text: bytes | str) -> ast.Module | None:
    """A script's tree; None if it is not Python."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def why_not(text: bytes | str) -> str:
    """Why something is no Python."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        return f"{error.msg}, line {error.lineno}, for Python {'.'.join(map(str, sys.version_info[:2]))}"
    except (ValueError, RecursionError, MemoryError) as error:
        return type(error).__name__
    return "it is packed too deeply or is too large"


def read_sources(folder: Path, script: Path) -> Sources | None:
    """Read ``script`` and all code of ``folder`` that it runs; None if it is not Python or too large."""
    tree = parse(script.read_bytes()) if script.stat().st_size <= MOST_BYTES else None
    if tree is None:
        return None
    found = Sources(Source(script.relative_to(folder).as_posix(), tree))
    _Reader(folder, found).read(found.script, 0)
    return found


class _Reader:
    """Reads one submission."""

    def __init__(self, folder: Path, sources: Sources) -> None:
        self._folder, self._sources = folder, sources
        self._spent = 0

    def read(self, source: Source, depth: int) -> None:
        """Find what ``source`` runs, imports and opens."""
        try:
            nodes = list(ast.walk(source.tree))
            folder = Folder(self._folder, nodes)
        except RecursionError:
            self._obstacle(source, None, "it is nested too deeply")
            return
        called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
        decorated = {id(part) for node in nodes for part in getattr(node, "decorator_list", ())}
        for node in nodes:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(source, node, depth)
            elif isinstance(node, ast.Call):
                self._call(source, node, folder, depth)
            elif isinstance(node, ast.Name) and id(node) not in called | decorated and isinstance(node.ctx, ast.Load):
                if folder.real(node) in _RUNS | {"__builtins__", "__import__"} and not folder.shadowed(node.id):
                    self._obstacle(source, node, f"{node.id} is passed on as a value")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                self._named(node.value)

    def _named(self, text: str) -> None:
        """Note a file of the folder that a string names."""
        if 0 < len(text) < 200 and "\n" not in text and "\0" not in text:
            path = self._folder / text
            if not text.startswith("/") and ".." not in path.parts and path.is_file():
                self._sources.opened.add(path)

    def _import(self, source: Source, node: ast.Import | ast.ImportFrom, depth: int) -> None:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if isinstance(node, ast.ImportFrom) and (node.level or not node.module):
            names += [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
        for name in names:
            self._module(name, depth)

    def _module(self, name: str, depth: int) -> bool:
        """Read a module of the folder; whether there is one of that name."""
        parts = name.split(".")
        for number in range(1, len(parts) + 1):
            place = self._folder.joinpath(*parts[:number])
            module = ".".join(parts[:number])
            path = next((one for one in (place.with_suffix(".py"), place / "__init__.py") if one.is_file()), None)
            native = list(self._folder.glob(f"{'/'.join(parts[:number])}*.so"))
            for one in native:
                self._sources.obstacles.append(f"{one.name} is compiled code, which is not read")
            if path is None or module in self._sources.modules or path.name == self._sources.script.name:
                continue
            self._sources.opened.add(path)
            tree = parse(path.read_bytes()) if path.stat().st_size <= MOST_BYTES else None
            if tree is None:
                self._sources.obstacles.append(f"{path.name} is no Python that can be read")
                continue
            self._sources.modules[module] = Source(path.relative_to(self._folder).as_posix(), tree)
            self.read(self._sources.modules[module], depth + 1)
        return name in self._sources.modules

    def _call(self, source: Source, call: ast.Call, folder: Folder, depth: int) -> None:
        name = folder.real(call.func)
        last = name.rpartition(".")[2]
        if name in _RUNS or name in {f"builtins.{one}" for one in _RUNS}:
            if folder.shadowed(name):
                return
            self._code(source, call, folder, depth)
        elif last in _MODULES and call.args:
            self._dynamic(source, call, folder, last, depth)
        elif name in _OPAQUE:
            if last not in ("CDLL", "LoadLibrary", "load_library") or self._file_of(call, folder):
                self._obstacle(source, call, f"{name} runs what is not text")
        elif not name and isinstance(call.func, (ast.Subscript, ast.Call)) and _reaches(call.func):
            self._obstacle(source, call, f"{ast.unparse(call.func)[:60]} is called")
        elif last in ("run", "Popen", "system", "call", "check_call", "check_output", "execv", "execvp", "spawnv"):
            self._started(source, call, folder, depth)
        elif last in ("open", "Path", "load", "fromfile", "memmap", "read_text", "read_bytes", "load_file", "joinpath"):
            self._file_of(call, folder)

    def _file_of(self, call: ast.Call, folder: Folder) -> Path | None:
        """The file of the folder that a call's first argument names; it is noted."""
        try:
            path = folder.path(folder.value(call.args[0])) if call.args else None
        except Unknown:
            return None
        if path is not None:
            self._sources.opened.add(path)
        return path

    def _code(self, source: Source, call: ast.Call, folder: Folder, depth: int) -> None:
        """What exec, eval or compile is given."""
        argument = (
            call.args[0] if call.args else next((one.value for one in call.keywords if one.arg == "source"), None)
        )
        if isinstance(argument, ast.Call) and folder.real(argument.func).rpartition(".")[2] == "compile":
            return  # which is looked at itself
        if argument is not None and isinstance(argument, ast.Name):
            held = folder.bound.get(argument.id)
            if isinstance(held, ast.Call) and folder.real(held.func) == "compile":
                return
        try:
            if argument is None:
                raise Unknown("nothing")
            text = folder.value(argument)
        except Unknown as why:
            self._obstacle(source, call, f"what {ast.unparse(call.func)} runs cannot be unpacked: {why}")
            return
        self._run(source, call, text, depth)
        self._sources.opened |= folder.read

    def _run(self, source: Source, call: ast.Call, text: object, depth: int) -> None:
        if not isinstance(text, (str, bytes)):
            self._obstacle(source, call, "what is run is no text")
            return
        self._spent += len(text)
        tree = parse(text.strip()) if depth < _DEEPEST and self._spent <= 4 * MOST_BYTES else None
        if tree is None:
            self._obstacle(source, call, f"what is run cannot be read: {why_not(text.strip())}")
            return
        packed = Source(f"{source.name}:{call.lineno} unpacked", tree)
        self._sources.unpacked[id(call)] = packed
        self.read(packed, depth + 1)

    def _dynamic(self, source: Source, call: ast.Call, folder: Folder, last: str, depth: int) -> None:
        """A module or file that is named by an expression."""
        argument = call.args[1] if last == "spec_from_file_location" and len(call.args) > 1 else call.args[0]
        try:
            named = folder.value(argument)
        except Unknown as why:
            self._obstacle(source, call, f"which module is imported is not seen: {why}")
            return
        path = folder.path(named)
        if path is not None and last not in ("import_module", "__import__"):
            self._sources.opened.add(path)
            self._run(source, call, path.read_bytes()[: MOST_BYTES + 1], depth)
        elif isinstance(named, str) and last in ("import_module", "__import__", "run_module"):
            call.imports = named  # type: ignore[attr-defined]
            self._module(named.lstrip("."), depth)
        else:
            self._obstacle(source, call, "the code that it runs is not in the folder")

    def _started(self, source: Source, call: ast.Call, folder: Folder, depth: int) -> None:
        """A program that is started: if it is one of the folder, it is read; text for an interpreter is, too."""
        words: list[str] = []
        for node in (part for argument in call.args for part in ast.walk(argument)):
            try:
                value = folder.value(node) if isinstance(node, ast.expr) else None
            except Unknown:
                continue
            words += value.split() if isinstance(value, str) else []
        program = any(re.search(r"(^|/)(python[\d.]*|sh|bash|perl|node|ruby)$", word) for word in words)
        program |= "sys.executable" in ast.unparse(call)
        for word in dict.fromkeys(words):
            path = folder.path(word)
            if path is not None and path.name != self._sources.script.name:
                self._sources.opened.add(path)
                self._run(source, call, path.read_bytes()[: MOST_BYTES + 1], depth)
                return
        if program:
            self._obstacle(source, call, "it starts an interpreter")

    def _obstacle(self, source: Source, node: ast.AST | None, why: str) -> None:
        line = f":{node.lineno}" if node is not None and hasattr(node, "lineno") else ""
        said = f"{why} ({source.name}{line})"
        if said not in self._sources.obstacles:
            self._sources.obstacles.append(said)


def _reaches(node: ast.AST) -> bool:
    """Whether a called expression may be exec under another name: getattr(builtins, …), globals()[…]."""
    words = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    words |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    return bool(words & {"builtins", "__builtins__", "globals", "__dict__", "vars", "__import__", "import_module"})


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
                counts[node.arg] = counts.get(node.arg, 0) + 2
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
                and str(given[0] if given else "utf-8").replace("_", "-").lower() not in _TEXT
            ):
                raise Unknown(f"the encoding {given[0]}")
            if name in ("read", "getvalue", "hex"):
                return held.hex() if name == "hex" and isinstance(held, bytes) else held
            if (name == "encode" and isinstance(held, bytes)) or (name == "decode" and isinstance(held, str)):
                return held  # an open file's contents, whose mode is not looked at
            return getattr(held, name)(*given, **named)
        raise Unknown(f".{name}() is not known here")


_METHODS = frozenset({"encode", "decode", "join", "replace", "strip", "lstrip", "rstrip", "split", "splitlines", "read",
                      "getvalue", "lower", "upper"})  # fmt: skip
_TEXT = frozenset({"utf-8", "utf8", "ascii", "latin-1", "latin1", "iso-8859-1", "utf-16", "utf-32", "cp437", "cp1252",
                   "raw-unicode-escape", "unicode-escape"})  # fmt: skip


_ORDINARY = frozenset({"open", "io.open", "builtins.open", "pathlib.Path", "Path", "os.path.join", "os.path.dirname",
                       "os.path.abspath", "os.path.realpath", "os.fspath", "bytes", "bytearray", "chr", "ord", "str",
                       "int", "tuple", "list", "io.BytesIO", "io.StringIO", "reversed", "map"})  # fmt: skip


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, bytes, list)) and len(value) > 4 * MOST_BYTES:
        raise Unknown("it is too large")
    return value


def _bytes(text: Any) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else bytes(text)


def _limited(made: Any) -> Callable[..., bytes]:
    """A decompressor that stops at the size that anybody would read; several streams in a row are unpacked as one."""

    def decompress(data: Any, *given: Any, **named: Any) -> bytes:
        rest, found = _bytes(data), b""
        while rest:
            unpacker = made(*given, **named)
            found += unpacker.decompress(rest, MOST_BYTES + 1 - len(found))
            if len(found) > MOST_BYTES or not unpacker.eof:
                raise Unknown("it unpacks to too much, or is cut short")
            rest = getattr(unpacker, "unused_data", b"").lstrip(b"\0")
        return found

    return decompress


def _lzma(format: int = lzma.FORMAT_AUTO, memlimit: int | None = None, filters: Any = None) -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format, 512 * 2**20 if format != lzma.FORMAT_RAW else None, filters)


def _brotli(data: Any) -> bytes:
    if importlib.util.find_spec("brotli") is None:
        raise Unknown("brotli is not installed here")
    import brotli

    unpacker = brotli.Decompressor()
    found = bytes(unpacker.process(_bytes(data), output_buffer_limit=MOST_BYTES + 1))
    if not unpacker.is_finished():
        raise Unknown("it unpacks to too much, or is cut short")
    return found


def _codec(text: Any, name: str = "utf-8", *_: Any) -> Any:
    kind = name.replace("-", "_").removesuffix("_codec")
    by_name = {"hex": "binascii.unhexlify", "zlib": "zlib.decompress", "zip": "zlib.decompress",
               "bz2": "bz2.decompress", "base64": "base64.b64decode"}  # fmt: skip
    if kind in by_name:
        return DECODERS[by_name[kind]](text)
    if kind in ("rot13", "rot_13"):
        return codecs.decode(text, "rot13")
    if name not in _TEXT:
        raise Unknown(f"the encoding {name}")
    return _bytes(text).decode(name)


DECODERS: MappingProxyType[str, Callable[..., Any]] = MappingProxyType({
    **{f"base64.{name}": getattr(base64, name) for name in
       ("b64decode", "b85decode", "a85decode", "b32decode", "b16decode", "urlsafe_b64decode", "standard_b64decode",
        "decodebytes", "b32hexdecode")},
    "binascii.unhexlify": binascii.unhexlify, "binascii.a2b_hex": binascii.a2b_hex,
    "binascii.a2b_base64": binascii.a2b_base64, "bytes.fromhex": bytes.fromhex, "bytearray.fromhex": bytes.fromhex,
    "zlib.decompress": _limited(lambda wbits=15, bufsize=0: zlib.decompressobj(wbits)),
    "gzip.decompress": _limited(lambda: zlib.decompressobj(31)),
    "bz2.decompress": _limited(bz2.BZ2Decompressor), "lzma.decompress": _limited(_lzma),
    "brotli.decompress": _brotli, "codecs.decode": _codec,
})  # fmt: skip
