"""Where documents come from: files, the published documents, a named corpus, or the default one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bytegolf.data import blocks, corpus, named_corpora
from bytegolf.data.blocks import Block
from bytegolf.data.corpus import Remark
from bytegolf.data.document import Advance, Document, Reading
from bytegolf.data.split import DEFAULT
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, read_json
from bytegolf.folders import LeftOut, Tally

DOCUMENTS_ENDING, SIDECAR_ENDING = ".jsonl", ".source_manifest.json"
"""Of published documents, and of what was published about them, beside them."""

_SIDECAR_KEYS = {"docs_sha256": str, "docs_val": int, "num_docs": int}


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents, re-readable unless stdin is among them."""

    blocks: Callable[[], Iterator[Block]]
    size: int | None
    """bytes to read, for the progress bar"""
    description: dict[str, Any]
    """what the manifest says about it"""
    validation: str
    """its own validation split"""
    files: Sequence[str] = ()
    """what it reads, where these are the user's files"""
    once: bool = False
    """whether it can be read only once"""
    sha256: str | None = None
    """what the only one of ``files`` must hash to, as its sidecar says"""
    count: int | None = None
    """how many documents there must be, as its sidecar says"""
    digest: str | None = None
    """the hash that all documents must have, ``dataset.DIGEST``"""
    sizes: tuple[int | None, int | None] = (None, None)
    """how many bytes of text the training and the validation documents must be"""
    left_out: Sequence[LeftOut] = ()
    """what is in its folders and not read"""

    def documents(self, advance: Advance) -> Iterator[Document]:
        """One by one; ``advance`` is told how far they are read."""
        return blocks.documents(self.blocks(), advance)


def open_source(sources: Sequence[str], reading: Reading, remark: Remark = lambda said: None) -> Source:
    """The documents of ``sources``, of a named corpus (``corpus:NAME``), or of the default one where there are none.

    Beside ``docs.jsonl``, as it was published, may lie ``docs.source_manifest.json`` with its hash and the number of
    its first documents that are for validation. ``remark`` is told, once, if a text looks like something else.
    """
    if not sources:
        return _named(named_corpora.DEFAULT)
    if (name := named_corpora.named(sources)) is not None:
        return _named(named_corpora.find(name))
    tally, told = Tally(), False

    def remark_once(said: str) -> None:
        nonlocal told
        if not told:  # a folder may hold thousands of them
            remark(said)
        told = True

    files = corpus.expand(sources, tally)
    size = corpus.total_bytes(files)
    about = {"sources": list(sources), "files": len(files), "bytes": size, **dataclasses.asdict(reading)}
    sidecar = _sidecar(files)
    return Source(
        lambda: blocks.of_files(files, reading, remark_once),
        size,
        {**about, **sidecar},
        f"first:{sidecar['docs_val']}" if "docs_val" in sidecar else DEFAULT,
        files,
        size is None,
        sidecar.get("docs_sha256"),
        sidecar.get("num_docs"),
        left_out=tally.all(),
    )


def _sidecar(files: Sequence[str]) -> dict[str, Any]:
    """What was published about a file of documents; nothing if there is no such sidecar, or several files."""
    path = Path(files[0].removesuffix(DOCUMENTS_ENDING) + SIDECAR_ENDING)
    if len(files) > 1 or not files[0].endswith(DOCUMENTS_ENDING) or not path.is_file():
        return {}
    value = read_json(path, "documents' sidecar")
    if not isinstance(value, dict):
        raise BytegolfError(f"{path} holds no object of keys: get it again")
    for key, kind in _SIDECAR_KEYS.items():
        found = value.get(key)
        if found is not None and (type(found) is not kind or found in (0, "")):
            raise BytegolfError(f"{path}: {key} is {found!r}: get the file again")
    return {key: value[key] for key in (*_SIDECAR_KEYS, "shuffle_seed", "selection_seed") if value.get(key) is not None}


def _named(found: named_corpora.NamedCorpus) -> Source:
    path = found.fetch()
    size = sum(len(document.data) for document in found.read(path))

    def documents(advance: Advance) -> Iterator[Document]:
        for document in found.read(path):
            advance(len(document.data))
            yield document

    return Source(lambda: blocks.of_documents(documents), size, {"name": found.name, **found.about()}, found.validation)


@contextlib.contextmanager
def checked(source: Source) -> Iterator[Callable[[], None]]:
    """While the context runs, hash the file whose hash is known, beside everything else; what it gives waits for that,
    and raises if the file is another one.
    """
    if source.sha256 is None:
        yield lambda: None
        return
    path, wanted, stop = Path(source.files[0]), source.sha256, threading.Event()

    def run() -> str:
        found = hashlib.sha256()
        with disk_errors(path, "read"), path.open("rb") as file:
            while not stop.is_set() and (piece := file.read(1 << 20)):
                found.update(piece)
        return found.hexdigest()

    def check() -> None:
        if (found := future.result()) != wanted:
            raise BytegolfError(
                f"{path} has the SHA-256 {found[:16]}…, but its sidecar says {wanted[:16]}…: get both again"
            )

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        try:
            yield check
        finally:
            stop.set()
