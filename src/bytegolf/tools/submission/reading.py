"""What a script's text says of network, files and caches: its syntax tree is searched, and nothing is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from bytegolf.tools.submission.verdict import Finding

NETWORK = frozenset(
    [
        "socket",
        "urllib",
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
    ]
)
"""Modules whose purpose is a network."""

NETWORK_CALLS = frozenset({"torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file"})
COMMANDS = re.compile(r"\b(curl|wget|git clone|pip install|rsync|scp|aws s3|gsutil)\b")
READERS = re.compile(r"(^|\.)(open|load|read_text|read_bytes|fromfile|memmap|loadtxt|load_file|Path)$")
SYSTEM = ("/proc", "/sys", "/dev")
TARGET = re.compile(r"(^|_)(targets?|tgts?|labels?|ys?|next_(token|byte|id)s?|actual)(_|$)")
TABLE = re.compile(r"cache|table|ngram|count|hash|memo|stats|lookup")
MIXES = (ast.BitXor, ast.LShift, ast.Mult, ast.Mod)


def parse(path: Path) -> ast.Module | None:
    """A script's tree; None if it is not Python."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def check_text(trees: dict[str, ast.Module]) -> Iterator[Finding]:
    """Findings about network, files and caches; ``trees`` are the scripts by their names."""
    for rule, search, clean in (
        ("no network", _network, "no module or call for it in the script"),
        ("self-contained", _foreign, "no import of ours, and no path leads out of the folder"),
        ("normalised", _caches, "no table is looked up by a key that holds the target"),
    ):
        found = [(name, line, what) for name, tree in trees.items() for line, what in search(tree, set(trees))]
        if found:
            name, line, what = found[0]
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            yield Finding(rule, "BROKEN", f"{what} ({name}:{line}{more})")
        else:
            yield Finding(rule, "pass", clean)


def dotted(node: ast.AST) -> str:
    """``torch.hub.load`` of a name or an attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else node.attr
    return ""


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("__import__", "import_module")):
            yield from ((node.lineno, str(one.value)) for one in node.args[:1] if isinstance(one, ast.Constant))


def _network(tree: ast.Module, scripts: set[str]) -> Iterator[tuple[int, str]]:
    for line, name in _imports(tree):
        if name.partition(".")[0] in NETWORK:
            yield line, f"it imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if dotted(node.func) in NETWORK_CALLS:
                yield node.lineno, f"it calls {dotted(node.func)}"
            if re.search(r"(^|\.)(system|run|Popen|check_output|check_call|call)$", dotted(node.func)):
                for text in _texts(node):
                    if COMMANDS.search(text):
                        yield node.lineno, f"it runs {text[:60]!r}"


def _foreign(tree: ast.Module, scripts: set[str]) -> Iterator[tuple[int, str]]:
    """Imports of bytegolf or of files that are not here, and readers of paths that lead elsewhere."""
    for line, name in _imports(tree):
        if name.partition(".")[0] == "bytegolf":
            yield line, f"it imports {name}, which is not counted"
        elif name.startswith(".") and f"{name.strip('.').partition('.')[0]}.py" not in scripts:
            yield line, f"it imports {name}, which is not in the folder"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and READERS.search(dotted(node.func)):
            for text in (one for part in node.args[:1] for one in _texts(part)):
                if ".." in Path(text).parts or text.startswith("~") or (_rooted(text) and not text.startswith(SYSTEM)):
                    yield node.lineno, f"it reads {text!r}"


def _rooted(text: str) -> bool:
    return text.startswith("/") and len(text) > 1 and "\n" not in text


def _texts(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _caches(tree: ast.Module, scripts: set[str]) -> Iterator[tuple[int, str]]:
    """Look-ups whose key is mixed from a target: only who knows it can find the entry.

    Counting a target that has been scored (``counts[context][target] += 1``) and taking its own logit are no look-ups
    by a mixed key.
    """
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        keys: set[str] = set()
        for _ in range(3):  # a key of a key
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and _mixed(node.value, keys):
                    keys.update(name for target in node.targets for name in _names(target))
        for node in ast.walk(function):
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
