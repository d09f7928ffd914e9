"""The documentation is complete and up to date: verbs, options, presets, links, figures, the site."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pages
import pytest
from commands import VERBS, good

from bytegolf.config import preset_names

GUIDE = pages.DOCS / "guide"


def script(path: Path) -> types.ModuleType:
    """A script of the documentation, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short() -> None:
    assert len(pages.read(pages.README).splitlines()) <= 150


def test_every_score_of_the_readme_has_its_command() -> None:
    """The block that `make train` printed counts as one figure, its score."""
    figures = [row[0] for row in pages.table(pages.DOCS / "reproduce.md", "figure")]
    readme = pages.read(pages.README)
    assert all(figure in readme for figure in figures)
    prose = readme
    for _, block in pages.fences(pages.README):
        prose = prose.replace(block, "")
    scores = re.findall(r"(?<!≥ )(?<![\d.])\d\.\d\d+(?: ± \d\.\d+)?(?![\d.])", prose)
    assert len(scores) > 4
    assert set(scores) <= set(figures)


def test_every_verb_has_a_row_in_the_order_of_the_help() -> None:
    from bytegolf.cli.run import app

    verbs = [name.strip("`") for name, *_ in pages.table(GUIDE / "commands.md", "verb")]
    assert verbs == sorted(VERBS, key=lambda name: app[name].sort_key)
    assert {name for name in app if not name.startswith("-")} == {*VERBS, "prove"}, "prove is an alias of verify"


def test_help_is_up_to_date() -> None:
    made = script(pages.DOCS / "make_cli.py").page()
    assert pages.read(pages.DOCS / "cli.md") == made, "run `python docs/make_cli.py`"


def test_options_exist() -> None:
    verbs = [(), *([verb] for verb in VERBS), *(["study", verb] for verb in ("run", "show", "list"))]
    shown = "".join(good(*verb, "--help").out for verb in verbs)
    for page in pages.PAGES:
        for option in re.findall(r"`(--[a-z-]+)", pages.read(page)):
            assert option in shown, f"{page}: {option}"


def test_scripts_exist() -> None:
    named = {name for page in pages.PAGES for name in re.findall(r"python ([\w/]+/\w+\.py)", pages.read(page))}
    assert len(named) > 5
    for name in named:
        assert (pages.ROOT / name).exists(), name


def test_settings_exist() -> None:
    """What is written as `section.key` or `section.key=value` is a key of the configuration."""
    import bytegolf
    from bytegolf.config import Config, flatten, to_dict

    keys = set()
    for name in preset_names():
        flat = flatten(to_dict(Config.load(name)))
        keys |= {".".join(key.split(".")[start:]) for key in flat for start in range(key.count(".") + 1)}
    keys |= {"model.network.router.options"}  # empty without a router of one's own
    for page in pages.PAGES:
        for section, key in re.findall(
            r"`(model|train|optim|export|eval|router|data)\.([\w.]+)(?:=[^`]*)?`", pages.read(page)
        ):
            dotted = f"{section}.{key}"
            if key == "safetensors" or (section == "model" and hasattr(bytegolf.Model, key)):
                continue  # a checkpoint's file; the model of the Python API
            assert any(each == dotted or each.startswith(f"{dotted}.") for each in keys), f"{page}: {dotted}"


def test_every_preset_has_a_row_and_no_other() -> None:
    cells = [cell for cell, *_ in pages.table(GUIDE / "training.md", "preset")]
    assert sorted(name for cell in cells for name in re.findall(r"`([^`]+)`", cell)) == preset_names()


def test_the_code_layout_is_as_drawn() -> None:
    package = pages.ROOT / "src" / "bytegolf"
    drawn = pages.tree(pages.DOCS / "internals.md", "src/bytegolf/")
    for name in drawn:
        assert (package / name).exists(), name
        assert (package / name).is_dir() == name.endswith("/"), name
    folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders <= set(drawn), "every folder is drawn"


def test_a_runs_folder_is_as_drawn(tiny_run: object) -> None:
    from commands import TinyRun

    assert isinstance(tiny_run, TinyRun)
    drawn = {name.rstrip("/") for name in pages.tree(GUIDE / "training.md", "runs/demo/")}
    assert drawn == {path.name for path in tiny_run.folder.iterdir()}


@pytest.mark.parametrize(
    "page", [*pages.PAGES, pages.ROOT / "LOG.md"], ids=lambda page: page.relative_to(pages.ROOT).as_posix()
)
def test_links_and_files_exist(page: Path) -> None:
    content = pages.read(page)
    for link, target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", content):
        aim = (page.parent / link).resolve() if link else page
        assert aim.exists(), link
        assert not target or target in pages.anchors(aim), f"{link}#{target}"
    for name in re.findall(r"`((?:tests|docs|src|benchmarks|studies)/[\w./-]+)`", content):
        assert (pages.ROOT / name).exists(), name


def test_make_has_the_commands_that_are_named() -> None:
    targets = set(re.findall(r"^([a-z]+):", (pages.ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [
        line.split()[1]
        for page in pages.PAGES
        for block in pages.blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("make ")
    ]
    assert named[:2] == ["train", "test"]
    assert set(named) <= targets


def test_every_entry_of_the_log_has_a_row() -> None:
    index = pages.read(pages.ROOT / "LOG.md")
    months = sorted((pages.DOCS / "log").glob("*.md"))
    assert months
    for month in months:
        for heading in re.findall(r"^## (.*)$", pages.read(month), re.MULTILINE):
            assert f"(docs/log/{month.name}#{pages.anchor(heading)})" in index, heading


def test_figures_are_drawn_from_what_was_measured() -> None:
    figures = script(pages.DOCS / "figures" / "make.py")
    found = json.loads((pages.DOCS / "figures" / "measured.json").read_text())
    for name, draw in figures.FIGURES.items():
        committed = (pages.DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert committed == draw(found).svg(), f"{name}: run `python docs/figures/make.py`"
        assert any(f"figures/{name}.svg" in pages.read(page) for page in pages.PAGES), f"{name} is shown nowhere"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    ran = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
