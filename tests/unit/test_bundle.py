"""Modules become one file that does what they did."""

from __future__ import annotations

import ast
import sys
import tomllib

import pytest

from bytegolf.config import Config, to_dict
from bytegolf.tools.bundle import script
from bytegolf.tools.bundle.flatten import Flattened, Target

MODULES = {
    "bytegolf": '"""All of it."""\n\n__version__ = "9"\n',
    "bytegolf.deep": '"""Passes a name on."""\n\nfrom bytegolf.deep.numbers import ONE\n\n__all__ = ["ONE"]\n',
    "bytegolf.deep.numbers": '''"""Numbers."""

import math
import os.path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bytegolf.unused import Nothing

ONE = 1
"""Told here."""

_state = 10  # a comment


def scale(value: float, by: float = 2.0, *, text: str = "# no comment") -> float:
    """Documented."""
    # alone on its line
    total: float = value * by
    rest: float
    rest = math.floor(total)
    return len(text) + rest


def bump() -> int:
    global _state
    _state += 1
    return _state


def name() -> str:
    return os.path.join("numbers", "x")


def dead() -> str:
    return "dead code"


if __name__ == "__main__":
    raise SystemExit
''',
    "bytegolf.words": '''"""Words, with names that others have too."""

import dataclasses
from collections.abc import Callable

import bisect as numbers_of_others

_state = "words"


@dataclasses.dataclass
class Word:
    """A word."""

    scale: str = "own field"
    size: int = 3

    def told(self) -> str:
        """Its scale, not the function."""
        return self.scale + str(scale(self.size))


class Empty(Exception):
    """Nothing but a docstring."""


def scale(size: int) -> int:
    return -size


def twice(function: Callable[[], str]) -> Callable[[], str]:
    return lambda: function() + function()


@twice
def name() -> str:
    return _state


def sorted_in(values):
    return numbers_of_others.bisect(values, 2)
''',
    "bytegolf.main": '''"""The root."""

from __future__ import annotations

from jaxtyping import Float

from bytegolf import __version__
from bytegolf.deep import ONE, numbers
from bytegolf.deep.numbers import bump as raised
from bytegolf.words import Empty, Word, sorted_in
from bytegolf import words


def main(x: Float[list, "A B"] = ONE) -> list:
    from bytegolf.late import word, name as late_name

    scale = 5  # hides nothing: numbers.scale is asked for by its module
    raised()
    local: int
    for name in ("a", "b"):
        local = len(name)
    try:
        raise Empty
    except Empty as bump:
        caught = type(bump).__mro__[1].__name__
    return [
        x,
        numbers.scale(3.5) + scale,
        raised(),
        numbers.name(),
        words.name(),
        f"{words.scale(2)}{numbers.ONE:>{ONE}} # {Word().told()!r}",
        [scale for scale in [numbers.scale(scale, text="")]],
        (lambda words: words)(local),
        __version__,
        word(),
        late_name(),
        caught,
        sorted_in([1, 2, 3]),
    ]
''',
    "bytegolf.late": '''"""Imported where it is needed."""

from bytegolf.words import name as spoken


def word() -> str:
    return "late " + spoken()


def name() -> int:
    return 7
''',
    "bytegolf.unused": "raise SystemExit\n",
}


def flat(modules: dict[str, str]) -> tuple[Flattened, str]:
    flattened = Flattened({name: text.encode() for name, text in modules.items()}, Target("bytegolf.main", "main"))
    blocks = "\n".join(text for _, text in flattened.blocks())
    return flattened, "from __future__ import annotations\n" + "".join(flattened.imports()) + blocks


def test_one_file_does_what_the_modules_did() -> None:
    _, text = flat(MODULES)
    space = {"__name__": "flat"}
    sys.modules["flat"] = sys  # dataclasses look their module up
    try:
        exec(compile(text, "flat", "exec"), space)
        found = space["main"]()  # type: ignore[operator]
    finally:
        del sys.modules["flat"]
    assert found[:5] == [1, 12 + 7 + 5, 12, "numbers/x", "wordswords"]
    assert found[5] == "-21 # 'own field-3'"
    assert found[6:] == [[10], 1, "9", "late wordswords", 7, "Exception", 2]


def test_what_nothing_reaches_is_left_out() -> None:
    _, text = flat(MODULES)
    for gone in ("dead", "Documented", "comment\n", "alone", "told here", "TYPE_CHECKING", "jaxtyping", "Callable["):
        assert gone not in text, gone
    assert "SystemExit" not in text
    assert '"# no comment"' in text
    assert "import bisect as numbers_of_others" in text
    assert "float" not in text, "annotations are gone"


def test_names_that_meet_are_told_apart() -> None:
    flattened, text = flat(MODULES)
    names = [name for target, name in flattened.flat.items() if target.natural == "scale"]
    assert len(set(names)) == 2
    assert "scale" not in names, "a local variable of main would hide it"
    tree = ast.parse(text)
    defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert len(set(defined)) == len(defined)


def test_a_module_used_as_a_value_is_refused() -> None:
    modules = MODULES | {"bytegolf.main": "from bytegolf import words\n\n\ndef main():\n    return words\n"}
    with pytest.raises(AssertionError, match="uses the module bytegolf\\.words as a value"):
        flat(modules)


def test_the_script_holds_its_configuration_and_nothing_of_the_package() -> None:
    config = Config.load("cpu-demo", ["data.path=elsewhere"])
    text = script.script(config)
    assert script.code_bytes(config) == len(text.encode())
    assert script.code_bytes(Config.load("cpu-demo")) == script.code_bytes(config), "where data lie does not count"
    tree = ast.parse(text)
    (held,) = (
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "CONFIG"
        and isinstance(node.value, ast.Constant)
    )
    assert tomllib.loads(str(held))["model"] == to_dict(config.model)
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    # what only Mamba-2 asks for is not in this one
    assert set(script.requirements()) - {"causal_conv1d", "mamba_ssm"} == imported - set(sys.stdlib_module_names)
    assert not imported & {"bytegolf", "rich", "cyclopts", "jaxtyping"}
    assert all(ast.get_docstring(node) is None for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    assert "#include" in text, "the kernels are in it"


def test_a_layout_brings_its_mixers_along() -> None:
    def classes(preset: str) -> set[str]:
        tree = ast.parse(script.script(Config.load(preset)))
        return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}

    assert {"Mamba2", "Attention"} <= classes("cpu-hnet-2stage")
    assert "Mamba2" not in classes("cpu-demo")


@pytest.mark.parametrize("said", ["plain\nlines", 'with """ inside', "ends in \\", 'ends in "'])
def test_texts_are_held_exactly(said: str) -> None:
    assert ast.literal_eval(script._literal(said)) == said
