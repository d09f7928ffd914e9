"""What a reader may do with a stranger's input: accept it, or refuse it with one sentence; nothing else.

It may open nothing outside the folder that the input lies in (but for Python's own files), start no process, open no
connection, unpickle nothing, and take neither long nor much memory.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import bytegolf
from bytegolf.errors import BytegolfError
from bytegolf.files import cache_folder

SECONDS = 10
"""Processor time for one input."""

LONGEST = 2000
"""Characters of a sentence."""

_OPENS = {"open", "os.listdir", "os.scandir", "os.open", "os.mkdir", "os.remove", "os.rename", "shutil.rmtree"}
_FORBIDDEN = {"pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "socket.connect", "ctypes.dlopen"}
_OWN = (
    Path(__file__).parents[1],
    sys.prefix,
    sys.base_prefix,
    sysconfig.get_path("purelib"),
    *bytegolf.__path__,
    cache_folder(),
    "/proc",
    "/sys",
)

Verdict = Literal["accepted", "refused"]


class ForbiddenError(BaseException):
    """A reader did what no reader may; no ``except Exception`` catches it."""


class _Watch:
    """The folder that may be read now; None while nothing is watched."""

    allowed: str | None = None
    own = tuple(os.path.realpath(str(path)) for path in _OWN)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None or event not in _OPENS | _FORBIDDEN:
            return
        if event in _FORBIDDEN:
            raise ForbiddenError(f"{event} {arguments!r}"[:300])
        name = arguments[0]
        if isinstance(name, str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(name))
            if not any(
                path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
                for folder in (self.allowed, *self.own)
            ):
                raise ForbiddenError(f"{event} of {path}, outside the input's folder")


_watch = _Watch()
_added = False


@contextlib.contextmanager
def watched(folder: Path, allowed: Path | str) -> Iterator[None]:
    """With ``folder`` as the current one; what is forbidden raises ForbiddenError, as do files not in ``allowed``."""
    global _added
    if not _added:  # it cannot be taken away again, so it is switched on and off
        sys.addaudithook(_watch)
        _added = True
    with contextlib.chdir(folder):
        _watch.allowed = os.path.realpath(allowed)
        try:
            yield
        finally:
            _watch.allowed = None


@contextlib.contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Within it, taking more processor time than ``seconds`` raises ForbiddenError."""

    def late(number: int, frame: FrameType | None) -> None:
        raise ForbiddenError(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judge(read: Callable[[], object], folder: Path, roams: bool = False) -> Verdict:
    """What ``read`` makes of its input; whatever it raises but a BytegolfError of one printable sentence is raised.

    ``roams``: it may open any file, as its input is a user's own.
    """
    try:
        with watched(folder, "/" if roams else folder), limited():
            read()
    except BytegolfError as error:
        sentence = str(error)
        if not sentence.strip() or not sentence.isprintable() or len(sentence) > LONGEST:
            raise AssertionError(
                f"no printable sentence, but {sentence[:500]!r} ({len(sentence)} characters)"
            ) from error
        return "refused"
    return "accepted"


def limit_memory(more: int) -> None:
    """Let this process have ``more`` bytes of address space than it has now, so that a bomb is a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
