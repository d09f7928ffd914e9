"""The documentation as text: its pages, their fenced blocks, commands and tables."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"

PAGES = [README, ROOT / "CONTRIBUTING.md", *(page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "log")]
"""Every page but the log, which tells of commands as they were."""


def read(page: Path) -> str:
    """A page's text."""
    return page.read_text(encoding="utf-8")


def fences(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, in order: the kind, such as ``console``, ``python`` or nothing, and the text."""
    parts = re.split(r"^```(.*)\n", read(page), flags=re.MULTILINE)
    return list(zip(parts[1::4], parts[2::4], strict=True))  # text, kind, block, closing fence's "kind", text, ...


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    return [block for named, block in fences(page) if named == kind]


def commands(block: str) -> list[list[str]]:
    """The arguments of every ``$ bytegolf …`` line of a block, in order."""
    lines = [line for line in block.splitlines() if line.startswith("$ bytegolf ")]
    return [shlex.split(line.removeprefix("$ bytegolf "), comments=True) for line in lines]


def table(page: Path, heading: str) -> list[list[str]]:
    """The rows of the table whose first column has that heading, each as its cells."""
    found = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", read(page), re.MULTILINE)
    assert found, f"{page} has no table of {heading}"
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in found[1].splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


def tree(page: Path, root: str) -> list[str]:
    """The names in the annotated tree below a folder, as far as they are indented by two spaces."""
    for block in blocks(page, ""):
        if block.startswith(f"{root}\n"):
            below = block.partition("\n")[2].splitlines()
            inside = [line for line in below if line.startswith("  ")]
            return [line.split()[0] for line in inside if not line.startswith("   ")]
    raise AssertionError(f"{page} has no tree of {root}")


def anchor(heading: str) -> str:
    """A heading's anchor, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", read(page), re.MULTILINE)}
