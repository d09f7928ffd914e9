"""A data folder, as `bytegolf prepare` or the public scripts wrote it: its manifest, and the token shards in it.

``manifest.json`` names the data sets (one per tokenizer) with their statistics and the tokenizers with their
files; paths in it are relative to the folder. A folder without one is understood too:
``datasets/fineweb10B_<name>/`` beside ``tokenizers/``, or just a folder of shards.

A shard is a header of 256 little-endian int32 — magic 20240520, version 1, number of tokens, zeros — followed
by that many little-endian uint16 tokens. The shards of a split, in the order of their names, are one stream
of tokens in which every document is a BOS token followed by its own.

Example, the only document "Hi" in byte260, 1,030 bytes (byte value v is token v + 4, BOS is 1):

    offset 0     88 d8 34 01   01 00 00 00   03 00 00 00   then 1,012 zero bytes
                 magic         version 1     3 tokens
    offset 1024  01 00   4c 00   6d 00
                 BOS     H = 76  i = 109
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, matching, read_json, read_json_object, sha256, write_bytes

# --------------------------------------------------------------------------------------------------------- the manifest


MANIFEST = "manifest.json"
UNFINISHED = "prepare.unfinished"
"""A file that `prepare` writes first and removes last: it names the data sets, a line each, that may be half there."""

FETCHING = "fetch.unfinished"
"""The same for `fetch`."""

LOCK = ".lock"
"""Held in a data folder by whoever writes there, `prepare` or `fetch`."""

DATASET_PREFIX = "fineweb10B_"

SAMPLED = 1 << 20
"""Bytes of each end of a shard that stand for it where no hash of it is recorded."""

DIGEST = "documents_digest"
"""The manifest's key for a hash of all documents in order: h ← SHA-256(h ‖ SHA-256(text in UTF-8)) for each, from 32
zero bytes. Unlike a hash of everything at once, workers can hash the documents while this process chains the hashes,
and what a checkpoint must keep of it is 32 bytes."""


@dataclass(frozen=True)
class DatasetEntry:
    """What a manifest says of a data set, key by key. Public manifests say less than `prepare`'s."""

    name: str | None = None
    tokenizer_name: str | None = None
    tokenizer_kind: str | None = None
    path: str | None = None
    """relative to the manifest's folder, as are the patterns"""
    train_glob: str | None = None
    val_glob: str | None = None
    vocab_size: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    stats: dict[str, int] = field(default_factory=dict)
    """documents (``docs_``), shards (``files_``), ``tokens_``, ``bytes_`` that the tokens stand for and
    ``original_bytes_``, for train and val"""
    sha256: dict[str, str] = field(default_factory=dict)
    """of the shards, by their names"""

    @staticmethod
    def parse(value: dict[str, Any]) -> DatasetEntry:
        """The entry in a manifest that `read_manifest` has checked; what else it says is left out."""
        known = {each.name: value.get(each.name) for each in dataclasses.fields(DatasetEntry)}
        known["tokenizer_name"] = tokenizer_of(value)
        for key in ("stats", "sha256"):
            known[key] = known[key] if isinstance(known[key], dict) else {}
        return DatasetEntry(**known)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TokenizerEntry:
    """What a manifest says of a tokenizer, key by key."""

    name: str | None = None
    kind: str | None = None
    vocab_size: int | None = None
    path: str | None = None
    """of a byte tokenizer's description, relative to the manifest's folder, as are the others"""
    model_path: str | None = None
    """of a SentencePiece model"""
    sha256: str | None = None
    """of the model"""
    vocab_path: str | None = None
    spec: dict[str, Any] | None = None
    """`specs.TokenizerSpec.to_json`"""

    @staticmethod
    def parse(value: dict[str, Any]) -> TokenizerEntry:
        """The entry in a manifest that `read_manifest` has checked; what else it says is left out."""
        return TokenizerEntry(**{each.name: value.get(each.name) for each in dataclasses.fields(TokenizerEntry)})

    def to_json(self) -> dict[str, Any]:
        """The entry as a manifest has it: only what it says."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def add_totals(stats: dict[str, Any]) -> None:
    """Set the shards and tokens of a data set's ``stats`` to what both splits have together."""
    for what in ("files", "tokens"):
        stats[f"{what}_total"] = stats[f"{what}_train"] + stats[f"{what}_val"]


def check_data_folder(folder: Path) -> None:
    """Raise unless ``folder`` exists and a `prepare` or `fetch` has finished in it, if one has begun."""
    with disk_errors(folder, "read"):  # of a name that is too long, for instance
        there = folder.is_dir()
    if folder.is_file():
        raise BytegolfError(f"{folder} is a file, and no data folder: name one that `bytegolf prepare` made")
    if not there:
        raise BytegolfError(
            f"there is no data folder {folder}: make it with `bytegolf prepare --out {folder}`, or name another"
        )
    if not (folder / MANIFEST).exists():
        _check_finished(folder, None)


def unfinished(folder: Path, marker: str = UNFINISHED) -> list[str]:
    """The names of the data sets that a `prepare` (or `fetch`) has begun to write in ``folder`` and not finished."""
    path = folder / marker
    if not path.exists():
        return []
    with disk_errors(path, "read"):
        return path.read_text(encoding="utf-8").split()


def mark_unfinished(folder: Path, names: Iterable[str], marker: str = UNFINISHED) -> None:
    """Say that the data sets ``names`` are begun in ``folder`` and not finished; without any, take the marker away."""
    if text := "".join(f"{name}\n" for name in sorted(set(names))):
        write_bytes(folder / marker, text.encode())
    else:
        with disk_errors(folder / marker, "remove"):
            (folder / marker).unlink(missing_ok=True)


def _check_finished(folder: Path, dataset: str | None) -> None:
    """Raise if a data set, or None: any, is half there."""
    for marker, what, verb in ((UNFINISHED, "export", "prepare"), (FETCHING, "download", "fetch")):
        half = unfinished(folder, marker)
        if dataset in half or (dataset is None and half):
            raise BytegolfError(f"{folder} holds an unfinished {what}: run the same `bytegolf {verb}` again")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a data folder; an error in words where there is no folder or no manifest."""
    folder = Path(folder)
    check_data_folder(folder)
    path = folder / MANIFEST
    if not path.exists():
        raise BytegolfError(f"{folder} has no {MANIFEST}: `bytegolf prepare --out {folder}` makes one; or name another")
    manifest = read_json(path, "data manifest")
    if not has_lists(manifest):
        raise BytegolfError(f"{path} lists no datasets and tokenizers: it is no data manifest; run prepare again")
    for entry in [*manifest["datasets"], *manifest["tokenizers"]]:
        for key in ("name", "tokenizer_name", "tokenizer", "kind", "path", "model_path"):
            if not isinstance(value := entry.get(key), str | None):
                raise BytegolfError(f"{path} has {value!r} as a {key}: it is no data manifest; run prepare again")
        stats = entry.get("stats")
        if not isinstance(stats, dict | None):
            raise BytegolfError(f"{path} has {stats!r} as stats: it is no data manifest; run prepare again")
        for key, value in (stats or {}).items():
            known = key.startswith(_COUNTS) and value is not None
            if known and not (type(value) is int and 0 <= value < 1 << 63):
                raise BytegolfError(f"{path} has {value!r} as {key}: run prepare again")
    return manifest


_COUNTS = ("docs_", "tokens_", "files_", "bytes_", "original_bytes_")


def has_lists(manifest: Any) -> TypeGuard[dict[str, Any]]:
    """Whether the value of a manifest's JSON is an object with lists of objects for data sets and tokenizers."""
    lists = [manifest.get(key) for key in ("datasets", "tokenizers")] if isinstance(manifest, dict) else [None]
    return all(isinstance(part, list) and all(isinstance(entry, dict) for entry in part) for part in lists)


def tokenizer_of(dataset: dict[str, Any]) -> Any:
    """The name of a data set's tokenizer, which public manifests have under two keys."""
    return dataset.get("tokenizer_name", dataset.get("tokenizer"))


def dataset_entry(folder: str | Path, tokenizer_name: str) -> DatasetEntry | None:
    """The manifest's entry for a data set, by its suffix (``sp1024``) or its tokenizer's name (``sp_bpe_1024``).

    None where the folder has no manifest; an error where that has no such data set, or only half of it lies there.
    """
    folder = Path(folder)
    if set(tokenizer_name) & set("/\\\0") or len(tokenizer_name) > 200:  # it becomes part of file names
        raise BytegolfError(f"{tokenizer_name!r} is no tokenizer's name: give one of those in {folder}")
    check_data_folder(folder)
    if not (folder / MANIFEST).exists():
        return None
    entries = read_manifest(folder)["datasets"]
    named = [entry for entry in entries if entry.get("name") == DATASET_PREFIX + tokenizer_name]
    named += [entry for entry in entries if tokenizer_of(entry) == tokenizer_name]
    if named:
        _check_finished(folder, str(named[0].get("name")))
        return DatasetEntry.parse(named[0])
    names = ", ".join(str(entry.get("name", "?")).removeprefix(DATASET_PREFIX) for entry in entries) or "none"
    raise BytegolfError(
        f"{folder} holds no data for the tokenizer {tokenizer_name!r} (it has: {names}): choose one of "
        f"these, or run `bytegolf prepare … --tokenizer {tokenizer_name}`"
    )


def dataset_folder(folder: str | Path, tokenizer_name: str) -> Path:
    """Where the shards for a tokenizer lie: as the manifest says, or ``datasets/…<name>``, or the folder itself."""
    folder = Path(folder)
    entry = dataset_entry(folder, tokenizer_name)
    name = DATASET_PREFIX + tokenizer_name
    named = path_in(folder, entry.path) if entry else None
    places = [*([named] if named else []), folder / "datasets" / name, folder / name, folder]
    for place in places:
        # a folder of shards that names another tokenizer is not what was asked for
        if place == folder and folder.name.startswith(DATASET_PREFIX) and folder.name != name:
            continue
        if matching(place, "fineweb_*.bin"):
            return place
    raise BytegolfError(
        f"{folder} holds no token shards for {tokenizer_name!r} (neither in {places[0]} "
        f"nor in itself): run `bytegolf prepare --out {folder} --tokenizer {tokenizer_name}`"
    )


def path_in(folder: Path, name: str | None) -> Path | None:
    """The path that a manifest's entry names; None where it names none, or one that leads out of the folder, as another
    machine's does, and a stranger's may. Links are followed: who owns the folder made them.
    """
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    return folder / name


def tokenizer_entry(folder: str | Path, tokenizer_name: str) -> TokenizerEntry | None:
    """The manifest's entry for the tokenizer of a data set; None where the folder has no manifest."""
    dataset = dataset_entry(folder, tokenizer_name)
    if dataset is None:
        return None
    for entry in read_manifest(folder)["tokenizers"]:
        if entry.get("name") == dataset.tokenizer_name:
            return TokenizerEntry.parse(entry)
    raise BytegolfError(f"{folder} does not describe the tokenizer {dataset.tokenizer_name!r}: run prepare again")


def validation_bytes(folder: str | Path, tokenizer_name: str) -> int | None:
    """UTF-8 bytes of the validation documents before tokenization; None where nothing recorded them.

    The denominator of a score over the original bytes, which normalisation does not change.
    """
    entry = dataset_entry(folder, tokenizer_name)
    return None if entry is None else entry.stats.get("original_bytes_val")


def data_summary(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The statistics of each data set of a folder, by its tokenizer's short name (``byte260``)."""
    return {
        str(entry.get("name", "?")).removeprefix(DATASET_PREFIX): {
            "tokenizer": entry.get("tokenizer_name"),
            "vocab_size": entry.get("vocab_size"),
            **(entry.get("stats") or {}),
        }
        for entry in read_manifest(folder)["datasets"]
    }


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
        known = {
            field.name: value
            for field in dataclasses.fields(DataIdentity)
            if isinstance(value := told.get(field.name), str)
        }
        if len(known) < len(dataclasses.fields(DataIdentity)):
            raise BytegolfError(f"the record of a run's data {path} is damaged: restore it from a copy")
        return DataIdentity(**known)


def _sample(shard: Path) -> list[Any]:
    """The size of a shard, and a hash of its ends."""
    with disk_errors(shard, "read"), shard.open("rb") as file:
        first = file.read(SAMPLED)
        size = file.seek(0, 2)
        file.seek(max(0, size - SAMPLED))
        return [size, hashlib.sha256(first + file.read()).hexdigest()]


# --------------------------------------------------------------------------------------------------------------- shards


MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
TOKEN_BYTES = 2
SHARD_TOKENS = 100_000_000
MAX_SHARD_TOKENS = 2**31 - 1

EAGER_CHECK_TOKENS = 200_000_000
"""Up to this many tokens a stream's ids are all checked when it is opened (a fraction of a second)."""

OPEN_SHARDS = 256
"""So many shards a stream keeps mapped. Each holds a file descriptor, of which a process commonly has 1,024: the 10,000
shards of 10¹² tokens could not be open at once."""

_SCAN_TOKENS = 1 << 22


def shard_path(folder: Path, split: str, index: int) -> Path:
    """The file of a split's shard number ``index``."""
    return folder / f"fineweb_{split}_{index:06d}.bin"


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The shards of a split that lie in ``folder``, in order; empty if there are none."""
    return matching(folder, f"fineweb_{split}_*.bin")


def shard_header(tokens: int) -> bytes:
    """The first bytes of a shard of so many tokens."""
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens
    return header.tobytes()


def shard_bytes(tokens: int) -> int:
    """The size of a shard of so many tokens."""
    return HEADER_BYTES + TOKEN_BYTES * tokens


def read_shard(path: str | Path, vocab_size: int | None = None) -> NDArray[np.uint16]:
    """Memory-map a shard's tokens, little-endian uint16 of shape (tokens,), after checking its header and its length.

    With ``vocab_size`` every id is checked too, in one pass over the file. Errors name the file.
    """
    path = Path(path)
    with disk_errors(path, "read the shard"):
        size = path.stat().st_size
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER_BYTES), dtype=np.uint8)
    if len(header) < HEADER_BYTES:
        raise BytegolfError(
            f"{path} has {size} bytes, fewer than a shard's header of {HEADER_BYTES}: it is cut off or no "
            "token shard; make or fetch it again"
        )
    magic, version, count = (int(value) for value in header.view("<i4")[:3])
    if magic != MAGIC:
        raise BytegolfError(f"{path} begins with {magic}, not {MAGIC}: it is no token shard; make or fetch it again")
    if version != VERSION:
        raise BytegolfError(f"{path} has version {version}, but only version {VERSION} can be read: convert it")
    expected = shard_bytes(count)
    if count < 0 or size != expected:
        raise BytegolfError(
            f"{path} announces {count} tokens and so {expected} bytes, but has {size}: it is cut off or "
            "damaged; make or fetch it again"
        )
    if count == 0:  # nothing can be mapped
        return np.empty(0, dtype=np.uint16)
    with disk_errors(path, "read the shard"):
        tokens: NDArray[np.uint16] = np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
    if vocab_size is not None:
        for start in range(0, count, _SCAN_TOKENS):
            _check_ids(tokens[start : start + _SCAN_TOKENS], vocab_size, path)
    return tokens


def _check_ids(tokens: NDArray[np.uint16], vocab_size: int, path: Path) -> None:
    largest = int(tokens.max(initial=0))
    if largest >= vocab_size:
        raise BytegolfError(
            f"{path} holds the token {largest}, but the vocabulary has {vocab_size}, so ids go to "
            f"{vocab_size - 1}: use the tokenizer that the shard was made with"
        )


class TokenStream:
    """Several shards as one sequence of tokens, memory-mapped: opening costs a header per shard, reading what is read.

    Every id that is handed out is below ``vocab_size``: a stream of up to ``EAGER_CHECK_TOKENS`` is checked
    as a whole when it is opened, and a longer one (a scan would take minutes) slice by slice.
    """

    def __init__(self, paths: Sequence[str | Path], vocab_size: int) -> None:
        if not paths:
            raise BytegolfError("a token stream needs at least one shard: run `bytegolf prepare` to make some")
        self.paths = [Path(path) for path in paths]
        self.vocab_size = vocab_size
        self._mapped: dict[int, NDArray[np.uint16]] = {}
        self._counts = [len(read_shard(path)) for path in self.paths]
        self._ends = np.cumsum(self._counts, dtype=np.int64)
        if len(self) <= EAGER_CHECK_TOKENS:
            for path in self.paths:
                read_shard(path, vocab_size)

    def __len__(self) -> int:
        """The number of tokens."""
        return int(self._ends[-1])

    def slice(self, start: int, stop: int) -> NDArray[np.uint16]:
        """A copy of tokens ``start`` to ``stop`` (exclusive), uint16 of shape (stop - start,), across shards."""
        result = np.empty(stop - start, dtype=np.uint16)
        done = 0
        for index, first, end in self.parts(start, stop):
            part = result[done : done + end - first]
            part[:] = self._shard(index)[first:end]
            _check_ids(part, self.vocab_size, self.paths[index])
            done += len(part)
        return result

    def _shard(self, index: int) -> NDArray[np.uint16]:
        """A shard's tokens; those that were used longest ago give way."""
        shard = self._mapped.pop(index, None)
        if shard is None:
            shard = read_shard(self.paths[index])
            if len(shard) != self._counts[index]:
                raise BytegolfError(f"{self.paths[index]} was replaced while it was in use: start again")
        self._mapped[index] = shard
        if len(self._mapped) > OPEN_SHARDS:
            del self._mapped[next(iter(self._mapped))]
        return shard

    def parts(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Where tokens ``start`` to ``stop`` (exclusive) lie: shard numbers, each with first and end in there."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of a stream of {len(self)}")
        found = []
        index = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            border = int(self._ends[index]) - self._counts[index]
            until = min(stop, int(self._ends[index]))
            found.append((index, start - border, until - border))
            start, index = until, index + 1
        return found


def open_split(data_folder: str | Path, tokenizer_name: str, split: str, vocab_size: int) -> TokenStream:
    """The tokens of a split (``train`` or ``val``) in a data folder, an export's root or a folder of shards."""
    folder = dataset_folder(data_folder, tokenizer_name)
    paths = shard_paths(folder, split)
    if not paths:
        raise BytegolfError(f"{folder} has no fineweb_{split}_*.bin, so no {split} split: prepare or fetch it again")
    return TokenStream(paths, vocab_size)
