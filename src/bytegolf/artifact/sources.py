"""The code that counts towards a submission's size: what training and evaluation import, and nothing else.

It is followed from the modules of the verbs ``train`` and ``eval`` through every import, also those inside functions,
and counted raw, as it is shipped: Python files, the kernels' C++ where ``model.native`` is among them, and the preset
that the model's configuration is named after. The other verbs, and what only they need, a submission leaves out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

from bytegolf.config import preset_chain, preset_names

ROOTS = ("bytegolf.__main__", "bytegolf.cli.train", "bytegolf.cli.score")
"""Where it starts."""

DOORS = frozenset({"bytegolf.__main__", "bytegolf.cli"})
"""Modules that import every verb: they count, what they import does not."""

_IMPORT = re.compile(r"^[ \t]*(?:from +(bytegolf[\w.]*) +import +(\([^)]*\)|[^\n#]*)|import +(bytegolf[\w.]*))", re.M)


def code_files(preset: str | None = None) -> dict[str, int]:
    """The counted files, by path inside the package, with their sizes in bytes.

    Args:
        preset: a preset whose TOML counts too, with what it extends, if one of that name comes with the package.
    """
    files = dict(_code())
    # looked up among the names there are, as the name may come out of a stranger's file
    if preset in preset_names():
        for name in preset_chain(preset):
            file = resources.files("bytegolf") / "presets" / f"{name}.toml"
            files[f"presets/{file.name}"] = len(file.read_bytes())
    return files


def code_bytes(preset: str | None = None) -> int:
    """The size of the code that counts (``code_files``), in bytes."""
    return sum(code_files(preset).values())


@functools.cache
def _code() -> dict[str, int]:
    there = dict(_modules(resources.files("bytegolf"), "bytegolf", ""))
    seen: set[str] = set()
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in there:
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])  # importing a module runs its packages first
        if name not in DOORS:
            waiting += _imported(there[name][1].read_text(encoding="utf-8"))
    files = {path: len(file.read_bytes()) for path, file in (there[name] for name in sorted(seen))}
    if "bytegolf.model.native" in seen:
        kernels = resources.files("bytegolf.model") / "kernels"
        for file in sorted(kernels.iterdir(), key=lambda file: file.name):
            files[f"model/kernels/{file.name}"] = len(file.read_bytes())
    return files


def _modules(folder: Traversable, package: str, prefix: str) -> Iterator[tuple[str, tuple[str, Traversable]]]:
    """Each module's name, with its path inside the package and its file."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _modules(entry, f"{package}.{entry.name}", f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            stem = entry.name.removesuffix(".py")
            yield package if stem == "__init__" else f"{package}.{stem}", (f"{prefix}{entry.name}", entry)


def _imported(text: str) -> Iterator[str]:
    """What a module imports, which may be names of modules or of things in them."""
    for module, names, plain in _IMPORT.findall(text):
        yield module or plain
        yield from (f"{module}.{name.split(' as ')[0].strip()}" for name in names.strip("() \n").split(","))
