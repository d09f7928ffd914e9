"""The data set of one tokenizer while it is written: shards of both splits, and byte counts per validation document."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.encoding import Tokens
from bytegolf.data.manifest import DATASET_PREFIX, DatasetEntry, TokenizerEntry, add_totals
from bytegolf.data.shard_writer import ShardWriter
from bytegolf.data.specs import TokenizerSpec
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.files import GrowingFile, disk_errors, write_atomically

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
        self._rows = GrowingFile(self.folder / SIDECAR)
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
        self._rows.write(np.stack([column[:held_out] for column in columns], axis=1).astype("<i8").tobytes())

    def checkpoint(self) -> WriterState:
        """Bring what was written to the disk; what ``resume`` needs to go on from here."""
        for writer in self.writers:
            writer.sync()
        self._rows.sync()
        self._keep = True
        return WriterState(
            self.tokenizer.sha256,
            list(self.documents),
            list(self.piece_bytes),
            list(self.original_bytes),
            [writer.tokens for writer in self.writers],
            [dict(writer.sha256) for writer in self.writers],
        )

    def resume(self, saved: WriterState) -> bool:
        """Go on from a checkpoint; False if its files are not there, or another model made them."""
        if saved.model != self.tokenizer.sha256:
            return False
        for writer, tokens, hashes in zip(self.writers, saved.tokens, saved.sha256, strict=True):
            if not writer.resume(tokens, hashes):
                return False
        self.documents, self.piece_bytes = list(saved.documents), list(saved.piece_bytes)
        self.original_bytes = list(saved.original_bytes)
        self._keep = True
        return self._rows.resume(_ROW_BYTES * self.documents[1])

    def done(self) -> None:
        """Say that no checkpoint will be needed any more: the manifest is written."""
        self._keep = False

    def close(self) -> None:
        """Finish the shards and the sidecar, whose rows stay beside it for ``resume``."""
        for writer in self.writers:
            writer.close()
        with disk_errors(self._rows.path):
            rows = np.fromfile(self._rows.temporary, dtype="<i8").reshape(-1, 3)
        write_atomically(self._rows.path, lambda file: np.save(file, rows))

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
        common = (self.spec.name, self.spec.kind, self.tokenizer.vocab_size)
        if self.spec.kind == "byte":
            return TokenizerEntry(*common, path=f"tokenizers/fineweb_{self.spec.name}.json")
        model, vocab = (f"tokenizers/{self.spec.model_prefix}.{ending}" for ending in ("model", "vocab"))
        vocab_path = vocab if (self.out / vocab).exists() else None
        return TokenizerEntry(*common, None, model, self.tokenizer.sha256, vocab_path, self.spec.to_json())
