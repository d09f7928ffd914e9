"""A submission's one script, made of this package's own modules: it trains and scores one configuration by itself.

It is what a submission ships, so its size is what the rules count as code. What ``recipes.entry.main`` does not reach
is left out, and so are docstrings, comments and annotations; what is left reads as it was written. The native kernels
are in it as text, to be compiled where there is a compiler.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from bytegolf import __version__
from bytegolf.config import Config, DataConfig, levels, stacks
from bytegolf.errors import BytegolfError
from bytegolf.registry import MIXERS, ROUTERS
from bytegolf.tools.bundle.flatten import Flattened
from bytegolf.tools.bundle.reader import PACKAGE
from bytegolf.tools.bundle.syntax import Target

NAME = "train_gpt.py"
"""What the public repository calls such a script."""

ROOT = Target("bytegolf.tools.bundle.entry", "main")
_CONFIG = b'\nCONFIG = ""\n'
_KERNELS = Target("bytegolf.ops.native", "_sources")


def script(config: Config) -> str:
    """The script that trains and scores ``config``; where its data lie is no part of it."""
    for package, name in _registered(config):
        if name not in _REGISTRIES[package].built_in:
            raise BytegolfError(
                f"the {_REGISTRIES[package].what} {name!r} comes from a plugin, and a submission's one script holds "
                "the package's own code only: take a kind of the package, or move the plugin into it"
            )
    return _script(config)


def code_bytes(config: Config) -> int:
    """The bytes of a submission's code, as the rules count them; classes of plugins count with their source."""
    outside = [
        _REGISTRIES[package].find(name, package)
        for package, name in _registered(config)
        if name not in _REGISTRIES[package].built_in
    ]
    return len(_script(config).encode()) + sum(map(_source_bytes, outside))


def _script(config: Config) -> str:
    own = tuple((package, name) for package, name in _registered(config) if name in _REGISTRIES[package].built_in)
    before, after = _around_config(own)
    plain = dataclasses.replace(config, data=dataclasses.replace(config.data, path=DataConfig().path))
    return before + _literal(plain.to_toml()) + after


def _source_bytes(found: type) -> int:
    try:
        return len(inspect.getsource(found).encode())
    except (OSError, TypeError):  # typed into an interpreter that keeps no source
        return 0


def requirements() -> list[str]:
    """The public libraries that the script imports, some of them only where a configuration asks for it; sorted."""
    every = tuple((package, name) for package, registry in _REGISTRIES.items() for name in registry.built_in)
    names = set(_imported(ast.parse("''".join(_around_config(every)))))
    return sorted(names - set(sys.stdlib_module_names))


_REGISTRIES = {"bytegolf.model.mixers": MIXERS, "bytegolf.model.routers": ROUTERS}
"""Where the package's own implementations lie, one per module of its name."""


def _registered(config: Config) -> tuple[tuple[str, str], ...]:
    """The implementations that ``config`` names: package and name."""
    found = [("bytegolf.model.mixers", stack.kind) for stack in stacks(config.model.network)]
    found += [("bytegolf.model.routers", level.router.kind) for level in levels(config.model.network)]
    return tuple(sorted(set(found)))


def _class(module: str, name: str, text: bytes) -> Target:
    """The class of a module that registers itself by ``name``: nothing refers to it, so it is a root of its own."""
    for statement in ast.parse(text).body:
        for decorator in statement.decorator_list if isinstance(statement, ast.ClassDef) else ():
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.args[0]) == repr(name):
                assert isinstance(statement, ast.ClassDef)
                return Target(module, statement.name)
    raise AssertionError(f"{module} registers nothing by the name {name}")


@functools.cache
def _around_config(registered: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """The script before and after its configuration, with the ``registered`` implementations in it."""
    texts = dict(_sources(resources.files(PACKAGE), PACKAGE))
    texts[_KERNELS.module] = _with_kernels(texts[_KERNELS.module])
    assert texts[ROOT.module].count(_CONFIG) == 1
    marker = "the configuration goes here"
    texts[ROOT.module] = texts[ROOT.module].replace(_CONFIG, f'\nCONFIG = "{marker}"\n'.encode())
    modules = [(f"{package}.{name}", name) for package, name in registered]
    flattened = Flattened(texts, ROOT, *(_class(module, name, texts[module]) for module, name in modules))
    parts = [_HEAD.format(version=__version__), "from __future__ import annotations\n\n", *flattened.imports()]
    for module, text in flattened.blocks():
        path = module.name.partition(".")[2].replace(".", "/") or PACKAGE
        parts.append(f"\n\n# ---- {path}: {module.title}\n\n{text}")
    parts.append('\n\nif __name__ == "__main__":\n    main()\n')
    before, after = "".join(parts).split(f'"{marker}"')
    return before, after


_HEAD = '''"""A submission to Parameter Golf: one model, trained and scored by this file alone.

python train_gpt.py train --data FOLDER --out FOLDER
python train_gpt.py eval --data FOLDER

bytegolf {version} wrote it out of its own modules (`bytegolf submit`). The model is configured in CONFIG.
"""

'''


def _sources(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    """The package's modules: their names and texts."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _sources(entry, f"{name}.{entry.name}")
        elif entry.name.endswith(".py"):
            stem = entry.name.removesuffix(".py")
            yield name if stem == "__init__" else f"{name}.{stem}", entry.read_bytes()


def _with_kernels(module: bytes) -> bytes:
    """``model.native`` with the kernels' texts in it, in place of the function that reads their files."""
    folder = resources.files("bytegolf.ops") / "kernels"
    files = sorted((entry for entry in folder.iterdir() if entry.is_file()), key=lambda entry: entry.name)
    served = ((entry.name, _without_comments(entry.read_text(encoding="utf-8"))) for entry in files)
    texts = "".join(f"    {name!r}: {_literal(text)},\n" for name, text in served)
    own = f"KERNELS = {{\n{texts}}}\n\n\ndef {_KERNELS.name}():\n    return {_SERVED}\n"
    lines = module.decode().splitlines(keepends=True)
    tree = ast.parse(module)
    (old,) = (part for part in tree.body if isinstance(part, ast.FunctionDef) and part.name == _KERNELS.name)
    lines[old.lineno - 1 : old.end_lineno] = [own]
    return "".join(lines).encode()


def _without_comments(source: str) -> str:
    """A kernel's text without the lines that are comments: they would count as code."""
    return re.sub(r"(?m)^ *//.*\n", "", source)


_SERVED = "{name: text.encode() for name, text in KERNELS.items()}"


def _literal(text: str) -> str:
    """Python that says ``text``, readable where it can be."""
    raw = f'r"""{text}"""'
    try:
        return raw if ast.literal_eval(raw) == text else repr(text)
    except (SyntaxError, ValueError):
        return repr(text)


def _imported(tree: ast.AST) -> Iterator[str]:
    """The top names of what a script imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
