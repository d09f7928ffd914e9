"""Token shards: the ``fineweb_{train,val}_%06d.bin`` files of modded-nanogpt and Parameter Golf.

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

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.manifest import dataset_folder
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, matching

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
