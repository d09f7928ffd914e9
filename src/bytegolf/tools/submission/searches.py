"""Searches in a script: network, files elsewhere, tables that know the target, bytes that are counted twice."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from bytegolf.tools.submission import powers
from bytegolf.tools.submission.values import dotted

NETWORK = frozenset(
    [
        "socket",
        "ssl",
        "urllib",
        "urllib3",
        "http",
        "requests",
        "httpx",
        "aiohttp",
        "ftplib",
        "smtplib",
        "telnetlib",
        "xmlrpc",
        "websockets",
        "paramiko",
        "huggingface_hub",
        "boto3",
        "wandb",
        "datasets",
        "gdown",
        "pycurl",
        "socketserver",
        "_socket",
        "_ssl",
        "imaplib",
        "poplib",
        "nntplib",
        "webbrowser",
        "pip",
        "kagglehub",
    ]
)
"""Modules whose purpose is a network."""

NETWORK_CALLS = re.compile(
    r"torch\.hub\.\w+|torch\.utils\.model_zoo\.\w+|asyncio\.(open|start)_\w+|multiprocessing\.connection\.\w+|"
    r"logging\.handlers\.(Socket|HTTP|SMTP|Datagram|SysLog)Handler"
)
COMMANDS = re.compile(r"\b(curl|wget|git clone|pip3? install|rsync|scp|ssh|aws s3|gsutil|nc)\b")
STARTS = re.compile(r"(^|\.)(system|run|Popen|check_output|check_call|call|getoutput|popen)$")
NATIVE = re.compile(r"#\s*include\s*<\s*(sys/socket|netdb|netinet|arpa/inet|curl/)|\bgetaddrinfo\s*\(")
READERS = re.compile(r"(^|\.)(open|load|read_text|read_bytes|fromfile|memmap|loadtxt|load_file|Path)$")
DATA = re.compile(r"data|fineweb|token|shard|corpus", re.I)
"""What a path says that may lead to the data, of which a script's own default may be anywhere."""
SYSTEM = ("/proc", "/sys", "/dev", "/tmp")
TARGET = re.compile(r"(^|_)(targets?|tgts?|labels?|ys?|next_(token|byte|id)s?|actual)(_|$)")
TABLE = re.compile(r"cache|table|ngram|count|hash|memo|stats|lookup")
MIXES = (ast.BitXor, ast.LShift, ast.Mult, ast.Mod)
SPACE = "\u2581"
LEADING = re.compile(r"lead|has_space|space_?lut|starts_?space", re.I)

Search = Callable[[ast.Module, set[str]], Iterator[tuple[int, str]]]
"""Gives lines and what is wrong there, of a tree in a folder with these modules."""


@functools.lru_cache(maxsize=8)
def _nodes(tree: ast.Module) -> list[ast.AST]:
    """All nodes of a tree, once for all searches: walking takes longer than most of them."""
    return list(ast.walk(tree))


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in _nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and hasattr(node, "imports"):  # an expression that `unpack` computed
            yield node.lineno, node.imports


def _network(tree: ast.Module, modules: set[str]) -> Iterator[tuple[int, str]]:
    for line, name in _imports(tree):
        first = name.partition(".")[0]
        if first in NETWORK and f"{first}.py" not in modules and not _harmless(tree, name):
            yield line, f"it imports {name}"
    for node in _nodes(tree):
        if isinstance(node, ast.Call):
            called = _called(node)
            if NETWORK_CALLS.fullmatch(called):
                yield node.lineno, f"it calls {called}"
            if STARTS.search(called):
                words = getattr(node, "words", "") or " ".join(_texts(node))
                if COMMANDS.search(words):
                    yield node.lineno, f"it runs {words[:60]!r}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NATIVE.search(node.value):
            yield node.lineno, "its native code opens a connection"


def _called(call: ast.Call) -> str:
    """The full name of what is called, as far as `unpack` has seen it."""
    return getattr(call, "real", "") or dotted(call.func)


def _harmless(tree: ast.Module, name: str) -> bool:
    """Whether of a module of the network only what uses none is used: `urllib.parse`, the name of the machine."""
    if name in ("urllib.parse", "urllib.error"):
        return True
    first = name.partition(".")[0]
    if not powers.listed(first):
        return False  # nothing is known of its names
    used: set[str] = set()
    for node in _nodes(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == first:
            used.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == name:
            used.update(alias.name for alias in node.names)
    return name == first and bool(used) and all(powers.allowed(f"{first}.{one}") for one in used)


def _foreign(tree: ast.Module, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Imports of bytegolf or of files that are not here, and readers of paths that lead elsewhere."""
    for line, name in _imports(tree):
        if name.partition(".")[0] == "bytegolf":
            yield line, f"it imports {name}, which is not counted"
        elif name.strip(".") and name.startswith(".") and f"{name.strip('.').partition('.')[0]}.py" not in modules:
            yield line, f"it imports {name}, which is not in the folder"
    yield from ((line, f"it reads {text!r}") for line, text in _outside(tree) if not DATA.search(text))


def data_elsewhere(tree: ast.Module, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Readers of paths out of the folder that may lead to the data."""
    yield from ((line, f"it reads {text!r}, which may be data") for line, text in _outside(tree) if DATA.search(text))


def _outside(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The paths out of the folder that a script reads, and their lines."""
    for node in _nodes(tree):
        if isinstance(node, ast.Call) and READERS.search(_called(node)) and not _writes(node):
            named = getattr(node, "named", None)
            texts = [named] if isinstance(named, str) else [one for part in node.args[:1] for one in _texts(part)]
            for text in texts:
                if ".." in Path(text).parts or text.startswith("~") or (_rooted(text) and not text.startswith(SYSTEM)):
                    yield node.lineno, text


def _writes(call: ast.Call) -> bool:
    """Whether `open` is given a mode that writes: a result left outside is nobody's help.

    `Path("/elsewhere", "x")` is a path of two parts.
    """
    if _called(call).rpartition(".")[2] != "open":
        return False
    modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return any(isinstance(one, ast.Constant) and isinstance(one.value, str) and one.value[:1] in "wax" for one in modes)


def _rooted(text: str) -> bool:
    return text.startswith("/") and len(text) > 1 and "\n" not in text


def _texts(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _caches(tree: ast.Module, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Look-ups whose key is mixed from a target: only who knows it can find the entry.

    Counting a target that has been scored (``counts[context][target] += 1``) and taking its own logit are no look-ups
    by a mixed key.
    """
    for function in _nodes(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        keys: set[str] = set()
        nodes = list(ast.walk(function))
        assigned = [node for node in nodes if isinstance(node, ast.Assign)]
        for _ in range(3):  # a key of a key
            for one in assigned:
                if _mixed(one.value, keys):
                    keys.update(name for target in one.targets for name in _names(target))
        for node in nodes:
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                base, key = dotted(node.value), node.slice
            elif isinstance(node, ast.Call) and dotted(node.func).endswith(".get") and node.args:
                base, key = dotted(node.func), node.args[0]
            else:
                continue
            tupled = isinstance(key, ast.Tuple) and TABLE.search(base) and any(map(_is_target, ast.walk(key)))
            if tupled or _mixed(key, keys):
                yield node.lineno, f"{base or 'a table'} is looked up by a key made of the target"


def _is_target(node: ast.AST) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return bool(name and TARGET.search(name))


def _mixed(node: ast.AST, keys: set[str]) -> bool:
    """Whether an expression hashes a target, or is a key that was made so."""
    if isinstance(node, ast.Name):
        return node.id in keys
    for part in ast.walk(node):
        mixing = isinstance(part, ast.BinOp) and isinstance(part.op, MIXES)
        mixing |= isinstance(part, ast.Call) and "hash" in dotted(part.func).lower()
        if mixing and any(map(_is_target, ast.walk(part))):
            return True
    return False


def _names(node: ast.AST) -> Iterator[str]:
    return (part.id for part in ast.walk(node) if isinstance(part, ast.Name))


def _spaces(tree: ast.Module, modules: set[str]) -> Iterator[tuple[int, str]]:
    """The byte of a leading space counted twice.

    SentencePiece writes "▁the" for " the". A table of lengths that leaves the mark out (3) and a table of leading
    spaces (1) give 4, unless the token before is a boundary (the start of a document), where no space was. It is
    wrong to add the second table without that condition, and to add it to lengths that have the space already.
    """
    conditional = {
        id(part) for node in _nodes(tree) if isinstance(node, (ast.If, ast.IfExp)) for part in ast.walk(node)
    }
    for node in _nodes(tree):
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
            parts = [node.value]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            parts = [node.left, node.right]
        else:
            continue
        for part in parts:
            held = _unwrapped(part)
            table = dotted(held.value) if isinstance(held, ast.Subscript) else ""
            if LEADING.search(table) and id(node) not in conditional:
                yield node.lineno, f"{table} adds a space's byte whatever the token before is"
    for node in _nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.For)):
            yield from _lengths(node)


def _lengths(scope: ast.FunctionDef | ast.For) -> Iterator[tuple[int, str]]:
    """Lengths of pieces with their leading space, beside a table of leading spaces."""
    if isinstance(scope, ast.FunctionDef):
        return
    for test in (part for part in scope.body if isinstance(part, ast.If)):
        marks = [call for call in ast.walk(test.test) if isinstance(call, ast.Call)
                 and dotted(call.func).endswith(".startswith") and SPACE in list(_texts(call))]  # fmt: skip
        if not marks:
            continue
        piece = dotted(marks[0].func).removesuffix(".startswith")
        flags = any(isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Subscript) for one in test.body)
        changed = any(isinstance(one, ast.Assign) and piece in map(dotted, one.targets) for one in test.body)
        if not flags or changed:
            continue
        for node in ast.walk(scope):
            if isinstance(node, ast.Call) and dotted(node.func) == "len" and node.args:
                text = ast.unparse(node.args[0])
                whole = f"{piece}.encode" in text or (f"{piece}.replace" in text and "''" not in text)
                if whole and "strip" not in text and "[1:]" not in text and "removeprefix" not in text:
                    yield node.lineno, f"len({text[:40]}) has a leading space's byte, which a table adds again"


def _unwrapped(node: ast.expr) -> ast.expr:
    """``table[x]`` of ``table[x].to(dtype).sum()`` or ``int(table[x])``."""
    while isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name):
            node = node.func.value
        elif len(node.args) == 1 and dotted(node.func) in ("int", "float", "bool"):
            node = node.args[0]
        else:
            break
    return node


SEARCHES: tuple[tuple[str, Search, str], ...] = (
    ("no network", _network, "no module or call for it"),
    ("self-contained", _foreign, "no import of ours, and no path that leads out of the folder"),
    ("self-contained", data_elsewhere, "no path to data that leads out of the folder"),
    ("normalised", _caches, "no table that is looked up by a key that holds the target"),
    ("counted once", _spaces, "no space's byte that is counted twice"),
)
