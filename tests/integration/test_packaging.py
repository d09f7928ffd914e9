"""The wheel and the source distribution hold what they must. tests/stress/install.py installs and tries them."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from commands import good

from bytegolf.cli.version import commit

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "bytegolf"
BUILT = {".so", ".pyc", ".o"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str], str]:
    """The names in the source distribution and in the wheel, and the metadata of the wheel."""
    pytest.importorskip("setuptools", minversion="77")
    sys.path.insert(0, str(ROOT / "tests" / "stress"))
    try:
        install = importlib.import_module("install")
    finally:
        sys.path.pop(0)
    source, wheel = install.build(tmp_path_factory.mktemp("packages"))
    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    return sources, names, metadata


def files(folder: Path) -> set[str]:
    """Every file that belongs to a checkout below ``folder``, by its path from the top."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in BUILT)
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_wheel_holds_the_whole_package_and_nothing_else(packages: tuple[set[str], set[str], str]) -> None:
    _, names, _ = packages
    own = {name for name in names if ".dist-info/" not in name}
    assert own == {name.removeprefix("src/") for name in files(PACKAGE)}
    kinds = ("py.typed", "presets/cpu-demo.toml", "ops/kernels/", "analyze/assets/")
    assert all(any(name.startswith(f"bytegolf/{kind}") for name in own) for kind in kinds)


def test_the_source_distribution_holds_what_the_tests_need(packages: tuple[set[str], set[str], str]) -> None:
    sources, _, _ = packages
    for folder in ("src/bytegolf", "tests", "docs", "examples", "benchmarks", "studies", ".ci"):
        assert files(ROOT / folder) <= sources, folder
    assert {"Makefile", "requirements.lock", "mkdocs.yml", "LOG.md", "CHANGELOG.md", "CITATION.cff"} <= sources


def test_the_metadata_name_versions_and_extras(packages: tuple[set[str], set[str], str]) -> None:
    _, _, metadata = packages
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Requires-Python: {project['requires-python']}" in metadata
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    assert extras == {"bench", "dev", "docs", "fuzz", "hub", "plots", "ray", "serve", "tensorboard"}
    assert "License-Expression: MIT" in metadata


def test_version_tells_the_commit_of_a_checkout() -> None:
    said = good("--version").out.strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+( \(checkout(, commit [0-9a-f]{12})?\))?", said)
    if (ROOT / ".git").exists():
        asked = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() in said


@pytest.mark.parametrize("kind", ["loose", "packed", "detached", "worktree", "none"])
def test_commits_are_read_from_git_files(kind: str, tmp_path: Path) -> None:
    """As git leaves them: a branch in a file of its own, among packed ones, no branch, a linked worktree."""
    found, git = "0123456789abcdef" * 2 + "01234567", tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text(f"{found}\n" if kind == "detached" else "ref: refs/heads/main\n")
    if kind in ("loose", "worktree"):
        (git / "refs/heads/main").write_text(f"{found}\n")
    if kind == "packed":
        (git / "packed-refs").write_text(
            f"# pack-refs with: peeled\n{'f' * 40} refs/heads/old\n{found} refs/heads/main\n"
        )
    root = tmp_path
    if kind == "worktree":
        (own := git / "worktrees/other").mkdir(parents=True)
        (own / "HEAD").write_text("ref: refs/heads/main\n")
        (own / "commondir").write_text("../..\n")
        (root := tmp_path / "other").mkdir()
        (root / ".git").write_text(f"gitdir: {own}\n")
    assert commit(root) == (None if kind == "none" else found)
