"""What a mirror's manifest offers, and which files one needs of it: the layout of the public scripts.

``manifest.json`` names data sets with how many shards they have, and tokenizers with their files; beside it lie
``docs_selected.jsonl`` with its sidecar ``docs_selected.source_manifest.json``. It comes from elsewhere, so nothing in
it is believed: paths in it must stay inside the data folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bytegolf.data.dataset import DATASET_PREFIX, MANIFEST, has_lists, shard_path
from bytegolf.data.sources import DOCUMENTS_ENDING, SIDECAR_ENDING
from bytegolf.data.specs import parse_tokenizers
from bytegolf.errors import BytegolfError
from bytegolf.files import matching, parse_json
from bytegolf.tools.fetch.download import Mirror, Retries

DOCUMENTS = f"docs_selected{DOCUMENTS_ENDING}"
DOCUMENTS_SIDECAR = f"docs_selected{SIDECAR_ENDING}"

TRAIN_SHARDS = 80
"""Fetched of a data set unless another number is asked for: 8 billion tokens, as the public scripts do."""

MANIFEST_BYTES = 64 << 20
"""Of the longest manifest that is read."""

MOST_SHARDS = 1_000_000
"""The number in a shard's name has six digits."""

_FOLDERS = ("datasets", "tokenizers")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """A file that a manifest names."""

    path: str
    """in the mirror and in the data folder, with slashes"""
    sha256: str | None = None
    vocab_size: int | None = None
    """of a token shard: its ids are below"""


@dataclass(frozen=True)
class Published:
    """A data set that can be fetched, with its tokenizer."""

    dataset: dict[str, Any]
    tokenizer: dict[str, Any]
    folder: str
    """of the shards, relative to the manifest's"""
    train_shards: int
    val_shards: int
    vocab_size: int

    @property
    def name(self) -> str:
        """``fineweb10B_sp1024``."""
        return str(self.dataset["name"])

    def shards(self, split: str, count: int) -> list[File]:
        """The first shards of a split."""
        hashes = self.dataset.get("sha256")
        paths = [shard_path(Path(self.folder), split, index) for index in range(count)]
        known = hashes if isinstance(hashes, dict) else {}
        return [File(path.as_posix(), _sha256(known.get(path.name)), self.vocab_size) for path in paths]

    def tokenizer_files(self) -> Iterator[File]:
        """The tokenizer's model, vocabulary or description."""
        for key in ("model_path", "vocab_path", "path"):
            if self.tokenizer.get(key) is not None:
                hashed = _sha256(self.tokenizer.get("sha256")) if key == "model_path" else None
                yield File(safe_path(self.tokenizer[key], f"the tokenizer {self.tokenizer.get('name')}"), hashed)


def _json(data: bytes, what: str) -> Any:
    try:
        return parse_json(data)
    except ValueError as error:
        raise BytegolfError(f"{what} is not valid JSON ({error}): choose another mirror") from error


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """A published manifest; ``where`` it is from."""
    value = _json(data, f"the manifest.json of {where}")
    if not has_lists(value):
        raise BytegolfError(f"the manifest.json of {where} lists no datasets and tokenizers: choose another mirror")
    return value


def find(manifest: dict[str, Any], variant: str, where: str) -> Published | None:
    """The data set of a short name or of a tokenizer's name; None where the manifest has none."""
    entries = [entry for entry in manifest["datasets"] if entry.get("name") == DATASET_PREFIX + variant]
    entries += [entry for entry in manifest["datasets"] if entry.get("tokenizer_name") == variant]
    if not entries:
        return None
    entry, what = entries[0], f"the data set {variant} of {where}"
    if not _PART.fullmatch(str(entry.get("name"))):
        raise BytegolfError(f"{what} is called {entry.get('name')!r}, which is no folder's name: choose another mirror")
    tokenizers = [one for one in manifest["tokenizers"] if one.get("name") == entry.get("tokenizer_name")]
    if not tokenizers:
        raise BytegolfError(f"{what} has no tokenizer in its manifest.json: choose another mirror")
    size = entry.get("vocab_size", tokenizers[0].get("vocab_size", 1 << 16))
    if type(size) is not int or not 0 < size <= 1 << 16:
        raise BytegolfError(f"{what}: vocab_size is {size!r}, but shards hold ids below 65536: choose another mirror")
    stats = entry.get("stats")
    numbers = stats if isinstance(stats, dict) else {}
    return Published(
        entry,
        tokenizers[0],
        safe_path(entry.get("path") or f"datasets/{entry['name']}", what),
        _count(numbers.get("files_train"), f"{what}: files_train"),
        _count(numbers.get("files_val"), f"{what}: files_val", least=1),
        size,
    )


def _count(value: Any, what: str, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= MOST_SHARDS:
        raise BytegolfError(f"{what} is {value!r}, not a number from {least} to {MOST_SHARDS}: choose another mirror")
    return value


def safe_path(value: Any, what: str) -> str:
    """A path of a manifest, below ``datasets/`` or ``tokenizers/`` and of plain names: it can lead nowhere else."""
    parts = value.split("/") if isinstance(value, str) else []
    if len(parts) < 2 or parts[0] not in _FOLDERS or not all(_PART.fullmatch(part) for part in parts):
        raise BytegolfError(
            f"{what} names the path {value!r}, which is not one below datasets/ or tokenizers/: choose another mirror"
        )
    return "/".join(parts)


def _sha256(value: Any) -> str | None:
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else None


@dataclass(frozen=True)
class Documents:
    """What the sidecar says of the published documents."""

    validation: int
    """how many, from the first on, are held out"""
    sha256: str | None


def parse_sidecar(data: bytes, where: str) -> Documents:
    """The sidecar of the documents; ``where`` it is from."""
    value = _json(data, where)
    if not isinstance(value, dict) or type(value.get("docs_val")) is not int or value["docs_val"] < 1:
        raise BytegolfError(f"{where} says no docs_val, the number of validation documents: choose another mirror")
    return Documents(value["docs_val"], _sha256(value.get("docs_sha256")))


@dataclass(frozen=True)
class Offer:
    """What a mirror has of what is wanted."""

    mirror: Mirror
    variants: dict[str, Published | None]
    """the data sets by their short names; None for those that are not published as shards"""
    train_shards: int | None
    documents: Documents | None
    """what the documents' sidecar says; None if they are not wanted"""
    sidecar: bytes = field(default=b"", repr=False)

    @property
    def published(self) -> list[Published]:
        """The data sets that are published."""
        return [one for one in self.variants.values() if one is not None]

    @property
    def missing(self) -> list[str]:
        """The names of those that are not."""
        return [name for name, one in self.variants.items() if one is None]

    def wanted_shards(self, one: Published) -> int:
        """How many training shards of a data set are wanted."""
        return min(TRAIN_SHARDS, one.train_shards) if self.train_shards is None else self.train_shards

    def files(self, out: Path) -> list[File]:
        """All files to have in ``out``: tokenizers and validation first, then training, then documents."""
        found: list[File] = []
        for one in self.published:
            found += [*one.tokenizer_files(), *one.shards("val", one.val_shards)]
        for one in self.published:
            shards = one.shards("train", one.train_shards)
            found += shards[: self.wanted_shards(one)]
            # further ones that lie there would be read as well, so they must be right too
            there = {path.name for path in matching(out / one.folder, "fineweb_*.bin")}
            found += [file for file in shards[self.wanted_shards(one) :] if Path(file.path).name in there]
            if foreign := there - {Path(file.path).name for file in found}:
                raise BytegolfError(
                    f"{out / one.folder} holds {min(foreign)}, which {self.mirror.name} does not publish and training "
                    "would read too: move it away"
                )
        if self.documents is not None:
            found.append(File(DOCUMENTS, self.documents.sha256))
        return list({file.path: file for file in found}.values())


def read_offer(
    mirror: Mirror, variants: Sequence[str], train_shards: int | None, documents: bool, export: bool, retries: Retries
) -> Offer:
    """Read a mirror's manifest, and the documents' sidecar if they are wanted.

    Args:
        train_shards: of each variant; None: TRAIN_SHARDS, or all where there are fewer.
        export: whether variants that are not published can be made from the documents, which then are wanted too.
    """

    def read(path: str) -> bytes:
        return retries.run(lambda: mirror.read(path, MANIFEST_BYTES))

    manifest = parse_manifest(read(MANIFEST), mirror.name)
    found = {variant: find(manifest, variant, mirror.name) for variant in variants}
    for one in found.values():
        if one is not None and train_shards is not None and train_shards > one.train_shards:
            raise BytegolfError(
                f"{mirror.name} has {one.train_shards} training shards of {one.name}: give --train-shards "
                f"{one.train_shards} or fewer, not {train_shards}"
            )
    if missing := [name for name, one in found.items() if one is None]:
        if not export:
            known = [str(entry.get("name", "?")).removeprefix(DATASET_PREFIX) for entry in manifest["datasets"]]
            raise BytegolfError(
                f"{mirror.name} publishes no shards of {', '.join(missing)}, only of {', '.join(known)}: "
                "add --export to fetch the documents and make them here, and --dry-run to see what room that takes"
            )
        parse_tokenizers(missing)  # a name that cannot be made is refused before gigabytes are fetched
        documents = True
    sidecar = read(DOCUMENTS_SIDECAR) if documents else b""
    described = parse_sidecar(sidecar, f"{mirror.name}/{DOCUMENTS_SIDECAR}") if documents else None
    return Offer(mirror, found, train_shards, described, sidecar)
