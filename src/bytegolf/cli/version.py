"""`bytegolf --version`: the release, and for a checkout the commit, so that a bug report says what was run."""

from __future__ import annotations

from pathlib import Path

import bytegolf


def version() -> str:
    """``0.1.0`` where the package is installed; ``0.1.0 (checkout, commit 1a2b3c4d5e6f)`` in a clone with its files."""
    package = Path(bytegolf.__file__).resolve().parent
    root = package.parents[1]
    if package.parent.name != "src" or not (root / "pyproject.toml").is_file():
        return bytegolf.__version__  # site-packages; a .git above it is somebody else's
    found = commit(root)
    return f"{bytegolf.__version__} (checkout{f', commit {found[:12]}' if found else ''})"


def commit(root: Path) -> str | None:
    """The commit that the checkout ``root`` stands on, read from its git files; None if there is none to be read."""
    try:
        git = root / ".git"
        if git.is_file():  # a worktree: "gitdir: /path/to/.git/worktrees/NAME"
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        shared = git / "commondir"  # a worktree's branches lie in the repository that it belongs to
        common = git / shared.read_text(encoding="utf-8").strip() if shared.is_file() else git
        if (common / name).is_file():
            return (common / name).read_text(encoding="utf-8").strip()
        packed = (common / "packed-refs").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    lines = (line.split(" ") for line in packed.splitlines())
    return next((words[0] for words in lines if words[1:] == [name]), None)
