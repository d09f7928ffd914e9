"""Writes token shards: complete ones only, and again from where an earlier writer was stopped."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.shards import MAX_SHARD_TOKENS, SHARD_TOKENS, shard_bytes, shard_header, shard_path, shard_paths
from bytegolf.errors import BytegolfError
from bytegolf.files import GrowingFile, disk_errors, make_folder, sha256


class ShardWriter:
    """Writes a stream of tokens as the shards of one split, with memory for a single piece of it.

    A shard appears under its name only once it is complete. ``close`` (the end of the ``with`` block)
    finishes the last one and removes the higher-numbered shards that an earlier, longer export left; an
    exception leaves no half-written file. Without ``with``, call ``abandon`` when something fails.

    Attributes:
        paths: the finished shards.
        sha256: their hashes, by name.
        tokens: how many tokens have been written.
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
        self._file = GrowingFile(shard_path(self.folder, self.split, len(self.paths)))
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
            if self._file.file is None:
                # most shards will be full; the count of one that is not is put right at its end
                self._put(shard_header(self.shard_tokens))
            self._put(np.ascontiguousarray(part, dtype="<u2").view(np.uint8).data)
            self.tokens += len(part)
            tokens = tokens[len(part) :]
            if self._in_shard == self.shard_tokens:
                self._finish_shard()

    def _put(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)

    def sync(self) -> None:
        """Return once everything written so far is on the disk, as far as the system can tell."""
        self._file.sync()

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
        with disk_errors(self._file.path):
            # the shard that was not complete may have been finished since, by a process that was killed behind that
            if not self._file.temporary.exists() and self._file.path.exists():
                self._file.path.replace(self._file.temporary)
            if not self._file.resume(shard_bytes(rest)):
                return False
            assert self._file.file is not None
            self._file.file.seek(0)
            self._file.file.write(shard_header(self.shard_tokens))
            self._file.file.seek(0)
            while piece := self._file.file.read(1 << 22):
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abandon()

    def _finish_shard(self) -> None:
        path, file, full = self._file.path, self._file.file, self._in_shard == self.shard_tokens
        if file is None:
            return
        with disk_errors(path):
            if not full:
                file.seek(0)
                file.write(shard_header(self._in_shard))
            os.fsync(file.fileno())
            file.close()
            self._file.temporary.replace(path)
        self.sha256[path.name] = self._hash.hexdigest() if full else sha256(path)
        self.paths.append(path)
        self._begin()

    def abandon(self, keep: bool = False) -> None:
        """Close the shard that is not complete, and remove it unless ``resume`` is to find it; finished ones stay."""
        self._file.abandon(keep)
