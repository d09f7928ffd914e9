"""The layers: a module imports only from its own stage of the way of the data or from earlier ones."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "bytegolf"
STAGES = (
    ("errors",),
    ("files",),
    ("config",),
    ("bundle",),
    ("data",),
    ("model",),
    ("evaluate",),
    ("artifact",),
    ("planning",),
    ("train",),
    ("infer",),
    ("analyze",),
    ("study",),
    ("recipes",),
    ("submission",),
    ("check",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(STAGES) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """``bytegolf.data.shards`` for a file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def imported(tree: ast.AST, importer: str) -> Iterator[str]:
    """The modules of this package that a tree imports, also inside functions and for type checking only."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{importer}: relative import on line {node.lineno}"
            assert node.module
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name.startswith("bytegolf") and name not in NAMES:  # an object: the module that holds it
                name = name.rpartition(".")[0]
            if name.startswith("bytegolf"):
                yield name


def stage(module: str) -> str:
    """``data`` for ``bytegolf.data.shards``."""
    return module.split(".")[1] if "." in module else ""


def test_every_stage_is_in_the_order_and_the_other_way_round() -> None:
    found = {stage(name) for name in NAMES} - {"", "__main__"}
    assert found == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_from_its_own_stage_or_earlier_ones(path: Path) -> None:
    importer = module_name(path)
    if stage(importer) in ("", "__main__"):
        return
    for name in imported(ast.parse(path.read_bytes()), importer):
        if stage(name):
            assert RANK[stage(name)] <= RANK[stage(importer)], f"{importer} imports {name}, of a later stage"


def test_no_modules_import_each_other() -> None:
    graph = {module_name(path): set(imported(ast.parse(path.read_bytes()), module_name(path))) for path in MODULES}
    for importer, names in graph.items():
        names -= {importer, "bytegolf"}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises on a cycle, naming it
    assert len(order) >= len(MODULES)
