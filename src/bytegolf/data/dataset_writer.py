"""The data set of one tokenizer while it is written: shards of both splits, and byte counts per validation document.

Shards have their names only once they are complete, and a writer goes on from where an earlier one was stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.dataset import (
    DATASET_PREFIX,
    MAX_SHARD_TOKENS,
    SHARD_TOKENS,
    DatasetEntry,
    TokenizerEntry,
    add_totals,
    shard_bytes,
    shard_header,
    shard_path,
    shard_paths,
)
from bytegolf.data.encoding import Tokens
from bytegolf.data.specs import TokenizerSpec
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import GrowingFile, disk_errors, make_folder, sha256, write_atomically

SIDECAR = "fineweb_val_documents.npy"
"""int64 (documents, 3) beside the validation shards: tokens (BOS included), bytes they stand for, original bytes."""

SPLITS = ("train", "val")
_ROW_BYTES = 3 * 8


class ShardWriter:
    """Writes a stream of tokens as the shards of one split, with memory for a single piece of it.

    A shard appears under its name only once it is complete. ``close`` (the end of the ``with`` block)
    finishes the last one and removes the higher-numbered shards that an earlier, longer export left; an
    exception leaves no half-written file. Without ``with``, call ``file.abandon`` when something fails.

    Attributes:
        paths: the finished shards.
        sha256: their hashes, by name.
        tokens: how many tokens have been written.
        file: the shard that is not complete.
    """

    def __init__(self, folder: Path, split: str, shard_tokens: int = SHARD_TOKENS) -> None:
        if not 0 < shard_tokens <= MAX_SHARD_TOKENS:
            raise BytegolfError(f"a shard of {shard_tokens} tokens cannot be: choose 1 to {MAX_SHARD_TOKENS}")
        self.folder = make_folder(Path(folder))
        self.split = split
        self.shard_tokens = shard_tokens
        self.paths: list[Path] = []
        self.sha256: dict[str, str] = {}
        self.tokens = 0
        self._begin()

    def _begin(self) -> None:
        self.file = GrowingFile(shard_path(self.folder, self.split, len(self.paths)))
        self._hash = hashlib.sha256()

    @property
    def _in_shard(self) -> int:
        """Tokens in the shard that is not complete."""
        return self.tokens - len(self.paths) * self.shard_tokens

    def write(self, tokens: NDArray[np.uint16]) -> None:
        """Append tokens, uint16 of shape (n,)."""
        if tokens.dtype != np.uint16:
            raise TypeError(f"tokens must be uint16, not {tokens.dtype}")
        while len(tokens):
            part = tokens[: self.shard_tokens - self._in_shard]
            if self.file.file is None:
                # most shards will be full; the count of one that is not is put right at its end
                self._put(shard_header(self.shard_tokens))
            self._put(np.ascontiguousarray(part, dtype="<u2").view(np.uint8).data)
            self.tokens += len(part)
            tokens = tokens[len(part) :]
            if self._in_shard == self.shard_tokens:
                self._finish_shard()

    def _put(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self.file.write(data)

    def resume(self, tokens: int, sha256: dict[str, str]) -> bool:
        """Go on behind the first ``tokens`` tokens, written and synced by an earlier writer of the same folder, whose
        finished shards had the hashes ``sha256``; False if they are not there.
        """
        full, rest = divmod(tokens, self.shard_tokens)
        finished = [shard_path(self.folder, self.split, index) for index in range(full)]
        for path in finished:
            if path.name not in sha256 or not path.exists() or path.stat().st_size != shard_bytes(self.shard_tokens):
                return False
        self.paths, self.tokens = finished, tokens
        self.sha256 = {path.name: sha256[path.name] for path in finished}
        self._begin()
        if not rest:
            return True
        with disk_errors(self.file.path):
            # the shard that was not complete may have been finished since, by a process that was killed behind that
            if not self.file.temporary.exists() and self.file.path.exists():
                self.file.path.replace(self.file.temporary)
            if not self.file.resume(shard_bytes(rest)):
                return False
            assert self.file.file is not None
            self.file.file.seek(0)
            self.file.file.write(shard_header(self.shard_tokens))
            self.file.file.seek(0)
            while piece := self.file.file.read(1 << 22):
                self._hash.update(piece)
        return True

    def close(self) -> None:
        """Finish the last shard and remove those that an earlier export left behind, half-written ones too."""
        self._finish_shard()
        finished = set(self.paths)
        killed = self.folder.glob(f".fineweb_{self.split}_*.bin.tmp")
        for path in [*shard_paths(self.folder, self.split), *killed]:
            if path not in finished:
                with disk_errors(path, "remove the old shard"):
                    path.unlink()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.file.abandon()

    def _finish_shard(self) -> None:
        path, file, full = self.file.path, self.file.file, self._in_shard == self.shard_tokens
        if file is None:
            return
        with disk_errors(path):
            if not full:
                file.seek(0)
                file.write(shard_header(self._in_shard))
            os.fsync(file.fileno())
            file.close()
            self.file.temporary.replace(path)
        self.sha256[path.name] = self._hash.hexdigest() if full else sha256(path)
        self.paths.append(path)
        self._begin()


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
        self.keep = False  # true from the first checkpoint on until the manifest is written

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files():
            file.abandon(self.keep)

    def _files(self) -> list[GrowingFile]:
        return [*(writer.file for writer in self.writers), self._rows]

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
        for file in self._files():
            file.sync()
        self.keep = True
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
        self.keep = True
        return self._rows.resume(_ROW_BYTES * self.documents[1])

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
            self.tokenizer.BOS,
            self.tokenizer.EOS,
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
