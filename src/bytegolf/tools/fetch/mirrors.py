"""Places that have the published files: the Hugging Face hub, a web server or a folder, each an fsspec file system.

What may pass by itself (a dropped connection, a busy server) is raised as `TransientError`; everything else is a
``BytegolfError``.
"""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bytegolf import __version__
from bytegolf.errors import BytegolfError
from bytegolf.network import TransientError, check_proxy, required, translated

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
