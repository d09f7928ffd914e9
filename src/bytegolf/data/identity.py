"""What tells data sets apart, wherever they lie and whatever their folder is called."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bytegolf.data.manifest import dataset_entry, dataset_folder, tokenizer_entry
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, read_json_object, sha256
from bytegolf.folders import matching

SAMPLED = 1 << 20
"""Bytes of each end of a shard that stand for it where no hash of it is recorded."""


def data_hash(folder: Path, tokenizer: str) -> str:
    """The hash of a data set: its shards, statistics and tokenizer as the manifest has them, or else the shards."""
    entry = dataset_entry(folder, tokenizer)
    if entry is not None and entry.sha256:
        described = tokenizer_entry(folder, tokenizer)
        model = described.sha256 if described is not None else None
        return short_hash({"shards": entry.sha256, "stats": entry.stats, "tokenizer": model})
    shards = matching(dataset_folder(folder, tokenizer), "fineweb_*.bin")
    return short_hash({shard.name: sha256(shard) for shard in shards})


def short_hash(value: Any) -> str:
    """48 bits, in hexadecimal, of what plain data hash to."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class DataIdentity:
    """The splits that a run was trained and validated on."""

    folder: str
    """absolute, as it was then"""
    tokenizer: str
    train: str
    """a hash of the training shards"""
    val: str
    """a hash of the validation shards"""
    beside: str = ""
    """the folder as seen from the run's, so that both can be moved together"""

    @staticmethod
    def of(folder: Path, tokenizer: str) -> DataIdentity:
        """The splits in a data folder. Each is known by its shards' hashes in the manifest, where they are recorded;
        else by their sizes and ends, as 20 GB are not to be read before training begins.
        """
        entry = dataset_entry(folder, tokenizer)
        home = dataset_folder(folder, tokenizer)
        recorded = entry.sha256 if entry is not None else {}
        hashes = {}
        for split in ("train", "val"):
            shards = matching(home, f"fineweb_{split}_*.bin")
            hashes[split] = short_hash([[each.name, recorded.get(each.name) or _sample(each)] for each in shards])
        return DataIdentity(str(folder.absolute()), tokenizer, **hashes)

    @staticmethod
    def read(path: Path) -> DataIdentity | None:
        """What a run has recorded in the file ``path``; None if there is none. BytegolfError if it is damaged."""
        if not path.exists():
            return None
        told = read_json_object(path, "record of a run's data")
        known = {field.name: value for field in fields(DataIdentity) if isinstance(value := told.get(field.name), str)}
        if len(known) < len(fields(DataIdentity)):
            raise BytegolfError(f"the record of a run's data {path} is damaged: restore it from a copy")
        return DataIdentity(**known)


def _sample(shard: Path) -> list[Any]:
    """The size of a shard, and a hash of its ends."""
    with disk_errors(shard, "read"), shard.open("rb") as file:
        first = file.read(SAMPLED)
        size = file.seek(0, 2)
        file.seek(max(0, size - SAMPLED))
        return [size, hashlib.sha256(first + file.read()).hexdigest()]
