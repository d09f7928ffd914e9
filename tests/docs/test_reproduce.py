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

PUBLISHED = {
    "S0": ("baseline", "1.2244 1.2074 13,780 329,430"),
    "S1": ("soft", "1.3587 1.3577 2.0558 2.0559"),
    "S2": (
        "study1",
        "1.4116 1.3595 1.3734 1.4033 1.4206 1.4040 1.4171 1.3671 1.3648 1.3748 1.4526 1.4568 1.4032 1.3697 1.4084 "
        "1.3680 89.3_% 89.7_% 95.5_% 97.4_% 95.4_% CV_.74 %,_.48 %,_.45 %,_.49 CV_.68 1.3648,_.76 1.3748,_.86 "
        "4,520 85,242 4,466 42–47_trained ~127_of_256 then_~39",
    ),
    "S3": (
        "study2",
        "1.3123 1.2070 1.2754 1.2107 1.3348 1.3435 1.3273 1.2125 1.2120 1.1904 1.2302 1.2163 1.2118 1.2444 1.2338 "
        "1.2385 1.2533 1.2049 1.2201 461,_465_and_525_raw_boundaries 1.7,_1.8_and_2.9_flips 2.6,_2.5_and_5.4_from",
    ),
    "Controls": ("", "1.4129 1.8989 1.3639 1.8838 1.9058 (3.49) 1.2278 1.2327 1.2151"),
}
"""What S0 to S3 and the public controls reported, by the section that repeats it: the presets' first word, and figures,
those too short to stand for themselves with their neighbours (_ is a space)."""


def section(name: str) -> str:
    """The text below a heading that begins with ``name``, its lines joined."""
    (text,) = (part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE) if re.match(rf"{name}\b", part))
    return re.sub(r"\s+", " ", text)


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


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_published_figure_is_left_out(name: str) -> None:
    for figure in PUBLISHED[name][1].split():
        words = re.escape(figure.replace("_", " "))
        assert re.search(rf"(?<![\d.,]){words}(?!\d)", section(name)), figure


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_figure_stands_beside_a_run_of_its_own_system(name: str) -> None:
    """No command with one of the system's BPBs behind it trains another system's preset."""
    system, figures = PUBLISHED[name]
    behind = [line for line in LINES if "train" in line and re.search(r"# .*\d\.\d{4}", line)]
    own = [line for line in behind if " ".join(line.split()) in section(name)]
    assert len(own) >= 2
    for line in own:
        command, _, remark = line.partition("# ")
        assert re.search(rf"train {system}", command), line
        (bpb,) = re.findall(r"\d\.\d{4}", remark)[:1]
        assert bpb in figures, line


def test_it_says_what_differs() -> None:
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        if re.match(r"S[0-3]", heading):
            assert "Known to differ" in section, heading
