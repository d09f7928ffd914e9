"""Every command and every Python example of the documentation runs, at a size for tests."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest
from commands import SUBWORDS, VERBS, good, small, text

GUIDE = pages.DOCS / "guide"
TUTORIAL, TOUR = pages.DOCS / "tutorial.md", GUIDE / "commands.md"

ORDER = [TOUR, TUTORIAL, pages.README, GUIDE / "data.md"]
"""These pages' commands come first, and leave what those of the others need. reproduce.md's take hours: they are only
parsed (test_reproduce)."""


def told() -> Iterator[list[str]]:
    """Every command of the pages, each once."""
    seen = set()
    for page in [*ORDER, *(page for page in pages.PAGES if page not in ORDER and page.stem != "reproduce")]:
        for arguments in pages.commands(page):
            if tuple(arguments) not in seen:
                seen.add(tuple(arguments))
                yield arguments


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, published: Path) -> Iterator[Path]:
    """A folder in which all commands have run, in order; texts and training are cut down, by what a user can type."""
    home = tmp_path_factory.mktemp("place")
    before = Path.cwd()
    os.chdir(home)
    try:
        Path("notes.txt").write_text("\n\n".join(text(2000, seed) for seed in range(60)))
        Path("letter.txt").write_text(text(130))
        Path("mirror").symlink_to(published)
        Path("corpus").mkdir()
        for seed in range(100, 300):
            Path(f"corpus/{seed}.txt").write_text(text(600, seed))
        (study,) = pages.blocks(TUTORIAL, "toml")
        settings = [f"overrides.{change}" for change in small("cpu-demo") if not change.startswith("train.max_")]
        study = study.replace("[variants.without", "\n".join(settings) + "\n[variants.without", 1)
        study = re.sub("budget = .*", "budget.steps = 2", study.replace("=fp32", '="fp32"').replace("[1, 2, 3]", "[1]"))
        Path("mine.toml").write_text(study)
        for arguments in told():
            good(*tiny(arguments))
        yield home
    finally:
        os.chdir(before)


def tiny(arguments: list[str]) -> list[str]:
    """The command on a tiny budget."""
    if arguments[0] == "train":
        return [*arguments, *small(arguments[1], seq_len=512), "train.batch_tokens=512", "train.max_steps=3"]
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


def test_every_command_runs(place: Path) -> None:
    assert (place / "runs" / "demo" / "summary.json").exists()
    assert {arguments[0] for arguments in told()} == set(VERBS), "every verb is shown"


PYTHON = [page for page in pages.PAGES if pages.blocks(page, "python")]


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.relative_to(pages.ROOT).as_posix())
def test_every_python_example_runs(page: Path, place: Path) -> None:
    """The examples of a page, in order, as one program."""
    import bytegolf

    if not hasattr(bytegolf, "load"):
        pytest.skip("bytegolf has no public API yet")
    names: dict[str, object] = {"__name__": "example"}
    for number, block in enumerate(pages.blocks(page, "python")):
        exec(compile(block, f"{page}, Python block {number}", "exec"), names)


def test_every_system_goes_from_preset_to_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: Path
) -> None:
    """The table's commands, column by column, as a study of all systems would; what is exported scores as its run."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in ("default", "sp1024"):
        Path("data", name).symlink_to(tiny_data)
    rows = pages.table(GUIDE / "training.md", "system")
    assert [row[0][:2] for row in rows[:4]] == ["S0", "S1", "S2", "S3"]
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
    for run in ("s1", "s2", "s3", "stride"):
        assert "".join(good("segment", f"runs/{run}", "Fellow citizens", "--json").json["chunks"]) == "Fellow citizens"


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
