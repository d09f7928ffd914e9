"""Token shards: the ``fineweb_{train,val}_%06d.bin`` files of modded-nanogpt and Parameter Golf.

A shard is a header of 256 little-endian int32 — magic 20240520, version 1, number of tokens, zeros — followed
by that many little-endian uint16 tokens. The shards of a split, in the order of their names, are one stream
of tokens in which every document is a BOS token followed by its own.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.manifest import dataset_folder
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, sha256

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
_BEHIND_BYTES = 8 << 20
"""What is written goes on its way to the disk in such pieces, so that the wait for it in the end is short."""

_ASKED_AGAIN = 4
"""Pieces whose memory is asked for again with the next one: the disk has them by then, and memory that was in use a
moment ago takes the next piece at half the cost of memory that was not."""


def shard_path(folder: Path, split: str, index: int) -> Path:
    """The file of a split's shard number ``index``."""
    return folder / f"fineweb_{split}_{index:06d}.bin"


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The shards of a split that lie in ``folder``, in order; empty if there are none."""
    return sorted(folder.glob(f"fineweb_{split}_*.bin"))


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
        self._file: io.FileIO | None = None
        self._hash = hashlib.sha256()
        self._in_shard = 0
        self._sent = 0

    def write(self, tokens: NDArray[np.uint16]) -> None:
        """Append tokens, uint16 of shape (n,)."""
        if tokens.dtype != np.uint16:
            raise TypeError(f"tokens must be uint16, not {tokens.dtype}")
        while len(tokens):
            part = tokens[: self.shard_tokens - self._in_shard]
            data = np.ascontiguousarray(part, dtype="<u2").view(np.uint8).data
            with disk_errors(self._path):
                if self._file is None:
                    self._file = self._temporary.open("wb", buffering=0)
                    # most shards will be full; the count of one that is not is put right at its end
                    self._put(_header(self.shard_tokens))
                self._put(data)
                self._send_to_disk()
            self._in_shard += len(part)
            self.tokens += len(part)
            tokens = tokens[len(part) :]
            if self._in_shard == self.shard_tokens:
                self._finish_shard()

    def _put(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        self._hash.update(data)
        view = memoryview(data)
        while len(view):  # a disk that is nearly full takes a part
            view = view[self._file.write(view) :]

    def _send_to_disk(self) -> None:
        """Have the system begin to write what it still holds back; nobody waits, and memory is not needed for it."""
        assert self._file is not None
        written = self._file.tell()
        if written - self._sent >= _BEHIND_BYTES and hasattr(os, "posix_fadvise"):
            start = max(0, self._sent - _ASKED_AGAIN * _BEHIND_BYTES)
            os.posix_fadvise(self._file.fileno(), start, written - start, os.POSIX_FADV_DONTNEED)
            self._sent = written

    def sync(self) -> None:
        """Return once everything written so far is on the disk, as far as the system can tell."""
        if self._file is not None:
            with disk_errors(self._path):
                os.fsync(self._file.fileno())

    def resume(self, tokens: int, sha256: dict[str, str]) -> bool:
        """Go on behind the first ``tokens`` tokens, written and synced by an earlier writer of the same folder, whose
        finished shards had the hashes ``sha256``; False, with nothing changed, if they are not there.
        """
        full, rest = divmod(tokens, self.shard_tokens)
        finished = [shard_path(self.folder, self.split, index) for index in range(full)]
        if any(not path.exists() or path.stat().st_size != _shard_bytes(self.shard_tokens) for path in finished):
            return False
        if not all(path.name in sha256 for path in finished):
            return False
        self.paths = finished
        half = next((path for path in (self._temporary, self._path) if rest and path.exists()), None)
        if rest and (half is None or half.stat().st_size < _shard_bytes(rest)):
            self.paths = []
            return False
        self.sha256 = {path.name: sha256[path.name] for path in finished}
        self.tokens, self._in_shard = tokens, rest
        if half is not None:
            with disk_errors(self._path):
                half.replace(self._temporary)  # it may have been finished since
                self._file = self._temporary.open("r+b", buffering=0)
                self._file.truncate(_shard_bytes(rest))
                self._file.write(_header(self.shard_tokens))
                self._file.seek(0)
                while piece := self._file.read(1 << 22):
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

    @property
    def _path(self) -> Path:
        return shard_path(self.folder, self.split, len(self.paths))

    @property
    def _temporary(self) -> Path:
        return self._path.with_name(f".{self._path.name}.tmp")

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        path = self._path
        with disk_errors(path):
            if self._in_shard < self.shard_tokens:
                self._file.seek(0)
                self._file.write(_header(self._in_shard))
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(path)
        self.sha256[path.name] = self._hash.hexdigest() if self._in_shard == self.shard_tokens else sha256(path)
        self._file, self._hash = None, hashlib.sha256()
        self._in_shard = self._sent = 0
        self.paths.append(path)

    def abandon(self, keep: bool = False) -> None:
        """Close the shard that is not complete, if there is one, and remove it unless ``resume`` is to find it; the
        finished ones stay.
        """
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError:  # the file goes anyway
            pass
        finally:
            self._file = None
            if not keep:
                self._temporary.unlink(missing_ok=True)


def _header(tokens: int) -> bytes:
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens
    return header.tobytes()


def _shard_bytes(tokens: int) -> int:
    return HEADER_BYTES + TOKEN_BYTES * tokens


def read_shard(path: str | Path, vocab_size: int | None = None) -> NDArray[np.uint16]:
    """Memory-map a shard's tokens, little-endian uint16 of shape (tokens,), after checking its header and its
    length.

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
        raise BytegolfError(
            f"{path} is a token shard of version {version}, but only version {VERSION} can be read: convert it"
        )
    expected = _shard_bytes(count)
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
    """Several shards as one sequence of tokens, memory-mapped: opening costs a header a shard, reading what
    is read.

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
        """A copy of tokens ``start`` to ``stop`` (exclusive), uint16 of shape (stop - start,), across shard
        borders.
        """
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
        """Where tokens ``start`` to ``stop`` (exclusive) lie: the numbers of shards, and the first and the end of the
        tokens in each.
        """
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
        raise BytegolfError(
            f"{folder} has no fineweb_{split}_*.bin, so no {split} split: run `bytegolf prepare` again or fetch it"
        )
    return TokenStream(paths, vocab_size)
