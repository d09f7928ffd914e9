"""Every command and every Python example of the documentation runs, at a size for tests."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import pages
import public_hnet
import pytest
from commands import SUBWORDS, VERBS, good, small, text

from bytegolf.ops import native

GUIDE = pages.DOCS / "guide"
TUTORIAL, TOUR = pages.DOCS / "tutorial.md", GUIDE / "commands.md"

FIRST = (TOUR, TUTORIAL, pages.README, GUIDE / "data.md")
"""These pages come first, and leave what the examples of the others need."""

PAGES = [*FIRST, *(page for page in pages.PAGES if page not in FIRST and page.stem != "reproduce")]
"""The commands of reproduce.md take hours: they are only parsed (test_reproduce)."""


@pytest.mark.usefixtures("proved_quickly")
def test_every_command_and_every_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Path
) -> None:
    """In one folder, page by page, in order; texts and training are cut down, by nothing that a user cannot type. On
    the way our own submission passes its audit, with its kernels and without: the exit code is 0 if all is shown.

    It is one test because the pages share a folder, which several processes would have to make several times.
    """
    monkeypatch.chdir(tmp_path)
    sources(published)
    shown: set[tuple[str, ...]] = set()
    for page in PAGES:
        program = types.ModuleType("example")  # the examples of a page are one program
        monkeypatch.setitem(sys.modules, program.__name__, program)  # where dataclasses look for their module
        for number, (kind, block) in enumerate(pages.fences(page)):
            if kind == "python" and (file := re.match(r"# (\w+\.py)\n", block)):
                Path(file[1]).write_text(block)  # to be imported by what follows
            elif kind == "python":
                exec(compile(block, f"{page.relative_to(pages.ROOT)}, block {number}", "exec"), vars(program))
            for arguments in pages.commands(block) if kind == "console" else ():
                if tuple(arguments) not in shown:
                    shown.add(tuple(arguments))
                    said = good(*tiny(arguments)).out
                    if arguments[0] == "audit" and native.why_not() is None:
                        assert "without its kernels" in " ".join(said.split())
    assert {verb for verb, *_ in shown} == set(VERBS), "every verb is shown"


def sources(published: Path) -> None:
    """Write what the pages suppose to be there: texts, a study, a mirror of published data."""
    Path("notes.txt").write_text("\n\n".join(text(2000, seed) for seed in range(60)))
    Path("letter.txt").write_text(text(130))
    Path("mirror").symlink_to(published)
    Path("corpus").mkdir()
    for seed in range(100, 300):
        Path(f"corpus/{seed}.txt").write_text(text(600, seed))
    config = public_hnet.public()
    public_hnet.write(Path(), config, public_hnet.weights(config), "hnet_1stage_L")
    (study,) = pages.blocks(TUTORIAL, "toml")
    settings = [f"overrides.{change}" for change in small("cpu-demo") if not change.startswith("train.max_")]
    study = study.replace("[variants.without", "\n".join(settings) + "\n[variants.without", 1)
    study = re.sub("budget = .*", "budget.steps = 2", study.replace("=fp32", '="fp32"').replace("[1, 2, 3]", "[1]"))
    Path("mine.toml").write_text(study)


def tiny(arguments: list[str]) -> list[str]:
    """The command on a tiny budget."""
    if arguments[0] == "serve":  # which would go on for ever
        return [*arguments, "--help"]
    if arguments[0] == "train":
        return [*arguments, *small(arguments[1]), "train.max_steps=3"]
    if "--stride" in arguments:  # of windows a quarter as long
        return ["64" if one == "512" else one for one in arguments]
    if arguments[0] == "prepare" and not _sources(arguments[1:]):
        return ["prepare", "corpus", *arguments[1:]]
    if arguments[0] == "fetch":  # from a made-up mirror of fewer pieces
        return [*(one.replace("sp1024", SUBWORDS) for one in arguments), "--mirror", "mirror"]
    return arguments


def _sources(arguments: list[str]) -> list[str]:
    """What is neither an option nor its value (every option of `prepare` but --json has one)."""
    found, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--"):
            found.append(argument)
        skip = argument.startswith("--") and "=" not in argument and argument != "--json"
    return found


def test_every_system_goes_from_preset_to_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: Path
) -> None:
    """The table's commands, column by column, as a study of all systems would; what is exported scores as its run."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in ("default", "sp1024"):
        Path("data", name).symlink_to(tiny_data)
    rows = pages.table(GUIDE / "training.md", "system")
    assert [row[0][:2] for row in rows[:5]] == ["S0", "S1", "S2", "S3", "S4"]
    columns = [
        [shlex.split(cell.strip("`"))[1:] for cell in column if "`" in cell] for column in zip(*rows, strict=True)
    ]
    for verb, commands in zip(("train", "export", "eval", "analyze"), columns[1:], strict=True):
        for arguments in commands:
            assert arguments[0] == verb
            scored = good(*_short(arguments), "--json").json
            if verb == "eval" and arguments[-1].endswith(".bgolf"):
                run = f"runs/{Path(arguments[-1]).stem}"
                again = good("eval", run, "--limit", 1000, "--json").json
                assert scored["bpb"] == again["bpb"]
    for model, level in (
        ("runs/s1", 0),
        ("runs/s2", 0),
        ("runs/s3", 0),
        ("runs/stride", 0),
        ("s4.bgolf", 0),
        ("s4.bgolf", 1),
    ):
        cut = good("segment", model, "Fellow citizens", "--level", level, "--json").json
        assert ("".join(cut["chunks"]), cut["level"]) == ("Fellow citizens", level)


def _short(arguments: list[str]) -> list[str]:
    """The command over little text, with a tiny model and few steps."""
    if arguments[0] == "train":
        changes = [*small(arguments[1]), "train.max_steps=2"]
        changes += (
            [f"data.tokenizer={SUBWORDS}", f"model.vocab_size={SUBWORDS[2:]}"] if "data/sp1024" in arguments else []
        )
        return [*arguments, *changes, "export.gptq_tokens=512", "eval.limit=1000"]
    if arguments[0] == "export":
        return [*arguments, "export.gptq_tokens=512"]
    return [*arguments, "--limit", "1000"]
