"""Folders, read so that nothing in them is passed over without a word: one walk, and one tally of what was left out.

``Path.rglob`` and ``glob`` do not enter links to folders and take a folder that may not be read for an empty one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bytegolf.errors import BytegolfError, counted
from bytegolf.files import disk_errors

Why = Literal[
    "ending", "hidden", "dead link", "known link", "link above", "pipe", "socket", "device", "null text", "blank"
]

_WORDS: dict[Why, tuple[str, str]] = {
    "ending": ("file", "files"),  # with its ending, see ``LeftOut.words``
    "hidden": ("hidden file or folder", "hidden files and folders"),
    "dead link": ("link that leads nowhere", "links that lead nowhere"),
    "known link": ("link to what is read anyway", "links to what is read anyway"),
    "link above": ("link to a folder above", "links to folders above"),
    "pipe": ("named pipe", "named pipes"),
    "socket": ("socket", "sockets"),
    "device": ("device", "devices"),
    "null text": ("row whose text is null", "rows whose text is null"),
    "blank": ("document without text", "documents without text"),
}
_ORDER = {why: place for place, why in enumerate(_WORDS)}

MOST_KINDS = 8
"""Said in one line; ``--json`` and manifests have all."""

LONGEST_ENDING = 12


@dataclass(frozen=True)
class LeftOut:
    """What was not read, for one reason."""

    why: Why
    """ending (of the name: no kind of file that is read), hidden, dead link, known link (to what is read anyway), link
    above (to a folder that the named one lies in), pipe, socket, device; of rows and documents: null text, blank"""
    ending: str
    """of the files' names, where that is why; "" if they have none"""
    count: int
    example: str
    """the first of them"""
    bytes: int
    """of blank documents; else 0"""

    def words(self) -> str:
        """``3 files ending in .pdf (books/a.pdf)``."""
        said = counted(self.count, *_WORDS[self.why])
        if self.why == "ending":
            said += f" ending in {self.ending}" if self.ending else " without an ending"
        if self.bytes:
            said += f" of {counted(self.bytes, 'byte')}"
        return f"{said} ({'for instance ' if self.count > 1 else ''}{self.example})"


class Tally:
    """Counts what is left out, by reason."""

    def __init__(self, found: Iterable[LeftOut] = ()) -> None:
        self._found: dict[tuple[Why, str], LeftOut] = {}
        self.include(found)

    def add(self, why: Why, example: str, ending: str = "", size: int = 0) -> None:
        """Note one more."""
        self.include([LeftOut(why, ending, 1, example, size)])

    def include(self, found: Iterable[LeftOut]) -> None:
        """Add what was counted elsewhere."""
        for one in found:
            key = one.why, one.ending
            old = self._found.get(key, LeftOut(*key, 0, one.example, 0))
            self._found[key] = LeftOut(*key, old.count + one.count, old.example, old.bytes + one.bytes)

    def all(self) -> list[LeftOut]:
        """One entry per reason and ending, in a fixed order: most of an ending first."""
        return sorted(self._found.values(), key=lambda one: (_ORDER[one.why], -one.count, one.ending))


def in_words(found: Iterable[LeftOut]) -> str:
    """One line on what was left out, ``left out: 1 named pipe (books/queue)``; empty where nothing was."""
    groups = list(found)
    said = [one.words() for one in groups[:MOST_KINDS]]
    if rest := sum(one.count for one in groups[MOST_KINDS:]):
        said.append(f"{rest:,} more for other reasons")
    return f"left out: {', '.join(said)}" if said else ""


def special(mode: int) -> Why | None:
    """What a path of that mode is if it is neither a file nor a folder nor a link."""
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None


def check_file(path: Path, remedy: str, pipes: bool = False) -> None:
    """Raise if ``path`` is a device, a socket or (unless ``pipes`` may be read) a pipe: those may never end.

    Reading /dev/zero goes on for ever, and opening a pipe waits for somebody who writes.
    """
    with disk_errors(path, "read"):
        kind = special(path.stat().st_mode)
    if kind is not None and not (pipes and kind == "pipe"):
        raise BytegolfError(f"{path} is a {_WORDS[kind][0]}, not a file: {remedy}")


def ending_of(name: str) -> str:
    """The ending of a file's name, in lower case; "" for none, or for what only looks like one ("Mr. Smith's text")."""
    ending = Path(name).suffix.lower()
    return ending if len(ending) <= LONGEST_ENDING and ending[1:].isalnum() else ""


def walk(
    root: Path,
    tally: Tally,
    wanted: Callable[[Path], bool] = lambda path: True,
    whole: Callable[[Path], bool] = lambda folder: False,
) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder below ``root``, itself first, with the ``wanted`` files in it; all else is counted in ``tally``.

    Links are followed, after everything that is there by itself: first those to folders, then those to files. Each
    real folder is entered once, and each file that a link leads to is read once. So no loop of links is endless, and a
    file's own name wins over a link's. A link to a folder in which ``root`` lies would lead to what was not named, and
    is left out. A folder that is ``whole`` is given and not entered.

    Example: books/a.txt, books/more → ../disk2 and books/up → ..  give (books, [a.txt]) and (books/more, […]); the
    tally has one "link above".

    Raises:
        BytegolfError: a folder cannot be read.
    """
    with disk_errors(root, "read the folder"):
        above = {_identity(parent.stat()) for parent in root.resolve().parents}
    entered: set[tuple[int, int]] = set()
    read: set[tuple[int, int]] = set()
    to_folders: deque[Path] = deque()
    to_files: list[tuple[Path, os.stat_result]] = []

    def below(top: Path) -> Iterator[tuple[Path, list[Path]]]:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            files, inner = [], []
            with disk_errors(folder, "read the folder"):
                identity = _identity(folder.stat())
                if identity in entered:  # through a link, before one to the folder around it was followed
                    continue
                entered.add(identity)
                names = [] if whole(folder) else sorted(os.listdir(folder))  # noqa: PTH208 (names, not Paths)
            for name in names:
                path = folder / name
                if name.startswith("."):
                    tally.add("hidden", str(path))
                    continue
                with disk_errors(path, "read"):
                    status = path.lstat()
                if stat.S_ISLNK(status.st_mode):
                    follow(path)
                elif stat.S_ISDIR(status.st_mode):
                    inner.append(path)
                elif judge(path, status):
                    files.append(path)
            yield folder, files
            waiting += reversed(inner)

    def follow(path: Path) -> None:
        with disk_errors(path, "follow the link"):
            status = _target(path)
        if status is None:
            tally.add("dead link", str(path))
        elif stat.S_ISDIR(status.st_mode):
            to_folders.append(path)
        else:
            to_files.append((path, status))

    def judge(path: Path, status: os.stat_result) -> bool:
        if (kind := special(status.st_mode)) is not None:
            tally.add(kind, str(path))
        elif not wanted(path):
            tally.add("ending", str(path), ending_of(path.name))
        else:
            read.add(_identity(status))
            return True
        return False

    yield from below(root)
    while to_folders:
        path = to_folders.popleft()
        with disk_errors(path, "follow the link"):
            identity = _identity(path.stat())
        if identity in above:
            tally.add("link above", str(path))
        elif identity in entered:
            tally.add("known link", str(path))
        else:
            yield from below(path)
    for path, status in to_files:
        if _identity(status) in read and wanted(path):
            tally.add("known link", str(path))
        elif judge(path, status):
            yield path.parent, [path]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _target(link: Path) -> os.stat_result | None:
    """What a link leads to; None if it leads nowhere, or to itself."""
    try:
        return link.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
