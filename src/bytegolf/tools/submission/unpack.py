"""Code that a script runs without showing it: packed in literals or files, it is unpacked and read like the rest.

Only what needs no running is computed: literals, names bound once, slices and joins, the standard library's decoders
and decompressors, and files of the folder. Whatever else is executed is an obstacle, with its line.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bytegolf.tools.submission.constants import Folder
from bytegolf.tools.submission.decoders import MOST_BYTES, Unknown

_DEEPEST = 30
_RUNS = frozenset({"exec", "eval", "compile"})
_MODULES = frozenset({"import_module", "__import__", "run_module", "run_path", "spec_from_file_location", "execfile",
                      "resolve_name", "load_source", "load_module", "zipimporter"})  # fmt: skip
_OPAQUE = frozenset({"marshal.loads", "marshal.load", "pickle.loads", "dill.loads", "cloudpickle.loads",
                     "types.CodeType",
                     "types.FunctionType", "code.InteractiveInterpreter", "ctypes.CDLL", "ctypes.cdll.LoadLibrary",
                     "torch.ops.load_library", "torch.jit.load", "torch.classes.load_library"})  # fmt: skip


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
            # `run = exec` or `map(exec, parts)`: what is neither called here nor decorates is called elsewhere
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
        self._spent += len(text)  # of all levels together: packed code may unpack more packed code
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
