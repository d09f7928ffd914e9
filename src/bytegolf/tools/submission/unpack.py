"""Code that a script runs without showing it: packed in literals or files, it is unpacked and read like the rest.

Only what needs no running is computed: literals, names bound once, slices and joins, the standard library's decoders
and decompressors, and files of the folder. Whatever else is executed is an obstacle, with its line.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from bytegolf.tools.submission import powers
from bytegolf.tools.submission.constants import Folder, stored
from bytegolf.tools.submission.decoders import MOST_BYTES, Unknown
from bytegolf.tools.submission.sources import Source, Sources, parse, why_not
from bytegolf.tools.submission.values import names_validation

_DEEPEST = 30


def read_sources(folder: Path, script: Path) -> Sources | None:
    """Read ``script`` and all code of ``folder`` that it runs; None if it is not Python or too large."""
    tree = parse(script.read_bytes()) if script.stat().st_size <= MOST_BYTES else None
    if tree is None:
        return None
    found = Sources(Source(script.relative_to(folder).as_posix(), tree))
    reader = _Reader(folder, found)
    reader.read(found.script, 0)
    reader.beside()
    return found


_MODULES = frozenset({"importlib.import_module", "__import__", "builtins.__import__", "importlib.__import__",
                      "runpy.run_module", "runpy.run_path", "importlib.util.spec_from_file_location"})  # fmt: skip
"""Functions that run code by its name or its file's."""

_STARTS = re.compile(
    r"(os|posix|nt)\.(system|popen|startfile|exec\w+|spawn\w+|posix_spawnp?)|pty\.spawn|"
    r"subprocess\.(run|Popen|call|check_call|check_output|getoutput|getstatusoutput)"
)
_OPENS = frozenset({"open", "Path", "load", "fromfile", "memmap", "read_text", "read_bytes", "load_file", "joinpath",
                    "loadtxt", "genfromtxt", "glob", "iglob", "rglob"})  # fmt: skip
_WRITES = frozenset({"write_text", "write_bytes"})
_PROGRAMS = frozenset({"nvidia-smi", "rocm-smi", "uname", "hostname", "lscpu", "nproc", "free", "df", "ls", "pwd",
                       "which", "whoami", "date", "pyminify", "lrzip", "zstd", "xz", "gzip", "bzip2",
                       "brotli"})  # fmt: skip
"""Programs that may be started: what they do is known."""
_GIT = frozenset({"rev-parse", "status", "log", "diff", "describe", "show"})
_INTERPRETERS = re.compile(r"(^|/)(python[\d.]*|sh|bash|dash|zsh|perl|node|ruby|lua|env|make|ninja)$")


class _Reader:
    """Reads one submission."""

    def __init__(self, folder: Path, sources: Sources) -> None:
        self._folder, self._sources = folder, sources
        self._spent = 0
        self._searches_all = False
        self._from_files: list[tuple[Source, ast.AST, Path]] = []
        self._written: list[Path] = []

    def read(self, source: Source, depth: int) -> None:
        """Find what ``source`` runs, imports and opens."""
        try:
            nodes = list(ast.walk(source.tree))
            folder = Folder(self._folder, nodes)
            names = folder.names
            if any(
                folder.real(node).startswith(("sys.path", "site.")) for node in nodes if isinstance(node, ast.Attribute)
            ):
                self._paths(source, nodes, folder)
            for place, why in powers.obstacles(nodes, names, folder.real, folder.constant, self._here):
                self._obstacle(source, place, why)
            for node in nodes:
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    self._import(node, depth)
                elif isinstance(node, ast.Call):
                    node.real = folder.real(node.func)  # type: ignore[attr-defined]  # for the searches in the text
                    self._call(source, node, folder, depth)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    self._named(node.value)
                made = node if isinstance(node, (ast.BinOp, ast.Call, ast.Subscript, ast.JoinedStr)) else None
                if made is not None and names_validation(folder.constant(made)):
                    made.__dict__["names_validation"] = True  # for the flow
        except RecursionError:
            self._obstacle(source, None, "it is nested too deeply")
            return
        inner = [self._sources.unpacked[id(node)] for node in nodes if id(node) in self._sources.unpacked]
        for name in sorted(folder.used & {name for one in inner for name in stored(one.tree)}):
            self._obstacle(source, None, f"what it unpacks gives {name} another value")

    def beside(self) -> None:
        """What of the folder Python runs without being told, and what is code and no text; once all is read."""
        for path in sorted(self._folder.rglob("*")):
            place = path.relative_to(self._folder).as_posix()
            if path.name in ("sitecustomize.py", "usercustomize.py"):
                self._module(path.stem, 0)
                self._sources.obstacles.append(f"{place} may run by itself")
            elif path.suffix in (".pth", ".pyc", ".pyo", ".so", ".pyd", ".egg", ".whl", ".pyz"):
                self._sources.obstacles.append(f"{place} is compiled or packed code, which is not read")
        for source, node, path in self._from_files:
            if path in self._written:
                self._obstacle(source, node, f"the script writes {path.name}, and runs what is in it")

    def _here(self, module: str) -> bool:
        """Whether the folder has a module of that name."""
        if self._searches_all:
            return bool(self._places(module))
        return any(map(Path.exists, (self._folder / f"{module}.py", self._folder / module)))

    def _places(self, module: str) -> list[Path]:
        """Where ``module`` is searched: in the folder, and in all folders of it where the path is changed."""
        roots = [self._folder]
        if self._searches_all:
            roots += sorted(path for path in self._folder.rglob("*") if path.is_dir())
        return [root for root in roots if (root / f"{module}.py").is_file() or (root / module).is_dir()]

    def _paths(self, source: Source, nodes: list[ast.AST], folder: Folder) -> None:
        """`sys.path` is changed: modules may lie anywhere in the folder, and elsewhere where that is not seen."""
        self._searches_all = True
        for node in nodes:
            if not isinstance(node, ast.Call) or not folder.real(node.func).startswith("sys.path."):
                continue
            place = folder.constant(node.args[-1]) if node.args else None
            inside = folder.inside(place)
            if inside is None or not inside.is_dir():
                self._obstacle(source, node, "modules are searched where it is not seen")

    def _named(self, text: str) -> None:
        """Note a file of the folder that a string names."""
        if 0 < len(text) < 200 and "\n" not in text and "\0" not in text:
            path = self._folder / text
            if not text.startswith("/") and ".." not in path.parts and path.is_file():
                self._sources.opened.add(path)

    def _import(self, node: ast.Import | ast.ImportFrom, depth: int) -> None:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if isinstance(node, ast.ImportFrom):
            names += [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
        for name in names:
            self._module(name, depth)

    def _module(self, name: str, depth: int) -> bool:
        """Read a module of the folder; whether there is one of that name."""
        parts = name.split(".")
        for root in self._places(parts[0]) if parts[0] and parts[0] != "*" else []:
            for number in range(1, len(parts) + 1):
                place, module = root.joinpath(*parts[:number]), ".".join(parts[:number])
                path = next((one for one in (place.with_suffix(".py"), place / "__init__.py") if one.is_file()), None)
                if path is None or module in self._sources.modules or path.name == self._sources.script.name:
                    continue
                self._sources.opened.add(path)
                tree = parse(path.read_bytes()) if path.stat().st_size <= MOST_BYTES else None
                if tree is None:
                    self._sources.obstacles.append(f"{path.name} is no Python that can be read")
                    continue
                found = self._sources.modules[module] = Source(path.relative_to(self._folder).as_posix(), tree)
                self._from_files.append((found, tree, path.resolve()))
                self.read(found, depth + 1)
        return name in self._sources.modules

    def _call(self, source: Source, call: ast.Call, folder: Folder, depth: int) -> None:
        name = folder.real(call.func)
        last = name.rpartition(".")[2]
        if name.removeprefix("builtins.") in powers.RUNS:
            if not (isinstance(call.func, ast.Name) and folder.names.own(call.func)):
                self._code(source, call, folder, depth)
        elif name in _MODULES and call.args:
            self._dynamic(source, call, folder, last, depth)
        elif not name and isinstance(call.func, (ast.Subscript, ast.Call)) and _reaches(call.func):
            self._obstacle(source, call, f"{ast.unparse(call.func)[:60]} is called")
        elif _STARTS.fullmatch(name):
            self._started(source, call, folder, depth)
        elif name in ("os.listdir", "os.scandir", "os.walk") or getattr(call.func, "attr", "") == "iterdir":
            self._sources.unseen.append(f"{source.name}:{call.lineno}")
        elif (last or getattr(call.func, "attr", "")) in _OPENS | _WRITES:
            self._file_of(source, call, folder)

    def _file_of(self, source: Source, call: ast.Call, folder: Folder) -> None:
        """Note the file of the folder that a call's first argument names, or that it is not seen."""
        mode = folder.constant(call.args[1]) if len(call.args) > 1 else "r"
        named = folder.constant(call.args[0]) if call.args else None
        if isinstance(call.func, ast.Attribute) and call.func.attr in _WRITES:
            named, mode = folder.constant(call.func.value), "w"
        path = folder.inside(named)
        if isinstance(named, (str, Path)):  # for the search of paths, where `Path(__file__).parent` leads nowhere else
            call.named = str(named) if path is None else folder.within(path)  # type: ignore[attr-defined]
        if path is not None and (mode is None or (isinstance(mode, str) and set(mode) & set("wax+"))):
            self._written.append(path)
        if path is not None and path.is_file():
            self._sources.opened.add(path)
        elif (
            call.args
            and (named is None or "*" in str(named))
            and not (isinstance(mode, str) and set(mode) & set("wax"))
        ):
            self._sources.unseen.append(f"{source.name}:{call.lineno}")

    def _code(self, source: Source, call: ast.Call, folder: Folder, depth: int) -> None:
        """What exec, eval or compile is given."""
        argument = (
            call.args[0] if call.args else next((one.value for one in call.keywords if one.arg == "source"), None)
        )
        held = folder.names.bound.get(argument.id) if isinstance(argument, ast.Name) else argument
        compiled = isinstance(held, ast.Call) and folder.real(held.func).removeprefix("builtins.") == "compile"
        if compiled and folder.real(call.func) != "compile":
            return  # which is looked at itself
        try:
            if argument is None:
                raise Unknown("nothing")
            text = folder.value(argument)
        except Unknown as why:
            self._obstacle(source, call, f"what {ast.unparse(call.func)} runs cannot be unpacked: {why}")
            return
        self._run(source, call, text, depth)
        self._sources.opened |= folder.read
        self._from_files += [(source, call, path) for path in folder.read]

    def _run(self, source: Source, call: ast.Call, text: object, depth: int) -> None:
        if not isinstance(text, (str, bytes, bytearray)):
            self._obstacle(source, call, "what is run is no text")
            return
        text = bytes(text) if isinstance(text, bytearray) else text
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
        if path is not None and last in ("run_path", "spec_from_file_location"):
            self._sources.opened.add(path)
            self._from_files.append((source, call, path))
            self._run(source, call, path.read_bytes()[: MOST_BYTES + 1], depth)
        elif isinstance(named, str) and last in ("import_module", "__import__", "run_module"):
            call.imports = named  # type: ignore[attr-defined]
            self._module(named.lstrip("."), depth)
            if unknown := powers.unknown_module(named.lstrip("."), self._here):
                self._obstacle(source, call, unknown)
        else:
            self._obstacle(source, call, "the code that it runs is not in the folder")

    def _started(self, source: Source, call: ast.Call, folder: Folder, depth: int) -> None:
        """A program that is started: one of the folder is read; any other must be a known and harmless one."""
        words: list[str] = []
        for node in (part for argument in call.args for part in ast.walk(argument) if isinstance(part, ast.expr)):
            value = folder.constant(node)
            parts = value if isinstance(value, list) else [value]
            words += [word for part in parts if isinstance(part, str) for word in part.split()]
        words = list(dict.fromkeys(words))
        call.words = " ".join(words)  # type: ignore[attr-defined]  # for the search of networks
        for word in words:
            path = folder.path(word)
            if path is not None and path.name != self._sources.script.name:
                self._sources.opened.add(path)
                self._from_files.append((source, call, path))
                self._run(source, call, path.read_bytes()[: MOST_BYTES + 1], depth)
        first = folder.constant(call.args[0]) if call.args else None
        command = first if isinstance(first, str) else None
        if command is None and call.args and isinstance(call.args[0], (ast.List, ast.Tuple)) and call.args[0].elts:
            head = folder.constant(call.args[0].elts[0])
            command = head if isinstance(head, str) else None
        elif isinstance(first, list) and first and isinstance(first[0], str):
            command = first[0]
        if "sys.executable" in ast.unparse(call) or any(map(_INTERPRETERS.search, words)):
            self._obstacle(source, call, "it starts an interpreter")
        elif command is None:
            self._obstacle(source, call, "which program it starts is not seen")
        else:
            self._program(source, call, command, words)

    def _program(self, source: Source, call: ast.Call, command: str, words: list[str]) -> None:
        program, *rest = command.split() or [""]
        odd = {one.arg for one in call.keywords} & {"executable", "env", "preexec_fn", None}
        git = program == "git" and (rest or words[1:2] or [""])[0] in _GIT
        if not (git or program in _PROGRAMS) or odd or re.search(r"[;|&$`<>\n]", command):
            self._obstacle(source, call, f"it starts {program[:60] or 'a program'}, whose doings are not read")

    def _obstacle(self, source: Source, node: ast.AST | None, why: str) -> None:
        line = f":{node.lineno}" if node is not None and hasattr(node, "lineno") else ""
        said = f"{why} ({source.name}{line})"
        if said not in self._sources.obstacles:
            self._sources.obstacles.append(said)


def _reaches(node: ast.AST) -> bool:
    """Whether a called expression may be exec under another name: getattr(builtins, …), globals()[…]."""
    words = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    words |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    return bool(words & {"builtins", "__builtins__", "globals", "locals", "__dict__", "vars", "__import__",
                         "import_module", "modules"})  # fmt: skip
