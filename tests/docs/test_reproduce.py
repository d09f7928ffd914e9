"""docs/reproduce.md: every command is one that there is, of presets that there are; no published figure is left out."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest

from bytegolf.cli.run import app
from bytegolf.config import Config

DOCUMENT = Path(__file__).parents[2] / "docs" / "reproduce.md"

if not DOCUMENT.exists():
    pytest.skip("there is no docs/reproduce.md", allow_module_level=True)

TEXT = DOCUMENT.read_text(encoding="utf-8")
LINES = re.findall(r"^\$ (.*)", TEXT, re.MULTILINE)

FIGURES = (
    "1.2244 1.2074 1.3587 1.3577 2.0558 2.0559 1.4116 1.3595 1.3734 1.3123 1.2070 1.2754 1.2107 "
    "1.4033 1.4206 1.4040 1.4171 1.3671 1.3648 1.3748 1.4526 1.4568 1.4032 1.3697 1.4084 1.3680 "
    "1.3348 1.3435 1.3273 1.2125 1.2120 1.1904 1.2302 1.2163 1.2118 1.2444 1.2338 1.2385 1.2533 1.2049 1.2201 "
    "1.4129 1.8989 1.3639 1.8838 1.9058 3.49 1.2278 1.2327 1.2151 "
    "89.3 89.7 95.5 97.4 95.4 .74 .48 .45 .49 .68 .76 .86 13,780 329,430 4,520 85,242 4,466 42–47 127 39 "
    "461 465 525 1.7 1.8 2.9 2.6 2.5 5.4"
)
"""What S0 to S3 and the public controls reported."""


def commands() -> list[list[str]]:
    """The arguments of each command behind `bytegolf`; those that start several processes begin with torchrun."""
    found = []
    for line in LINES:
        words = shlex.split(line, comments=True)
        if words[0] == "torchrun":
            assert words[1:5] == ["--nproc-per-node", "8", "-m", "bytegolf"], line
            words = words[4:]
        assert words[0] == "bytegolf", line
        found.append(words[1:])
    return found


def test_there_are_commands() -> None:
    assert len(commands()) > 40
    assert len(set(LINES)) == len(LINES)


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:2]))
def test_every_command_parses(words: list[str]) -> None:
    app.parse_args(words, exit_on_error=False, print_error=False)
    if words[0] == "train":
        settings = words[1 : words.index("--out")]
        config = Config.load(settings[0], settings[1:])
        assert config.data.path == "data/fineweb"
        assert config.train.batch_tokens == 524_288
        assert any(setting.startswith("train.max_") for setting in settings) or config.train.max_seconds >= 600


def test_what_is_looked_into_was_trained_before() -> None:
    trained: list[str] = []
    for words in commands():
        if words[0] == "train":
            (run,) = (after for option, after in itertools.pairwise(words) if option == "--out")
            assert run not in trained, "each run has a folder of its own"
            trained.append(run)
        elif words[0] in ("eval", "segment", "analyze", "probe"):
            assert words[1] in trained, words


def test_no_published_figure_is_left_out() -> None:
    for figure in FIGURES.split():
        assert re.search(rf"(?<![\d]){re.escape(figure)}(?![\d])", TEXT), figure


def test_it_says_what_differs() -> None:
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        if re.match(r"S[0-3]", heading):
            assert "Known to differ" in section, heading
