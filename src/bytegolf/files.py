"""Files that no crash, full disk or second process spoils: written whole or not at all, and locks."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import hashlib
import io
import json
import os
import platform
import re
import select
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from bytegolf.errors import BytegolfError

_DISK_WORDS = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: choose a folder that you may write to",
    errno.EPERM: "permission denied: choose a folder that you may write to",
    errno.ENOTDIR: "a part of that path is a file, not a folder: choose another path",
    errno.EEXIST: "a file of that name is in the way: choose another path",
    errno.EISDIR: "that is a folder: name a file",
    errno.ENOENT: "no such file or folder",
    errno.EFBIG: "the file system takes no file of that size: choose another folder",
}
_READ_WORDS = {
    errno.EACCES: "permission denied: ask its owner for the right to read it, or leave it out",
    errno.EPERM: "permission denied: ask its owner for the right to read it, or leave it out",
    errno.ENOTDIR: "a part of that path is a file, not a folder: check the path",
    errno.ELOOP: "it is a link to itself: check the path",
    errno.ENAMETOOLONG: "the name is too long: check the path",
}
"""Where nothing is written, "choose another folder" would send people the wrong way."""


def cache_folder() -> Path:
    """Where downloads and compiled kernels are kept: $BYTEGOLF_CACHE, or ``bytegolf`` in the user's cache folder."""
    if own := os.environ.get("BYTEGOLF_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bytegolf"


@contextlib.contextmanager
def disk_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an ``OSError`` while ``doing`` something to ``path`` into a one-sentence ``BytegolfError``."""
    try:
        yield
    except OSError as error:
        words = _DISK_WORDS | _READ_WORDS if doing.startswith(("read", "look", "follow")) else _DISK_WORDS
        why = words.get(error.errno or 0, error.strerror or str(error))
        raise BytegolfError(f"cannot {doing} {path}: {why}") from error
    except ValueError as error:
        if "\0" not in str(path) and not isinstance(error, UnicodeEncodeError):
            raise
        raise BytegolfError(f"cannot {doing} {path}: no file can have such a name") from error


def folder_name(name: str, key: str) -> str:
    """``name`` if a folder can be called so; BytegolfError, which says that ``key`` has it, if it leads elsewhere."""
    if not name or name.startswith(".") or not name.isprintable() or set("/\\") & set(name):
        raise BytegolfError(f"{key} is {name!r}: it becomes a folder's name, so use letters, digits and '-'")
    return name


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents if need be; a clear error where that cannot be."""
    with disk_errors(path, "create the folder"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_replaceable(path: Path, begins: bytes = b"") -> None:
    """BytegolfError where ``path`` is there and no file, or leaves no name for one; asked before work starts, too.

    What ``begins`` as the file to be written is made anew; anything else that is there is not replaced.
    """
    if not path.name or (path.exists() and not path.is_file()):  # a rename would replace even /dev/null, if root asks
        raise BytegolfError(f"cannot write {path}: it is a folder or a device, not a file; choose another path")
    parents = path.absolute().parents
    if not os.access(next((each for each in parents if each.exists()), parents[-1]), os.W_OK):
        raise BytegolfError(f"cannot write {path}: permission denied: choose a folder that you may write to")
    if begins and path.exists():
        with disk_errors(path, "read"), path.open("rb") as file:
            head = file.read(len(begins))
        if head and head != begins:
            raise BytegolfError(
                f"cannot write {path}: what it holds is of another kind; remove it, or choose another path"
            )


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any], like: os.stat_result | None = None) -> None:
    """Have ``write`` fill a temporary file beside ``path``, then rename it over ``path`` once it is safely on disk.

    Until the rename a reader sees the old file or none; whatever fails leaves no temporary file behind. The file gets
    the rights that the user's umask allows, or those and the times of the file that ``like`` describes.
    """
    make_folder(path.parent)
    check_replaceable(path)
    with disk_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files private, and so the contents were from the first byte on
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(like.st_mode & 0o777 if like else 0o666 & ~umask)
            if like:
                os.utime(name, ns=(like.st_atime_ns, like.st_mtime_ns))
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class GrowingFile:
    """A file that is written piece by piece, as ``.NAME.tmp`` beside the ``path`` that it may get when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.tmp")
        self.file: io.FileIO | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``."""
        with disk_errors(self.path):
            self.file = self.file or self.temporary.open("w+b", buffering=0)
            view = memoryview(data)
            while len(view):  # a disk that is nearly full takes a part
                view = view[self.file.write(view) :]

    def sync(self) -> None:
        """Return once everything written so far is on the disk, as far as the system can tell."""
        if self.file is not None:
            with disk_errors(self.path):
                os.fsync(self.file.fileno())

    def resume(self, size: int) -> bool:
        """Go on behind the first ``size`` bytes that an earlier process has left; False if they are not there."""
        if not self.temporary.exists() or self.temporary.stat().st_size < size:
            return False
        with disk_errors(self.path):
            self.file = self.temporary.open("r+b", buffering=0)
            self.file.truncate(size)
            self.file.seek(size)
        return True

    def abandon(self, keep: bool = False) -> None:
        """Close it, and remove it unless ``resume`` is to find it."""
        if self.file is None:
            return
        file, self.file = self.file, None
        try:
            with contextlib.suppress(OSError):  # what could not be written is not wanted any more
                file.close()
        finally:
            if not keep:
                self.temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    write_atomically(path, lambda file: file.write(data))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically.

    Bytes of file names that are no UTF-8, lone surrogates in Python, become JSON's own escapes (``\\udce9``).
    """
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


MOST_BYTES = 1 << 28
"""Of a file that is read as a whole: configurations, JSON, tokenizers, texts. It may be called /dev/zero."""


def read_file(path: Path, what: str) -> bytes:
    """The contents of a file that is read as a whole; ``what`` names its role in the error when it cannot be."""
    with disk_errors(path, f"read the {what}"), path.open("rb") as file:
        # room is made for what it says to hold and a byte, not for the most; a pipe or a device says 0, and has more
        size = min(os.fstat(file.fileno()).st_size, MOST_BYTES)
        data = file.read(size + 1)
        if len(data) > size:
            data += file.read(MOST_BYTES - size)
    if len(data) > MOST_BYTES:
        raise BytegolfError(f"the {what} {path} has more than {MOST_BYTES:,} bytes: name another file")
    return data


STDIN = Path("-")
"""As a file's name, it stands for stdin."""


def read_input(path: Path) -> bytes:
    """The contents of a file that a user named, or of stdin for ``-``; neither may go on for ever."""
    if path == STDIN:
        return _read_stdin()
    return read_file(path, "text")


def piped_input() -> bytes:
    """What stdin brings where it is a pipe or a file; nothing at a terminal, from a device, or where it is closed.

    Where nothing comes for a second, stderr tells that it is waited for.
    """
    try:
        handle = sys.stdin.fileno()
        kind = os.fstat(handle).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or not a file at all, as in a notebook
        return b""
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind)):
        return b""
    if os.name != "nt" and not select.select([handle], [], [], 1.0)[0]:
        sys.stderr.write("reading the text from stdin\n")
    return _read_stdin()


def _read_stdin() -> bytes:
    data = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise BytegolfError(f"stdin brings more than {MOST_BYTES:,} bytes: give a part of it, as `head -c` does")
    return data


def read_json(path: Path, what: str) -> Any:
    """Read the JSON in ``path``; ``what`` names the file's role in the error when it is missing or malformed."""
    data = read_file(path, what)
    try:
        return parse_json(data)
    except ValueError as error:
        raise BytegolfError(f"the {what} {path} is not valid JSON ({error}): restore or rewrite it") from error


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """``read_json`` where only an object will do."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise BytegolfError(f"the {what} {path} is no JSON object: restore or rewrite it")
    return value


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text from anywhere; raises ValueError, also where it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def json_line(value: Any) -> str:
    r"""``value`` as JSON in one line, wherever the reader thinks a line ends (``str.splitlines``: at U+2028, too).

    >>> json_line({"a": "x\u2028y"})
    '{"a": "x\\u2028y"}'
    """
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else _BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_BREAKS = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Line ends for somebody, DEL and other controls, and the lone surrogates that a file's name may have."""


def lines_of(text: str) -> list[str]:
    r"""The lines of a text file of lines, as JSON lines are: only ``\n`` ends one, as in ``jq`` and ``wc``.

    ``str.splitlines`` also cuts at U+2028, U+0085 and others, which JSON strings may hold as they are.

    >>> lines_of('{"a": "x\u2028y"}\r\n{}\n')
    ['{"a": "x\u2028y"}\r', '{}']
    """
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def matching(folder: Path, pattern: str) -> list[Path]:
    """The files in a folder whose names match, sorted; none where there is no such folder.

    Raises BytegolfError if it may not be read, which ``Path.glob`` takes for an empty one.
    """
    with disk_errors(folder, "read the folder"):
        names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 (names, not Paths)
    return [folder / name for name in sorted(names) if fnmatch.fnmatchcase(name, pattern)]


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with disk_errors(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_leftovers(*paths: Path) -> None:
    """Remove what ``write_atomically`` could not, for ``paths``, as it was killed; only who holds their lock may."""
    for path in paths:
        with disk_errors(path, "clear what a killed process left of"):
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                left.unlink(missing_ok=True)


def lock_file(path: Path) -> int | None:
    """A descriptor that holds the lock until it and its copies in child processes are closed; None if it is taken.

    The system lets go of it when the process ends, however it ends, so no lock is ever stale. On a file system without
    locks (some network ones) nobody is kept out.
    """
    import filelock  # a tenth of a second

    while True:
        make_folder(path.parent)
        with disk_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        taken = False
        with contextlib.suppress(OSError):  # a file system without locks
            taken = not filelock.lock_descriptor(handle, blocking=False)
        if taken:
            os.close(handle)
            return None
        # who had it may have deleted the file since we opened it: then nobody else would find what we hold
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)


@contextlib.contextmanager
def only_one(path: Path, sentence: str) -> Iterator[None]:
    """Hold the lock ``path`` in the context; raise ``sentence``, and who has it, if another process has.

    Nothing of it stays, so that the same work leaves the same files; a folder that was made for it and stayed empty, as
    the work was refused, goes as well. What a killed process leaves is a file that is in nobody's way.
    """
    fresh = not path.parent.exists()
    handle = lock_file(path)
    if handle is None:
        holder = ""
        with contextlib.suppress(OSError):  # it may have ended since
            holder = path.read_text(encoding="utf-8", errors="replace").strip()
        raise BytegolfError(f"{sentence} ({holder})" if holder else sentence)
    try:
        with disk_errors(path):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: see ``lock_file``
        os.close(handle)
        with contextlib.suppress(OSError):
            if os.name == "nt":  # there a file that is open cannot be deleted, and a new holder's cannot either
                path.unlink(missing_ok=True)
            if fresh:
                path.parent.rmdir()
