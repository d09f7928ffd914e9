"""One published file onto the disk: a part that grows beside its target, checked, and renamed once it is right.

A kill leaves ``.NAME.part`` with a note of how many of its bytes were received and what these hash to. Whoever goes on
hashes the part first, cuts off what came after the note, and begins anew if the part is not what it was, or if the
published file is not the one that it is a part of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from bytegolf.data.shards import read_shard
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, parse_json, write_json
from bytegolf.network import TransientError
from bytegolf.tools.fetch.mirrors import Mirror, Remote

ATTEMPTS, DELAY, LONGEST_DELAY = 6, 1.0, 60.0
"""Attempts in a row without a byte of progress; the seconds before the second, doubled each time; the most of them."""

Result = TypeVar("Result")
Advance = Callable[[int], None]
"""Told how many bytes have come since the last call; fewer than none if some had to be dropped."""


class StoppedError(Exception):
    """Another download has failed, so this one need not go on."""


@dataclass(frozen=True)
class Wanted:
    """A published file to fetch."""

    path: str
    """in the mirror and in the data folder, with slashes"""
    remote: Remote
    vocab_size: int | None = None
    """of a token shard: its ids are below"""


@dataclass(frozen=True)
class Retries:
    """How transient failures are tried again; ``tell`` is given a sentence each time."""

    tell: Callable[[str], None] = lambda said: None
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def run(self, job: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
        """The result of ``job``, called again while it raises `TransientError`: ATTEMPTS times without progress."""
        failed, before = 0, progress()
        while True:
            if self.stop.is_set():
                raise StoppedError
            try:
                return job()
            except TransientError as error:
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


def hash_of(file: IO[bytes], advance: Advance, most: int | None = None) -> hashlib._Hash:
    """The SHA-256 of a file that is open, or of its first ``most`` bytes."""
    found = hashlib.sha256()
    while block := file.read(1 << 20 if most is None else min(1 << 20, most - file.tell())):
        found.update(block)
        advance(len(block))
    return found


class Part:
    """What has been received of a file, ``.NAME.part`` beside its target, with a note of it in ``.NAME.part.json``.

    Attributes:
        received: bytes, all of them checked or received by this object.
        came: bytes that came over the network since, also those that had to be dropped.
    """

    def __init__(self, target: Path, remote: Remote, advance: Advance = lambda count: None) -> None:
        """Take over what an earlier process received of this file, if it still is that; ``advance``: of reading it."""
        self.target, self.remote = target, remote
        self.path = part_path(target)
        self.received = self.came = 0
        self._note = target.with_name(f".{target.name}.part.json")
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None
        with disk_errors(self.path, "read"):
            self._take_over(advance)

    def _take_over(self, advance: Advance) -> None:
        try:
            note = parse_json(self._note.read_bytes())
            of, received, digest = note["of"], int(note["received"]), note["sha256"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return
        if of is None or of != self._of() or not self.path.is_file() or not 0 < received <= self.path.stat().st_size:
            return
        with self.path.open("rb") as file:
            found = hash_of(file, advance, received)
        if found.hexdigest() == digest:
            self.received, self._hash = received, found

    def _of(self) -> str | None:
        """What identifies the published file: its hash, whatever the mirror; size and version; or nothing (None)."""
        if self.remote.sha256 is not None:
            return self.remote.sha256
        return None if self.remote.version is None else f"{self.remote.size} bytes, {self.remote.version}"

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, at: int, data: bytes) -> int:
        """Append what comes from byte ``at`` on, then note it; returns by how many bytes the part has grown."""
        before = self.received
        if at != before:  # a server that can only begin at the beginning does so
            self.drop()
        with disk_errors(self.target):
            if self._file is None:
                make_folder(self.path.parent)
                self._file = self.path.open("r+b" if self.received else "wb")
                self._file.truncate(self.received)  # what a kill left there without a note
                self._file.seek(self.received)
            self._file.write(data)
            self._file.flush()  # a crash may still lose it, which its hash will tell
        self._hash.update(data)
        self.received += len(data)
        self.came += len(data)
        write_json(self._note, {"of": self._of(), "received": self.received, "sha256": self.sha256})
        return self.received - before

    def close(self) -> None:
        """Close it; what there is stays for whoever goes on."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a full disk, which has been told already
                self._file.close()
            self._file = None

    def drop(self) -> None:
        """Forget all of it."""
        self.close()
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.received, self._hash = 0, hashlib.sha256()

    def finish(self) -> None:
        """Give it its name."""
        if self._file is None:
            self.write(self.received, b"")
        assert self._file is not None
        with disk_errors(self.target):
            os.fsync(self._file.fileno())
            self.close()
            self.path.replace(self.target)
            self._note.unlink(missing_ok=True)


class _WrongError(Exception):
    """What was received is not what was announced."""


def download(
    mirror: Mirror, wanted: Wanted, part: Part, retries: Retries, advance: Advance = lambda count: None
) -> str:
    """Fetch a file, going on with ``part``; returns its SHA-256.

    Raises:
        BytegolfError: it cannot be had, or is not what was announced; what has been received stays for another try.
        StoppedError: ``retries.stop`` was set meanwhile.
    """
    wrong = 0

    def once() -> None:
        nonlocal wrong
        try:
            _receive(mirror, wanted, part, retries.stop, advance)
            _check(mirror, wanted, part)
        except _WrongError as error:
            advance(-part.received)
            part.drop()
            wrong += 1
            if wrong > 1:
                raise BytegolfError(f"{error}, twice: choose another mirror, or tell whoever keeps this one") from error
            if part.remote.sha256 is None:  # it may have been replaced since it was looked at
                part.remote = mirror.info(wanted.path)
            raise TransientError(str(error)) from error

    try:
        retries.run(once, lambda: part.received)
        part.finish()
    finally:
        part.close()
    return part.sha256


def _receive(mirror: Mirror, wanted: Wanted, part: Part, stop: threading.Event, advance: Advance) -> None:
    """Append what comes to ``part``, up to the end of the file."""
    size = part.remote.size
    for at, block in mirror.blocks(wanted.path, part.received, size):
        if size is not None and at + len(block) > size:
            raise _WrongError(f"{wanted.path} goes on behind its {size} bytes")
        advance(part.write(at, block))
        if stop.is_set():
            raise StoppedError
    if size is not None and part.received < size:
        raise TransientError(f"{wanted.path} broke off after {part.received} of {size} bytes")


def _check(mirror: Mirror, wanted: Wanted, part: Part) -> None:
    """Raise unless what was received is the published file."""
    expected = part.remote.sha256
    if expected is None and mirror.info(wanted.path) != part.remote:
        raise _WrongError(f"{wanted.path} of {mirror.name} has changed while it was fetched")
    if expected is not None and part.sha256 != expected:
        raise _WrongError(f"{wanted.path} from {mirror.name} has the SHA-256 {part.sha256[:16]}…, not {expected[:16]}…")
    if wanted.vocab_size is not None:
        try:
            read_shard(part.path, wanted.vocab_size)
        except BytegolfError as error:
            said = str(error).replace(str(part.path), "it")
            raise _WrongError(f"{wanted.path} from {mirror.name} is no good ({said})") from error
