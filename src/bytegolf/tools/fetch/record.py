"""What was fetched into a data folder: a record, so that nothing is hashed or fetched twice, and its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from bytegolf.data.dataset import HEADER_BYTES, MANIFEST, TOKEN_BYTES, add_totals, read_manifest, read_shard
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, read_json, write_json
from bytegolf.tools.fetch.download import Advance, Wanted, hash_of
from bytegolf.tools.fetch.published import Published

RECORD = "fetched.json"


class Checked(TypedDict, total=False):
    """A file as it was when it was checked."""

    size: int
    modified: int
    """ns"""
    sha256: str


class Record:
    """The files of a data folder that were checked, with size, date and hash as they were then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Checked] = {}
        if (folder / RECORD).is_file():
            value = read_json(folder / RECORD, "record of what was fetched")
            files = value.get("files") if isinstance(value, dict) else None
            if not isinstance(files, dict) or not all(isinstance(one, dict) for one in files.values()):
                raise BytegolfError(f"{folder / RECORD} is no record of what was fetched: delete it to check all again")
            self._files = files

    def sha256(self, path: str) -> str | None:
        """The hash of a file that still is as it was when it was checked; None for any other."""
        entry, found = self._files.get(path), self._stat(path)
        if entry is None or found is None or (entry.get("size"), entry.get("modified")) != found:
            return None
        return str(entry.get("sha256"))

    def noted(self, path: str) -> str | None:
        """The hash that a file had when it was checked, whatever has become of it."""
        entry = self._files.get(path)
        return entry.get("sha256") if entry else None

    def size(self, path: str) -> int:
        """The size of a file that was checked."""
        return int(self._files[path]["size"])

    def add(self, path: str, sha256: str) -> None:
        """Note a file that has just been checked."""
        found = self._stat(path)
        if found is not None:
            self._files[path] = {"size": found[0], "modified": found[1], "sha256": sha256}
            write_json(self.folder / RECORD, {"files": dict(sorted(self._files.items()))})

    def _stat(self, path: str) -> tuple[int, int] | None:
        try:
            found = (self.folder / path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size, found.st_mtime_ns


def check(path: Path, wanted: Wanted, noted: str | None, advance: Advance) -> str | None:
    """The SHA-256 of a file that lies there already if it is the wanted one, as far as that can be told; else None.

    Where no hash is published, that of when it was checked before (``noted``) tells.
    """
    with disk_errors(path, "read"), path.open("rb") as file:
        found = hash_of(file, advance)
        size = file.tell()
    if wanted.remote.size not in (None, size) or (wanted.remote.sha256 or noted) not in (None, found.hexdigest()):
        return None
    if wanted.vocab_size is not None:
        try:
            read_shard(path, wanted.vocab_size)
        except BytegolfError:
            return None
    return found.hexdigest()


def write_manifest(out: Path, mirror: str, published: list[Published], record: Record) -> None:
    """Add fetched data sets to the manifest of ``out``, each with the shards that are there, not all published ones."""
    old: dict[str, Any] = read_manifest(out) if (out / MANIFEST).exists() else {"version": 1}
    datasets = [_dataset(one, mirror, record) for one in published]
    merge_manifest(out, {**old, "datasets": datasets, "tokenizers": [_tokenizer(one, record) for one in published]})


def merge_manifest(out: Path, new: dict[str, Any]) -> None:
    """Add data sets and tokenizers to the manifest of ``out``, in place of those of the same names."""
    old: dict[str, Any] = read_manifest(out) if (out / MANIFEST).exists() else {}
    merged = {**old, **new}
    for key in ("datasets", "tokenizers"):
        by_name = {entry.get("name"): entry for entry in [*old.get(key, []), *new[key]]}
        merged[key] = list(by_name.values())
    if merged != old:
        write_json(out / MANIFEST, merged)


def _dataset(one: Published, mirror: str, record: Record) -> dict[str, Any]:
    """The manifest's entry for a data set that was fetched."""
    stats: dict[str, Any] = dict(one.dataset["stats"])
    hashes: dict[str, str] = {}
    for split, count in (("train", one.train_shards), ("val", one.val_shards)):
        there = {file.path: hashed for file in one.shards(split, count) if (hashed := record.sha256(file.path))}
        tokens = sum((record.size(path) - HEADER_BYTES) // TOKEN_BYTES for path in there)
        if len(there) < count:  # what is said of all shards holds no more
            for key in [key for key in stats if key.endswith((f"_{split}", "_total"))]:
                del stats[key]
        elif stats.get(f"tokens_{split}", tokens) != tokens:
            raise BytegolfError(
                f"the {split} shards of {one.name} hold {tokens} tokens, but the manifest of {mirror} says "
                f"{stats[f'tokens_{split}']}: choose another mirror"
            )
        stats |= {f"files_{split}": len(there), f"tokens_{split}": tokens}
        hashes |= {Path(path).name: hashed for path, hashed in there.items()}
    add_totals(stats)
    entry = {**one.dataset, "path": one.folder, "stats": stats, "sha256": hashes}
    return {**entry, "fetched_from": mirror, "published_stats": one.dataset["stats"]}


def _tokenizer(one: Published, record: Record) -> dict[str, Any]:
    hashed = record.sha256(str(one.tokenizer.get("model_path")))
    return {**one.tokenizer, "sha256": hashed} if hashed else one.tokenizer
