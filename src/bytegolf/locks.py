"""One process at a time: locks that end with whoever holds them."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder


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
