"""Files that ``torch.save`` wrote: which tensors are in them, memory-mapped; nothing in them is executed.

Since PyTorch 1.6 such a file is a zip archive, stored without compression::

    NAME/data.pkl     a pickle that describes each tensor as a view of a storage
    NAME/data/KEY     the numbers of storage KEY
    NAME/byteorder    "little"

and before it was (and with ``_use_new_zipfile_serialization=False`` is) a row of pickles: a magic number, the format's
version 1001, the machine, the object, the storages' keys; behind them each storage's length (int64) and numbers.

Names in an archive are compared and never used as paths. Nothing is unpacked to disk.
"""

from __future__ import annotations

import io
import math
import mmap
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytegolf.artifact.public.pickle_machine import unpickle
from bytegolf.artifact.public.pickle_values import Inert, RefusedError, StorageAt, TensorAt
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors

MOST_PICKLE = 8 << 20
"""Bytes of a pickle: a thousand tensors take some 200 kB."""

MOST_ENTRIES, MOST_RATIO = 100_000, 20
"""Of an archive: files in it, and how many times its own size they may be unpacked. Weights hardly compress."""

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_LOCAL = struct.Struct("<4s22xHH")  # of a zip's entry: signature, …, lengths of the name and of the extra field

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which trainers put a model's tensors beside other things."""

Fetch = Callable[[StorageAt], Tensor]


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote, by name; views of the file, mapped copy-on-write.

    Raises BytegolfError: it cannot be read, is damaged, or its pickle would call something.
    """
    with disk_errors(path, "read"):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BytegolfError(f"{path} is no file: name a .pt or .safetensors file")
        if not status.st_size:
            raise BytegolfError(f"{path} is empty: copy or fetch it again")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        value, fetch = _of_zip(mapped, path) if mapped[:4] == b"PK\x03\x04" else _legacy(mapped)
        return {name: _view(name, at, fetch) for name, at in _named(value).items()}
    except RefusedError as error:
        raise BytegolfError(
            f"{path} is refused ({error}): nothing in it was executed; get the weights from a source you trust, best "
            "as .safetensors"
        ) from error


def _named(value: Any) -> dict[str, TensorAt]:
    """The tensors of an unpickled value: a dict of them, or one with such a dict in it."""
    if isinstance(value, dict) and not any(isinstance(item, TensorAt) for item in value.values()):
        value = next((value[key] for key in WRAPPERS if isinstance(value.get(key), dict)), value)
    if not isinstance(value, dict):
        what = str(value.of) if isinstance(value, Inert) else type(value).__name__
        raise RefusedError(f"it holds no tensors by name but a {what}")
    found = {name: item for name, item in value.items() if isinstance(item, TensorAt)}
    if not found:
        raise RefusedError("it holds no tensors by name")
    for name in found:
        if not isinstance(name, str):
            raise RefusedError("one of its tensors has no text for a name")
    return found


def _view(name: str, at: TensorAt, fetch: Fetch) -> Tensor:
    """The tensor that is described, of its storage's memory."""
    storage = fetch(at.storage)
    if at.storage.dtype != at.dtype:
        storage = storage[: len(storage) // at.dtype.itemsize * at.dtype.itemsize].view(at.dtype)
    # no tensor has more elements than its storage: a stride of 0 makes a trillion of one
    last = at.offset + sum((size - 1) * stride for size, stride in zip(at.shape, at.stride, strict=True))
    elements = math.prod(at.shape)
    if elements > len(storage) or (elements and last >= len(storage)):
        raise RefusedError(f"its tensor {name[:80]} reaches beyond its numbers")
    if not elements:
        return torch.empty(at.shape, dtype=at.dtype)
    return storage.as_strided(at.shape, at.stride, at.offset)


def _numbers(memory: Any, dtype: torch.dtype, count: int, offset: int) -> Tensor:
    """``count`` numbers of ``memory`` from the byte ``offset`` on, where they lie."""
    if not count:
        return torch.empty(0, dtype=dtype)
    if offset % dtype.itemsize:  # torch would read across the grain: rare, so a copy does
        memory, offset = bytearray(memory[offset : offset + count * dtype.itemsize]), 0
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)


# -------------------------------------------------------------------------------------------------- zip archives


def _of_zip(mapped: mmap.mmap, path: Path) -> tuple[Any, Fetch]:
    try:
        archive = zipfile.ZipFile(path)
        entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, EOFError) as error:
        raise RefusedError("it is a damaged zip archive: copy it again") from error
    files = {entry.filename: entry for entry in entries}
    if len(files) != len(entries) or len(entries) > MOST_ENTRIES:
        raise RefusedError("it is a zip archive with a name twice, or too many")
    pickles = [name for name in files if name == "data.pkl" or (name.count("/") == 1 and name.endswith("/data.pkl"))]
    if len(pickles) != 1:
        raise RefusedError("it is a zip archive without a data.pkl: no file of torch.save")
    prefix = pickles[0].removesuffix("data.pkl")
    opened = _Archive(mapped, archive, files)
    order = files.get(f"{prefix}byteorder")
    if order is not None and opened.contents(order, 16) != b"little":
        raise RefusedError("its numbers are not little-endian")
    value = unpickle(io.BytesIO(opened.contents(files[pickles[0]], MOST_PICKLE)))
    kept: dict[str, Tensor] = {}

    def fetch(storage: StorageAt) -> Tensor:
        entry = files.get(f"{prefix}data/{storage.key}")
        if entry is None:
            raise RefusedError(f"the numbers of its storage {storage.key[:40]} are not in it")
        size = storage.count * storage.dtype.itemsize
        if entry.file_size < size:
            raise RefusedError(f"its storage {storage.key[:40]} has {entry.file_size:,} of {size:,} bytes")
        if entry.compress_type == zipfile.ZIP_STORED:
            return _numbers(mapped, storage.dtype, storage.count, opened.place(entry))
        if entry.filename not in kept:
            unpacked = bytearray(opened.contents(entry, entry.file_size))
            kept[entry.filename] = torch.frombuffer(unpacked, dtype=torch.uint8) if unpacked else torch.empty(0)
        return _numbers(kept[entry.filename].numpy(), storage.dtype, storage.count, 0)

    return value, fetch


class _Archive:
    """An archive's entries, with a limit on what is unpacked of all of them together."""

    def __init__(self, mapped: mmap.mmap, archive: zipfile.ZipFile, files: dict[str, zipfile.ZipInfo]) -> None:
        self.mapped, self.archive, self.files = mapped, archive, files
        self.left = MOST_RATIO * len(mapped)

    def place(self, entry: zipfile.ZipInfo) -> int:
        """Where the bytes of an entry that is stored as it is begin."""
        start = entry.header_offset
        if start < 0 or start + _LOCAL.size > len(self.mapped):
            raise RefusedError("it is a damaged zip archive: copy it again")
        signature, name, extra = _LOCAL.unpack_from(self.mapped, start)
        begin = start + _LOCAL.size + name + extra
        if signature != b"PK\x03\x04" or entry.flag_bits & 1 or begin + entry.file_size > len(self.mapped):
            raise RefusedError("it is a damaged zip archive: copy it again")
        return int(begin)

    def contents(self, entry: zipfile.ZipInfo, most: int) -> bytes:
        """The bytes of an entry, unpacked and checked."""
        if entry.file_size > min(most, self.left):
            raise RefusedError(f"its entry {entry.filename[:40]} claims {entry.file_size:,} bytes")
        self.left -= entry.file_size
        try:
            with self.archive.open(entry) as source:
                data = source.read(entry.file_size)
                if len(data) == entry.file_size and not source.read(1):
                    return data
        except (
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
            NotImplementedError,
            ValueError,
            OSError,
            EOFError,
        ) as error:
            raise RefusedError("it is a damaged zip archive: copy it again") from error
        raise RefusedError("it is a damaged zip archive: copy it again")


# -------------------------------------------------------------------------------------------------- before PyTorch 1.6


def _legacy(mapped: mmap.mmap) -> tuple[Any, Fetch]:
    head = io.BytesIO(mapped[:MOST_PICKLE])
    try:
        magic, version = unpickle(head), unpickle(head)
    except RefusedError as error:
        raise RefusedError("it is no file of torch.save") from error
    if magic != _LEGACY_MAGIC or version != _LEGACY_VERSION:
        raise RefusedError("it is no file of torch.save")
    storages: list[StorageAt] = []
    machine, value, keys = unpickle(head), unpickle(head, storages), unpickle(head)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise RefusedError("its numbers are not little-endian")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise RefusedError("it does not list its storages")
    widths = {storage.key: storage.dtype.itemsize for storage in storages}
    places: dict[str, tuple[int, int]] = {}
    at = head.tell()
    for key in keys:
        if at + 8 > len(mapped):
            raise RefusedError("it ends before its numbers do: copy it again")
        if key not in widths:
            raise RefusedError("it has numbers whose type it does not tell")
        (count,) = struct.unpack_from("<q", mapped, at)
        size = count * widths[key]
        if count < 0 or at + 8 + size > len(mapped):
            raise RefusedError("it ends before its numbers do: copy it again")
        places[key] = (at + 8, count)
        at += 8 + size

    def fetch(storage: StorageAt) -> Tensor:
        if storage.key not in places:
            raise RefusedError(f"the numbers of its storage {storage.key[:40]} are not in it")
        begin, count = places[storage.key]
        if storage.first + storage.count > count:
            raise RefusedError(f"its storage {storage.key[:40]} has {count:,} numbers, too few")
        offset = begin + storage.first * storage.dtype.itemsize
        return _numbers(mapped, storage.dtype, storage.count, offset)

    return value, fetch
