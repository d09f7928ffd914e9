"""Where published files can be had: a folder or a web server with the published layout, read from any byte on.

A mirror says what it knows of files before they are fetched (`look`) and hands out their bytes (`open`). What may pass
by itself — a dropped connection, a busy server — is raised as `PassingError`; everything else is a ``BytegolfError``.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bytegolf import __version__
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors

TIMEOUT = 20.0
"""Seconds without a byte after which a connection counts as dead."""

PIECE = 1 << 18
"""Bytes read at once, at most."""


@dataclass(frozen=True)
class Remote:
    """What is known of a published file before it is fetched."""

    size: int | None
    """bytes; None where the server does not say"""
    sha256: str | None = None
    version: str | None = None
    """changes when the file does: an entity tag or a date; None where there is none"""


@dataclass(frozen=True)
class Body:
    """A file that is being read."""

    start: int
    """where it begins: as asked for, or 0 where the server cannot do that or has another version now"""
    remote: Remote
    read: Callable[[int], bytes]
    """the next bytes, as many as there are at once and at most so many; none at the end"""


class PassingError(Exception):
    """Something that may go away by itself; ``wait``: the seconds that the server asked to wait."""

    def __init__(self, said: str, wait: float = 0.0) -> None:
        super().__init__(said)
        self.wait = wait


@runtime_checkable
class Mirror(Protocol):
    """A place that has the published files; paths are those of the data folder."""

    @property
    def name(self) -> str:
        """For messages and records: an address, a folder, or repository and commit."""

    @property
    def at_once(self) -> int:
        """For how many files one `look` may ask."""

    def look(self, paths: Sequence[str]) -> dict[str, Remote]:
        """What is known of these files; a BytegolfError if one is not there."""

    def open(self, path: str, start: int = 0, version: str | None = None) -> contextlib.AbstractContextManager[Body]:
        """Read a file from byte ``start`` on, or from 0 if it is no longer of that version."""


@dataclass(frozen=True)
class FolderMirror:
    """A folder, local or mounted."""

    folder: Path
    at_once: int = 64

    @property
    def name(self) -> str:
        """The folder, in full."""
        return str(self.folder.resolve())

    def look(self, paths: Sequence[str]) -> dict[str, Remote]:
        """Sizes and dates of files."""
        return {path: self._remote(path) for path in paths}

    def _remote(self, path: str) -> Remote:
        if not (self.folder / path).is_file():
            raise BytegolfError(f"there is no {self.folder / path}: check --mirror and --root")
        with disk_errors(self.folder / path, "fetch"):
            found = (self.folder / path).stat()
        return Remote(found.st_size, version=f"{found.st_mtime_ns}")

    @contextlib.contextmanager
    def open(self, path: str, start: int = 0, version: str | None = None) -> Iterator[Body]:
        """A file from a byte on."""
        remote = self._remote(path)
        with disk_errors(self.folder / path, "fetch"), (self.folder / path).open("rb", buffering=0) as file:
            start = start if version in (None, remote.version) else 0
            file.seek(start)
            yield Body(start, remote, file.read)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, never from https to http, and shows credentials to the first host alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise BytegolfError(
                f"{req.full_url} redirects to {new.scheme}:, which is not followed: choose another mirror"
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and old.netloc == new.netloc and req.has_header("Authorization"):
            request.add_unredirected_header("Authorization", req.get_header("Authorization"))
        return request


def _opener() -> urllib.request.OpenerDirector:
    """Of http and https, proxies included, but not of ftp: and file:, to which a server must not be able to point."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


@dataclass(frozen=True)
class HttpMirror:
    """Files below an address."""

    address: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """sent along, to the first host only"""
    at_once: int = 1
    _opener: urllib.request.OpenerDirector = field(default_factory=_opener, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The address."""
        return self.address

    def look(self, paths: Sequence[str]) -> dict[str, Remote]:
        """Sizes and entity tags, as the server tells them with the first byte."""
        found = {}
        for path in paths:
            with self._open(path, "bytes=0-0", None) as body:
                found[path] = body.remote
        return found

    def open(self, path: str, start: int = 0, version: str | None = None) -> contextlib.AbstractContextManager[Body]:
        """A file from a byte on."""
        return self._open(path, f"bytes={start}-" if start else None, version)

    def url(self, path: str) -> str:
        """The address of a file."""
        return f"{self.address}/{urllib.parse.quote(path)}"

    @contextlib.contextmanager
    def _open(self, path: str, wanted: str | None, version: str | None) -> Iterator[Body]:
        request = urllib.request.Request(self.url(path), headers={"User-Agent": f"bytegolf/{__version__}"})
        request.add_header("Accept-Encoding", "identity")  # a length is that of the file, and a range a range of it
        for name, value in self.headers.items():
            request.add_unredirected_header(name, value)
        if wanted is not None:
            request.add_header("Range", wanted)
            if version is not None:
                request.add_header("If-Range", version)
        with http_errors(request.full_url), contextlib.ExitStack() as stack:
            try:
                response = stack.enter_context(self._opener.open(request, timeout=TIMEOUT))
                body = _body(response, request.full_url)
                fits = version in (None, body.remote.version) or not body.start
            except urllib.error.HTTPError as error:
                if wanted is None or error.code != 416:  # a range behind the end: it is empty, or has become shorter
                    raise
                fits = False
            if fits:
                yield body
                return
        with self._open(path, None, None) as body:  # also for a server that knows ranges but not If-Range
            yield body


def _body(response: Any, url: str) -> Body:
    """What a response's headers say of it."""
    headers = response.headers
    if headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise BytegolfError(f"{url} comes {headers['Content-Encoding']}-encoded, not as it is: choose another mirror")
    version = headers.get("ETag")
    if version is None or version.startswith("W/"):  # a weak tag may stay although bytes change
        version = headers.get("Last-Modified")
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return Body(0, Remote(_number(headers.get("Content-Length")), version=version), response.read1)
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", headers.get("Content-Range", "").strip())
    if found is None:
        raise PassingError(f"{url} sends a part without saying which")
    return Body(int(found[1]), Remote(_number(found[3]), version=version), response.read1)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,18}", text.strip()) else None


@contextlib.contextmanager
def http_errors(url: str) -> Iterator[None]:
    """Turn what a request to ``url`` raises into `PassingError`, or a sentence where trying again would not help."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise _refusal(error, url) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise BytegolfError(f"{url}: the certificate is not valid ({error.reason.verify_message})") from error
        raise PassingError(f"{url} cannot be reached ({error.reason})") from error
    except TimeoutError as error:
        raise PassingError(f"{url} sent nothing for {TIMEOUT:.0f} s") from error
    except (http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
        raise PassingError(f"{url} broke off ({error or type(error).__name__})") from error


def _refusal(error: urllib.error.HTTPError, url: str) -> Exception:
    code = error.code
    with contextlib.suppress(OSError):
        error.close()
    if code in (408, 425, 429) or code >= 500:
        return PassingError(f"{url} answers {code}", float(_number(error.headers.get("Retry-After")) or 0))
    if code in (404, 410):
        return BytegolfError(f"{url} does not exist ({code}): check the mirror, --repo and --root")
    if code in (401, 403):
        return BytegolfError(f"{url} refuses access ({code}): log in (`hf auth login`) or choose another mirror")
    why = "redirects in a circle, or to nothing safe" if 300 <= code < 400 else f"answers {code}"
    return BytegolfError(f"{url} {why}: check the address, or choose another mirror")


def open_mirror(where: str, root: str) -> FolderMirror | HttpMirror:
    """The mirror at an address or in a folder; ``root``: the folder in it that holds manifest.json."""
    try:
        parts = urllib.parse.urlsplit(where)
        _ = parts.port, (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise BytegolfError(f"--mirror {where} is no address ({error}): correct it") from error
    if parts.scheme in ("http", "https"):
        if parts.username or parts.password or parts.query or parts.fragment or not parts.hostname:
            raise BytegolfError(f"--mirror {parts.scheme}://{parts.hostname}: give an address without password and '?'")
        return HttpMirror("/".join(part for part in (where.rstrip("/"), root.strip("/")) if part))
    if parts.scheme and "://" in where and parts.scheme != "file":
        raise BytegolfError(f"--mirror {where}: give an http or https address, or a folder")
    folder = Path(where.removeprefix("file://")).expanduser() / root
    if not folder.is_dir():
        raise BytegolfError(f"--mirror {where}: there is no folder {folder}: give the one that holds manifest.json")
    return FolderMirror(folder)
