"""The data set of one tokenizer while it is written: shards of both splits, and byte counts per validation document."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.encoding import Tokens
from bytegolf.data.manifest import DATASET_PREFIX, DatasetEntry, TokenizerEntry, add_totals
from bytegolf.data.shard_writer import ShardWriter
from bytegolf.data.specs import TokenizerSpec
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import abandon, disk_errors, write_atomically

SIDECAR = "fineweb_val_documents.npy"
"""int64 (documents, 3) beside the validation shards: tokens (BOS included), bytes they stand for, original bytes."""

SPLITS = ("train", "val")
_ROW_BYTES = 3 * 8


@dataclasses.dataclass(frozen=True)
class WriterState:
    """How far a data set is written: all that ``DatasetWriter.resume`` needs. Pairs are of training and validation."""

    model: str | None
    """the SHA-256 of the tokenizer's model"""
    documents: list[int]
    piece_bytes: list[int]
    original_bytes: list[int]
    tokens: list[int]
    sha256: list[dict[str, str]]
    """of the finished shards"""


class DatasetWriter:
    """One data set in ``out``; leaving the ``with`` block drops what is not finished, unless a checkpoint needs it."""

    def __init__(self, spec: TokenizerSpec, tokenizer: Tokenizer, out: Path, shard_tokens: int) -> None:
        self.spec, self.tokenizer, self.out = spec, tokenizer, out
        self.folder = out / "datasets" / f"{DATASET_PREFIX}{spec.suffix}"
        self.writers = [ShardWriter(self.folder, name, shard_tokens) for name in SPLITS]
        self.documents, self.piece_bytes, self.original_bytes = [0, 0], [0, 0], [0, 0]
        self._rows = _Rows(self.folder / SIDECAR)
        self._keep = False

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self.writers:
            writer.abandon(self._keep)
        self._rows.abandon(self._keep)

    def add(self, tokens: Tokens, original_bytes: NDArray[np.int64], held_out: int) -> None:
        """Write documents, the first ``held_out`` of which are for validation."""
        border = int(tokens.lengths[:held_out].sum())
        parts = ((tokens.ids[border:], slice(held_out, None)), (tokens.ids[:border], slice(held_out)))
        for side, (ids, documents) in enumerate(parts):
            self.writers[side].write(ids)
            self.documents[side] += len(original_bytes[documents])
            self.piece_bytes[side] += int(tokens.piece_bytes[documents].sum())
            self.original_bytes[side] += int(original_bytes[documents].sum())
        columns = (tokens.lengths, tokens.piece_bytes, original_bytes)
        self._rows.write(np.stack([column[:held_out] for column in columns], axis=1))

    def checkpoint(self) -> WriterState:
        """Bring what was written to the disk; what ``resume`` needs to go on from here."""
        for writer in self.writers:
            writer.sync()
        self._rows.sync()
        self._keep = True
        return WriterState(
            self.tokenizer.identity()["sha256"],
            list(self.documents),
            list(self.piece_bytes),
            list(self.original_bytes),
            [writer.tokens for writer in self.writers],
            [dict(writer.sha256) for writer in self.writers],
        )

    def resume(self, saved: WriterState) -> bool:
        """Go on from a checkpoint; False if its files are not there, or another model made them."""
        if saved.model != self.tokenizer.identity()["sha256"]:
            return False
        for writer, tokens, hashes in zip(self.writers, saved.tokens, saved.sha256, strict=True):
            if not writer.resume(tokens, hashes):
                return False
        self.documents, self.piece_bytes = list(saved.documents), list(saved.piece_bytes)
        self.original_bytes = list(saved.original_bytes)
        self._keep = True
        return self._rows.resume(self.documents[1])

    def done(self) -> None:
        """Say that no checkpoint will be needed any more: the manifest is written."""
        self._keep = False

    def close(self) -> None:
        """Finish the shards and the sidecar."""
        for writer in self.writers:
            writer.close()
        self._rows.close()

    def dataset_entry(self) -> DatasetEntry:
        """The manifest's entry for the data set."""
        stats: dict[str, int] = {"docs_total": sum(self.documents)}
        for side, name in enumerate(SPLITS):
            stats[f"files_{name}"] = len(self.writers[side].paths)
            stats[f"docs_{name}"] = self.documents[side]
            stats[f"tokens_{name}"] = self.writers[side].tokens
            stats[f"bytes_{name}"] = self.piece_bytes[side]
            stats[f"original_bytes_{name}"] = self.original_bytes[side]
        add_totals(stats)
        path = self.folder.relative_to(self.out).as_posix()
        return DatasetEntry(
            self.folder.name,
            self.spec.name,
            self.spec.kind,
            path,
            f"{path}/fineweb_train_*.bin",
            f"{path}/fineweb_val_*.bin",
            self.tokenizer.vocab_size,
            Tokenizer.BOS,
            Tokenizer.EOS,
            stats,
            {name: value for writer in self.writers for name, value in writer.sha256.items()},
        )

    def tokenizer_entry(self) -> TokenizerEntry:
        """The manifest's entry for the tokenizer."""
        common = TokenizerEntry(self.spec.name, self.spec.kind, self.tokenizer.vocab_size)
        if self.spec.kind == "byte":
            return dataclasses.replace(common, path=f"tokenizers/fineweb_{self.spec.name}.json")
        prefix = f"tokenizers/{self.spec.model_prefix}"
        return dataclasses.replace(
            common,
            model_path=f"{prefix}.model",
            sha256=self.tokenizer.identity()["sha256"],
            vocab_path=f"{prefix}.vocab" if (self.out / f"{prefix}.vocab").exists() else None,
            spec=self.spec.to_json(),
        )


class _Rows:
    """The rows of the sidecar: on the disk as they come, an array file with a header when all are there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._file: IO[bytes] | None = None

    def write(self, rows: NDArray[np.int64]) -> None:
        """Append rows, int64 of shape (n, 3)."""
        with disk_errors(self._path):
            if self._file is None:
                self._file = self._temporary.open("w+b")
            self._file.write(rows.astype("<i8", copy=False).tobytes())

    def sync(self) -> None:
        """Return once everything written so far is on the disk."""
        if self._file is not None:
            with disk_errors(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())

    def resume(self, rows: int) -> bool:
        """Go on behind so many rows; False if they are not there."""
        if not self._temporary.exists() or self._temporary.stat().st_size < rows * _ROW_BYTES:
            return False
        with disk_errors(self._path):
            self._file = self._temporary.open("r+b")
            self._file.truncate(rows * _ROW_BYTES)
            self._file.seek(0, 2)
        return True

    def close(self) -> None:
        """Write the array file; the rows stay beside it for ``resume``, until ``abandon``."""
        if self._file is None:
            raise BytegolfError(f"cannot write {self._path}: there are no documents")
        with disk_errors(self._path):
            self._file.seek(0)
            rows = np.frombuffer(self._file.read(), dtype=np.int64).reshape(-1, 3)
        write_atomically(self._path, lambda file: np.save(file, rows))

    def abandon(self, keep: bool = False) -> None:
        """Close the file, and remove it unless ``resume`` is to find it."""
        if self._file is not None:
            file, self._file = self._file, None
            abandon(file, self._temporary, keep)
