"""Data sets that are not published, byte260 above all: made by `prepare` from the documents that were fetched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bytegolf.data.dataset import DATASET_PREFIX, MANIFEST, read_manifest
from bytegolf.data.prepare import prepare
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, write_bytes
from bytegolf.folders import LeftOut
from bytegolf.tools.fetch.published import DOCUMENTS
from bytegolf.tools.fetch.record import merge_manifest

WORK = "export.unfinished"
"""The folder in which `prepare` makes a data set before it joins the rest."""


def is_made(out: Path, name: str, documents: str | None) -> bool:
    """Whether ``out`` has a data set that was made from the documents of that hash; an error if it was from others."""
    entries = read_manifest(out)["datasets"] if (out / MANIFEST).exists() else []
    for entry in entries:
        if entry.get("name") == DATASET_PREFIX + name:
            if "documents" not in entry:
                raise BytegolfError(f"{out} holds {entry['name']} of other documents: choose another --out")
            files = [out / entry["path"] / file for file in entry["sha256"]]
            return documents == entry["documents"] and all(file.is_file() for file in files)
    return False


def make(validation: int, names: list[str], out: Path, documents: str, quiet: bool) -> list[LeftOut]:
    """`prepare` data sets from the documents, whose hash is ``documents`` and the first ``validation`` of which are
    held out, in a folder of their own; move them into ``out`` when they are whole. Gives the documents without text.

    A kill at any point leaves something to go on with: `prepare`'s own state, then what is not moved yet.
    """
    work = out / WORK
    made_from = work / "documents.sha256"
    if work.exists() and not (made_from.is_file() and made_from.read_text() == documents):
        _remove(work)  # of documents that have been replaced
    write_bytes(made_from, documents.encode())
    prepare([str(out / DOCUMENTS)], work, names, f"first:{validation}", quiet=quiet)
    made = read_manifest(work)
    for entry in made["datasets"]:
        entry["documents"] = documents
        _move(work / entry["path"], out / entry["path"])
    for path in sorted((work / "tokenizers").iterdir()):
        _move(path, out / "tokenizers" / path.name)
    merge_manifest(out, made)
    _remove(work)
    return [LeftOut(**one) for one in made["left_out"]]


def _move(source: Path, target: Path) -> None:
    if not source.exists():  # before a kill
        return
    make_folder(target.parent)
    if target.is_dir():
        _remove(target)
    with disk_errors(target):
        source.replace(target)


def _remove(folder: Path) -> None:
    with disk_errors(folder, "remove"):
        shutil.rmtree(folder)


def add_original_bytes(out: Path) -> None:
    """Give published shards, for scores over the original text, the bytes that what was made of the documents knows."""
    manifest: dict[str, Any] = read_manifest(out) if (out / MANIFEST).exists() else {"datasets": []}
    made = [entry["stats"] for entry in manifest["datasets"] if "documents" in entry]
    for entry in manifest["datasets"]:
        published = entry.get("published_stats") or {}
        for stats in made:
            for split in ("val", "train"):
                same = all(published.get(key) == stats[key] for key in (f"docs_{split}", "docs_total"))
                if same and entry["stats"]["files_" + split] == published.get("files_" + split):
                    entry["stats"]["original_bytes_" + split] = stats["original_bytes_" + split]
    if made:
        merge_manifest(out, manifest)
