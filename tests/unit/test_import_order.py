"""The layers: a module imports only from its own layer or from earlier ones."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "bytegolf"
LAYERS = (
    "errors",
    "console",
    "results",
    "files",
    "folders",
    "network",
    "hub",
    "bpb",
    "progress",
    "device",
    "distributed",
    "registry",
    "config",
    "data",
    "ops",
    "mixing",
    "model",
    "artifact",
    "infer",
    "evaluate",
    "training",
    "analyze",
    "tools.bundle",
    "api",
    "tools",
    "cli",
)
RANK = {name: rank for rank, name in enumerate(LAYERS)}
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """``bytegolf.data.dataset`` for a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def imported(tree: ast.AST, importer: str) -> Iterator[str]:
    """The modules of this package that a tree imports, also inside functions, for type checking only, or by a string.

    A string that is the name of a module counts, since what it names is read or imported sooner or later.
    """
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{importer}: relative import on line {node.lineno}"
            assert node.module
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and node.value in NAMES:
            names = [str(node.value)]
        for name in names:
            while name.startswith("bytegolf") and name not in NAMES:  # an object: the module that holds it
                name = name.rpartition(".")[0]
            if name.startswith("bytegolf"):
                yield name


def layer(module: str) -> str:
    """``data`` for ``bytegolf.data.dataset``, ``tools.bundle`` for what is in that folder; empty for the package."""
    path = module.partition(".")[2]
    return max((name for name in LAYERS if f"{path}.".startswith(f"{name}.")), key=len, default=path)


def test_every_layer_is_in_the_order_and_the_other_way_round() -> None:
    found = {layer(name) for name in NAMES} - {"", "__main__"}
    assert found == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_from_its_own_layer_or_earlier_ones(path: Path) -> None:
    importer = module_name(path)
    if layer(importer) in ("", "__main__"):
        return
    for name in imported(ast.parse(path.read_bytes()), importer):
        if layer(name):
            assert RANK[layer(name)] <= RANK[layer(importer)], f"{importer} imports {name}, of a later layer"


def test_no_modules_import_each_other() -> None:
    graph = {module_name(path): set(imported(ast.parse(path.read_bytes()), module_name(path))) for path in MODULES}
    for importer, names in graph.items():
        names -= {importer, "bytegolf"}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises on a cycle, naming it
    assert len(order) >= len(MODULES)
