"""One published file onto the disk: a part that grows beside its target, checked, and renamed once it is right.

A part is never trusted for lying there. Every few megabytes what was received is flushed and its length and hash are
written down; who goes on with it after a kill or a crash hashes it first, cuts off what came after that note, and
begins anew if it is not what it was, or if the published file is not the one it is a part of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from bytegolf.data.shards import read_shard
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, parse_json, write_json
from bytegolf.tools.fetch.mirrors import PIECE, Body, Mirror, PassingError, Remote

NOTE_BYTES, NOTE_SECONDS = 64 << 20, 5.0
"""Bytes, and seconds, after which what has been received is flushed and noted."""

ATTEMPTS, DELAY, LONGEST_DELAY = 6, 1.0, 60.0
"""Attempts in a row without a byte of progress; the seconds before the second, doubled each time; the most of them."""

PACE_SECONDS, PACE_BYTES = 60.0, 4096
"""A connection that gives fewer bytes than these in that time counts as dead."""

Result = TypeVar("Result")
Advance = Callable[[int], None]
"""Told how many bytes have come since the last call; fewer than none if some had to be dropped."""


class StoppedError(Exception):
    """Another download has failed, so that this one need not go on."""


@dataclass(frozen=True)
class Wanted:
    """A published file to fetch."""

    path: str
    """in the mirror and in the data folder, with slashes"""
    remote: Remote
    vocab_size: int | None = None
    """of a token shard: its ids are below"""


@dataclass(frozen=True)
class Attempts:
    """How failures that may pass are tried again; ``tell`` is given a sentence each time."""

    tell: Callable[[str], None] = lambda said: None
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def run(self, job: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
        """What ``job`` returns; called again while it raises `PassingError`, up to ATTEMPTS times without progress."""
        failed, before = 0, progress()
        while True:
            if self.stop.is_set():
                raise StoppedError
            try:
                return job()
            except PassingError as error:
                failed, before = (1 if progress() > before else failed + 1), progress()
                if failed >= ATTEMPTS:
                    raise BytegolfError(
                        f"{error}, {failed} times in a row: check the network and run the same command again, it goes "
                        "on where it was"
                    ) from error
                delay = min(LONGEST_DELAY, max(error.wait, DELAY * 2 ** (failed - 1)))
                self.tell(f"{error}; trying again in {delay:.0f} s")
                self.stop.wait(delay)


def part_path(target: Path) -> Path:
    """Where a file grows until it is whole."""
    return target.with_name(f".{target.name}.part")


class Part:
    """What has been received of a file, ``.NAME.part`` beside its target, with a note of it in ``.NAME.part.json``.

    Attributes:
        received: bytes, all of them checked or received by this object.
    """

    def __init__(self, target: Path, remote: Remote, advance: Advance = lambda count: None) -> None:
        """Take over what an earlier process received of this very file, if that is still what it was; ``advance`` is
        told how many bytes were read for that.
        """
        self.target, self.remote = target, remote
        self.path = part_path(target)
        self._note = target.with_name(f".{target.name}.part.json")
        self.received, self._hash = 0, hashlib.sha256()
        self._file: IO[bytes] | None = None
        self._noted_at, self._noted = time.monotonic(), 0
        with disk_errors(self.path, "read"):
            self._take_over(advance)

    def _take_over(self, advance: Advance) -> None:
        if not self._note.is_file() or not self.path.is_file():
            return
        try:
            note = parse_json(self._note.read_bytes())
            of, received, digest = note["of"], int(note["received"]), note["sha256"]
        except (ValueError, TypeError, KeyError):
            return
        unknown = self.remote.sha256 is None and self.remote.version is None  # no telling whether it has changed
        if unknown or of != self._of() or not 0 < received <= self.path.stat().st_size:
            return
        found, left = hashlib.sha256(), received
        with self.path.open("rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                found.update(block)
                advance(len(block))
                left -= len(block)
        if found.hexdigest() == digest:
            self.received, self._hash, self._noted = received, found, received

    def _of(self) -> dict[str, Any]:
        """What identifies the published file; a hash does so alone, whatever mirror it comes from."""
        if self.remote.sha256 is not None:
            return {"sha256": self.remote.sha256}
        return {"size": self.remote.size, "version": self.remote.version}

    @property
    def sha256(self) -> str:
        """The hash of what has been received."""
        return self._hash.hexdigest()

    def begin(self) -> None:
        """Open it behind what has been received; what a kill left there without a note is cut off."""
        self.close()
        make_folder(self.path.parent)
        with disk_errors(self.path):
            self._file = self.path.open("r+b" if self.received else "wb", buffering=0)
            self._file.truncate(self.received)
            self._file.seek(self.received)

    def write(self, data: bytes) -> None:
        """Append."""
        assert self._file is not None
        with disk_errors(self.target):
            view = memoryview(data)
            while view:  # a raw file may write less than all of it
                view = view[self._file.write(view) :]
        self._hash.update(data)
        self.received += len(data)
        now = time.monotonic()
        if self.received - self._noted >= NOTE_BYTES or now - self._noted_at >= NOTE_SECONDS:
            self.note()

    def note(self) -> None:
        """Flush, then write down what there is."""
        if self._file is None or self.received == self._noted:
            return
        with disk_errors(self.target):
            os.fsync(self._file.fileno())
        write_json(self._note, {"of": self._of(), "received": self.received, "sha256": self.sha256})
        self._noted_at, self._noted = time.monotonic(), self.received

    def close(self) -> None:
        """Note what there is, for whoever goes on."""
        if self._file is not None:
            try:
                self.note()
            finally:
                self._file.close()
                self._file = None

    def drop(self) -> None:
        """Forget all of it."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.received, self._hash, self._noted = 0, hashlib.sha256(), 0

    def finish(self) -> None:
        """Give it its name."""
        with disk_errors(self.target):
            if self._file is not None:
                os.fsync(self._file.fileno())
                self._file.close()
                self._file = None
            self.path.replace(self.target)
            self._note.unlink(missing_ok=True)


def download(
    mirror: Mirror, wanted: Wanted, part: Part, attempts: Attempts, advance: Advance = lambda count: None
) -> str:
    """Fetch a file, going on with ``part``; its SHA-256.

    Raises:
        BytegolfError: it cannot be had, or is not what was announced; what has been received stays for another try.
        StoppedError: ``attempts.stop`` was set meanwhile.
    """
    wrong: list[str] = []

    def once() -> None:
        try:
            if part.received != wanted.remote.size or not part.received:
                with mirror.open(wanted.path, part.received, wanted.remote.version) as body:
                    _receive(body, wanted, part, attempts.stop, advance)
            _check(wanted, part, mirror.name)
        except _WrongError as error:
            advance(-part.received)
            part.drop()
            wrong.append(str(error))
            if len(wrong) > 1:
                raise BytegolfError(f"{error}, twice: choose another mirror, or tell whoever keeps this one") from error
            raise PassingError(f"{error}") from error

    try:
        attempts.run(once, lambda: part.received)
        part.finish()
    finally:
        with contextlib.suppress(BytegolfError):  # a full disk has been told already
            part.close()
    return part.sha256


class _WrongError(Exception):
    """What was received is not what was announced."""


def _receive(body: Body, wanted: Wanted, part: Part, stop: threading.Event, advance: Advance) -> None:
    """Append what comes to ``part``, up to the end of the file."""
    size = wanted.remote.size
    if None not in (size, body.remote.size) and size != body.remote.size:
        raise PassingError(f"{wanted.path} has {body.remote.size} bytes now, not {size} as announced")
    size = body.remote.size if size is None else size
    if body.start != part.received:
        advance(-part.received)
        part.drop()
        if body.start:
            raise PassingError(f"{wanted.path} comes from byte {body.start} on, which was not asked for")
    part.begin()
    since, before = time.monotonic(), part.received
    while size is None or part.received < size:
        data = body.read(PIECE)
        if not data:
            break
        if size is not None and part.received + len(data) > size:
            raise _WrongError(f"{wanted.path} goes on behind its {size} bytes")
        part.write(data)
        advance(len(data))
        if stop.is_set():
            raise StoppedError
        if (now := time.monotonic()) - since >= PACE_SECONDS:
            if part.received - before < PACE_BYTES:
                raise PassingError(f"{wanted.path} hardly moves (less than {PACE_BYTES} bytes in a minute)")
            since, before = now, part.received
    if size is not None and part.received < size:
        raise PassingError(f"{wanted.path} broke off after {part.received} of {size} bytes")


def _check(wanted: Wanted, part: Part, where: str) -> None:
    """Raise unless what was received is the published file."""
    expected = wanted.remote.sha256
    if expected is not None and part.sha256 != expected:
        raise _WrongError(f"{wanted.path} from {where} has the SHA-256 {part.sha256[:16]}…, not {expected[:16]}…")
    if wanted.vocab_size is not None:
        try:
            read_shard(part.path, wanted.vocab_size)
        except BytegolfError as error:
            said = str(error).replace(str(part.path), "it")
            raise _WrongError(f"{wanted.path} from {where} is no good ({said})") from error
