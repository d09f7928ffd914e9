"""The README tells the truth: its commands run, and what it names exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commands import SUBWORDS, VERBS, good, small, text

from bytegolf.config import preset_names

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

if not README.exists():
    pytest.skip("there is no README.md", allow_module_level=True)


def blocks(kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    parts = re.split(r"^```(.*)\n", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    fences = list(zip(parts[1::4], parts[2::4], strict=True))  # text, kind, block, closing fence's "kind", text, ...
    return [block for named, block in fences if named == kind]


def commands() -> list[list[str]]:
    """The arguments of every `$ bytegolf …` line, in order."""
    lines = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ bytegolf ")]
    return [shlex.split(line.removeprefix("$ bytegolf "), comments=True) for line in lines]


def table(heading: str) -> list[list[str]]:
    """The rows of the table whose first column has that heading, each as its cells."""
    found = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"the README has no table of {heading}"
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in found[1].splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


def tree(root: str) -> list[str]:
    """The names in the annotated tree below a folder, as far as they are indented by two spaces."""
    for block in blocks(""):
        if block.startswith(f"{root}\n"):
            below = block.partition("\n")[2].splitlines()
            inside = [line for line in below if line.startswith("  ")]
            return [line.split()[0] for line in inside if not line.startswith("   ")]
    pytest.fail(f"the README has no tree of {root}")


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Path) -> None:
    """In order, in one folder; training and the texts are cut down, by nothing that a user cannot type."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("\n\n".join(text(2000, seed) for seed in range(60)))
    Path("letter.txt").write_text(text(130))
    Path("mirror").symlink_to(published)
    Path("corpus").mkdir()
    for seed in range(100, 300):
        Path(f"corpus/{seed}.txt").write_text(text(600, seed))
    (study,) = blocks("toml")
    settings = [f"overrides.{change}" for change in small("cpu-demo") if not change.startswith("train.max_")]
    study = study.replace("[variants.without", "\n".join(settings) + "\n[variants.without", 1).replace(
        "=fp32", '="fp32"'
    )
    Path("mine.toml").write_text(re.sub("budget = .*", "budget.steps = 2", study.replace("[1, 2, 3]", "[1]")))
    assert commands()
    for arguments in commands():
        good(*tiny(arguments))


def tiny(arguments: list[str]) -> list[str]:
    """The command on a tiny budget."""
    if arguments[0] == "train":
        return [*arguments, *small(arguments[1], seq_len=512), "train.batch_tokens=512", "train.max_steps=3"]
    if arguments[0] == "prepare" and not _sources(arguments[1:]):
        return ["prepare", "corpus", *arguments[1:]]
    if arguments[0] == "fetch":  # from a made-up mirror of fewer pieces
        return [*(one.replace("sp1024", SUBWORDS) for one in arguments), "--mirror", "mirror"]
    return arguments


def test_every_system_goes_from_preset_to_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: Path
) -> None:
    """The table's commands, column by column, as a study of all systems would; what is exported scores as its run."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in ("default", "sp1024"):
        Path("data", name).symlink_to(tiny_data)
    rows = table("system")
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


def _sources(arguments: list[str]) -> list[str]:
    """What is neither an option nor its value (every option of `prepare` but --json has one)."""
    found, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--"):
            found.append(argument)
        skip = argument.startswith("--") and "=" not in argument and argument != "--json"
    return found


def test_every_verb_is_shown_and_told() -> None:
    from bytegolf.cli.run import app

    assert {name for name in app if not name.startswith("-")} == set(VERBS)
    assert {arguments[0] for arguments in commands()} == set(VERBS)
    told = [cell for cell, *_ in table("verb")]
    ordered = sorted(VERBS, key=lambda name: app[name].sort_key)
    assert [name.strip("`") for name in told] == ordered, "in the order of the data"


def test_options_that_it_mentions_exist() -> None:
    verbs = [(), *([verb] for verb in VERBS), *(["study", verb] for verb in ("run", "show", "list"))]
    shown = "".join(good(*verb, "--help").out for verb in verbs)
    for option in re.findall(r"`(--[a-z-]+)", README.read_text(encoding="utf-8")):
        assert option in shown, option


def test_benchmarks_that_it_mentions_exist() -> None:
    named = re.findall(r"python (benchmarks/\w+\.py)", README.read_text(encoding="utf-8"))
    assert len(named) > 5
    for script in named:
        assert (ROOT / script).exists(), script


def test_every_preset_is_told_and_no_other() -> None:
    told = [name for cell, *_ in table("preset") for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(told) == preset_names()


def test_the_tree_is_the_tree() -> None:
    package = ROOT / "src" / "bytegolf"
    told = tree("src/bytegolf/")
    for name in told:
        assert (package / name).exists(), name
        assert (package / name).is_dir() == name.endswith("/"), name
    folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders <= set(told), "every folder is told"


def test_links_and_files_exist() -> None:
    content = README.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", content):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"`((?:tests|docs|src|benchmarks)/[\w./-]+)`", content):
        assert (ROOT / name).exists(), name


def test_make_has_the_commands_that_it_names() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("make ")]
    assert named[:2] == ["train", "test"]
    assert set(named) <= targets


def test_a_runs_folder_is_as_it_says(tiny_run: object) -> None:
    from commands import TinyRun

    assert isinstance(tiny_run, TinyRun)
    assert {name.rstrip("/") for name in tree("runs/demo/")} == {path.name for path in tiny_run.folder.iterdir()}
