"""One published file onto the disk, from wherever it lies: hub, web server or folder, each an fsspec file system.

What may pass by itself (a dropped connection, a busy server) is raised as `TransientError`; everything else is a
``BytegolfError``.

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
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from bytegolf import __version__
from bytegolf.data.dataset import read_shard
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, parse_json, write_json
from bytegolf.network import TransientError, check_proxy, required, translated

# --------------------------------------------------------------------------------------------------------------- places


REPOSITORY, ROOT = "willdepueoai/parameter-golf", "datasets"
"""Where the data of the competition is published: a dataset repository on the hub, and the folder in it."""

TIMEOUT = 20.0
"""Seconds without a byte after which a connection to a web server counts as dead."""

BLOCK_SECONDS = 1800.0
"""Seconds that one block may take: a connection that hardly moves counts as dead, too."""

BLOCK_BYTES = 8 << 20
"""Bytes that one request asks for: the most that a kill can cost for each file that is on its way."""


@dataclass(frozen=True)
class Remote:
    """What is known of a published file before it is fetched."""

    size: int | None
    """bytes; None where the server does not say"""
    sha256: str | None = None
    version: str | None = None
    """changes when the file does: an entity tag, a date or a blob's name; None where there is none"""


@dataclass(frozen=True)
class Mirror:
    """A folder of a file system that has the published layout; paths are those of the data folder."""

    name: str
    """for messages and records: an address, a folder, or repository and commit"""
    fs: Any = field(repr=False)
    """fsspec's AbstractFileSystem"""
    root: str
    questions: int = 8
    """how many files may be asked about at once"""

    def info(self, path: str) -> Remote:
        """What is known of a file; a BytegolfError if it is not there."""
        with translated(f"{self.name}/{path}"):
            found = self.fs.info(f"{self.root}/{path}")
        if found["type"] != "file":
            raise BytegolfError(f"{self.name} has no file {path}: check the mirror, --repo and --root")
        lfs = found.get("lfs") or {}  # on the hub: large files, whose hash is known
        tag = found.get("ETag") or ""
        # a weak tag may stay although bytes change
        version = found.get("blob_id") or (tag if not tag.startswith("W/") else None)
        version = version or found.get("Last-Modified") or found.get("mtime")
        return Remote(found["size"], lfs.get("sha256"), None if version is None else str(version))

    def blocks(self, path: str, start: int, size: int | None) -> Iterator[tuple[int, bytes]]:
        """The file from byte ``start`` on in pieces, each with its offset; from byte 0 where a server cannot do better.

        ``size`` is the file's. What a server sends behind it is not read, so a file that does not end does no harm.
        """
        at, place = start, f"{self.root}/{path}"
        with translated(f"{self.name}/{path}"):
            # without fsspec's cache, a read is one request for the bytes from here to there
            with self.fs.open(place, "rb", cache_type="none") as source:
                try:
                    source.seek(start)
                    while size is None or at < size:
                        count = BLOCK_BYTES if size is None else min(BLOCK_BYTES, size - at)
                        block = source.read(count)
                        if not block:
                            return
                        if size is not None and len(block) != count:
                            raise TransientError(f"{path} came in {len(block)} bytes where {count} were asked for")
                        yield at, block
                        at += len(block)
                    return
                except ValueError:  # fsspec's, of a server without ranges
                    if not start and not at:
                        raise
            with self.fs.open(place, "rb", block_size=0) as source:
                at = 0
                while (size is None or at < size) and (block := source.read(BLOCK_BYTES)):
                    yield at, block
                    at += len(block)

    def read(self, path: str, most: int) -> bytes:
        """A small file, whole; a BytegolfError if it has more than ``most`` bytes."""
        data = bytearray()
        size = self.info(path).size
        for at, block in self.blocks(path, 0, None if size is None else min(size, most + 1)):
            data[at:] = block
            if len(data) > most:
                raise BytegolfError(f"{path} of {self.name} does not end: choose another mirror")
        if size not in (None, len(data)):
            raise TransientError(f"{path} broke off after {len(data)} of {size} bytes")
        return bytes(data)


def open_hub(repository: str, root: str) -> Mirror:
    """The folder ``root`` of a dataset repository on the hub as it is now; later commits do not mix in.

    $HF_ENDPOINT, $HF_TOKEN and $HF_HUB_OFFLINE mean what they mean to huggingface_hub.
    """
    hub = _required("huggingface_hub", "fetching from the hub")
    root = root.strip("/")
    with translated(f"the hub's dataset {repository}"):
        commit = hub.HfApi().repo_info(repository, repo_type="dataset").sha
    place = f"datasets/{repository}@{commit}/{root}".rstrip("/")
    name = f"hf://{place.replace(commit, commit[:12])}"
    return Mirror(name, hub.HfFileSystem(skip_instance_cache=True), place, questions=1)  # it lists folders by itself


def open_mirror(where: str, root: str) -> Mirror:
    """The mirror at an address or in a folder; ``root``: the folder in it that holds manifest.json."""
    try:
        parts = urllib.parse.urlsplit(where)
        _ = parts.port, (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise BytegolfError(f"--mirror {where} is no address ({error}): correct it") from error
    if parts.scheme in ("http", "https"):
        if not where.isprintable():  # what parses it would drop them, and look elsewhere
            raise BytegolfError(f"--mirror {where}: an address has no line breaks or control characters: correct it")
        check_proxy(where)
        if not parts.hostname:
            raise BytegolfError(f"--mirror {where} names no host: give an address such as https://host/folder")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise BytegolfError(f"--mirror {parts.scheme}://{parts.hostname}: give an address without password and '?'")
        address = "/".join(part for part in (where.rstrip("/"), root.strip("/")) if part)
        return Mirror(address, _web(), address)
    if parts.scheme and "://" in where and parts.scheme != "file":
        raise BytegolfError(f"--mirror {where}: give an http or https address, or a folder")
    folder = _folder(where) / root
    if not folder.is_dir():
        raise BytegolfError(
            f"--mirror {where}: there is no folder {folder}: give the one that holds manifest.json, or an address that "
            "begins with http:// or https://"
        )
    local = _required("fsspec.implementations.local", "fetching").LocalFileSystem(skip_instance_cache=True)
    return Mirror(str(folder.resolve()), local, str(folder.resolve()))


def _folder(where: str) -> Path:
    """A folder by its path or by an address, in which %20 is a space."""
    if not where.startswith("file://"):
        return Path(where).expanduser()
    path = where.removeprefix("file://").removeprefix("localhost")
    return Path(path if Path(path).is_dir() else urllib.request.url2pathname(path))


def _web() -> Any:
    """fsspec's file system of web servers."""
    aiohttp = _required("aiohttp", "fetching from a web server")
    module = _required("fsspec.implementations.http", "fetching from a web server")

    async def not_downgraded(session: Any, context: Any, request: Any) -> None:
        target = request.response.headers.get("Location", "")
        if request.url.scheme == "https" and urllib.parse.urlsplit(target).scheme == "http":
            raise BytegolfError(f"{request.url} redirects to http:, which is not followed: choose another mirror")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(not_downgraded)
    options = {
        "timeout": aiohttp.ClientTimeout(total=BLOCK_SECONDS, connect=TIMEOUT, sock_read=TIMEOUT),
        "headers": {"User-Agent": f"bytegolf/{__version__}", "Accept-Encoding": "identity"},  # the bytes as they are
        "trust_env": True,  # proxies
        "trace_configs": [trace],
    }
    return module.HTTPFileSystem(client_kwargs=options, skip_instance_cache=True)


def _required(module: str, doing: str) -> Any:
    return required(module, doing, "give a folder with the same layout as --mirror")


# ------------------------------------------------------------------------------------------------------------ downloads


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
