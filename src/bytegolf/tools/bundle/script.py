"""A submission's one script, made of this package's own modules: it trains and scores one configuration by itself.

It is what a submission ships, so its size is what the rules count as code. What ``entry.main`` does not reach is left
out, and so are docstrings, comments and annotations; what is left reads as it was written, in the order in which it
would have been imported (``flatten``). The native kernels are in it as text, to be compiled where there is a compiler.
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import functools
import inspect
import lzma
import sys
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from bytegolf import __version__
from bytegolf.config import Config, DataConfig, levels, stacks
from bytegolf.errors import BytegolfError
from bytegolf.ops.compiler import code
from bytegolf.registry import MIXERS, QUANTIZERS, ROUTERS, Registry
from bytegolf.tools.bundle.flatten import PACKAGE, Flattened, Target

NAME = "train_gpt.py"
"""What the public repository calls such a script."""

ROOT = Target("bytegolf.tools.bundle.entry", "main")
_CONFIG = b'\nCONFIG = ""\n'
_KERNELS = Target("bytegolf.ops.native", "_sources")
_MIXING, _STEPPING = "exact_mixing", "exact_"
"""How the names begin of kernels that only mixing needs, and of those that a script does not: it does not step."""


def script(config: Config) -> str:
    """The script that trains and scores ``config``; where its data lie is no part of it."""
    for registry, name in _named(config):
        if name not in registry.built_in:
            raise BytegolfError(
                f"the {registry.what} {name!r} comes from a plugin, and a submission's one script holds the package's "
                f"own code only: take a {registry.what} of the package, or move the plugin into it"
            )
    return _script(config)


def packed(code: str) -> str:
    """A script that is ``code``, compressed: what most public submissions ship, as the size of the script counts.

    LZMA's stream is written in base 85, whose every five characters hold four bytes. An auditor unpacks such literals.
    """
    stream = base64.b85encode(lzma.compress(code.encode(), format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME))
    return f'import base64, lzma\nexec(lzma.decompress(base64.b85decode("{stream.decode()}")))\n'


def code_bytes(config: Config) -> int:
    """The bytes of a submission's code, as the rules count them; classes of plugins count with their source."""
    outside = [registry.find(name, None) for registry, name in _named(config) if name not in registry.built_in]
    return len(_script(config).encode()) + sum(map(_source_bytes, outside))


def _script(config: Config) -> str:
    named = {(registry, name) for registry, name in _named(config) if name in registry.built_in}
    registered = tuple(sorted(f"{_FOLDERS[one]}.{name}" for one, name in named if one in _FOLDERS))
    before, after = _around_config(registered, config.eval.mix.on)
    plain = dataclasses.replace(config, data=dataclasses.replace(config.data, path=DataConfig().path))
    return before + _literal(plain.to_toml()) + after


def _source_bytes(found: type) -> int:
    try:
        return len(inspect.getsource(found).encode())
    except (OSError, TypeError):  # typed into an interpreter that keeps no source
        return 0


def requirements() -> list[str]:
    """The public libraries that the script imports, some of them only where a configuration asks for it; sorted."""
    every = tuple(f"{folder}.{name}" for registry, folder in _FOLDERS.items() for name in registry.built_in)
    names = set(_imported(ast.parse("''".join(_around_config(every, True)))))
    return sorted(names - set(sys.stdlib_module_names))


_FOLDERS = {MIXERS: "bytegolf.model.mixers", ROUTERS: "bytegolf.model.routers"}
"""Where the package's own implementations lie, one per module of its name; its quantisers are in one module."""


_REPLACED = {
    "bytegolf.registry": (b'importlib.import_module(f"{package}.{name}")', b"raise KeyError(name)"),
    "bytegolf.training.setup": (
        b'return load_model(source, Path(data), "cpu")',
        b'raise BytegolfError(f"train.init = {source}: this script has no model to start from")',
    ),
}
"""What a script has instead of what reaches beyond it: implementations that are imported by name, which an auditor
cannot read, and models to start from, which may be fetched from the hub."""


def _named(config: Config) -> Iterator[tuple[Registry, str]]:
    """The implementations that ``config`` names, each with its registry; one may come twice."""
    for stack in stacks(config.model.network):
        kinds = {kind for kind, _ in stack.sorts} or {stack.kind}  # a stack without blocks asks for a class, too
        yield from ((MIXERS, kind) for kind in kinds)
    yield from ((ROUTERS, level.router.kind) for level in levels(config.model.network))
    if config.export.quantizer:
        yield QUANTIZERS, config.export.quantizer


def _class(module: str, text: bytes) -> Target:
    """The class that a module registers by its own name: nothing refers to it, so it is a root of its own."""
    name = module.rpartition(".")[2]
    for found in (statement for statement in ast.parse(text).body if isinstance(statement, ast.ClassDef)):
        calls = (decorator for decorator in found.decorator_list if isinstance(decorator, ast.Call))
        if any(call.args and ast.unparse(call.args[0]) == repr(name) for call in calls):
            return Target(module, found.name)
    raise AssertionError(f"{module} registers nothing by its own name")


@functools.cache
def _around_config(registered: tuple[str, ...], mixes: bool) -> tuple[str, str]:
    """The script before and after its configuration, with what the modules ``registered`` implement in it."""
    texts = dict(_sources(resources.files(PACKAGE), PACKAGE))
    texts[_KERNELS.module] = _with_kernels(texts[_KERNELS.module], mixes)
    assert texts[ROOT.module].count(_CONFIG) == 1
    marker = "the configuration goes here"
    texts[ROOT.module] = texts[ROOT.module].replace(_CONFIG, f'\nCONFIG = "{marker}"\n'.encode())
    for name, (written, instead) in _REPLACED.items():
        assert texts[name].count(written) == 1
        texts[name] = texts[name].replace(written, instead)
    flattened = Flattened(texts, ROOT, *(_class(module, texts[module]) for module in registered))
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


def _with_kernels(module: bytes, mixes: bool) -> bytes:
    """``model.native`` with the kernels' texts in it, in place of the function that reads their files.

    Without those that only step: a submission trains and scores, and not all of them with mixing.
    """
    folder = resources.files("bytegolf.ops") / "kernels"
    wanted = (
        entry
        for entry in folder.iterdir()
        if entry.is_file() and (not entry.name.startswith(_STEPPING) or (mixes and entry.name.startswith(_MIXING)))
    )
    files = sorted(wanted, key=lambda entry: entry.name)
    # lines that are comments would count as code
    served = ((entry.name, code(entry.read_text(encoding="utf-8"))) for entry in files)
    texts = "".join(f"    {name!r}: {_literal(text)},\n" for name, text in served)
    served_by = "    return {name: text.encode() for name, text in KERNELS.items()}\n"
    own = f"KERNELS = {{\n{texts}}}\n\n\ndef {_KERNELS.name}():\n{served_by}"
    lines = module.decode().splitlines(keepends=True)
    tree = ast.parse(module)
    (old,) = (part for part in tree.body if isinstance(part, ast.FunctionDef) and part.name == _KERNELS.name)
    lines[old.lineno - 1 : old.end_lineno] = [own]
    return "".join(lines).encode()


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
