"""Shards read and written by the description of their format alone; nothing is shared with the package."""

from __future__ import annotations

import array
import struct
import sys
from pathlib import Path


def independent_read(path: Path) -> list[int]:
    """The tokens of a shard."""
    data = path.read_bytes()
    header = struct.unpack("<256i", data[:1024])
    assert header[:2] == (20240520, 1)
    assert not any(header[3:])
    tokens = array.array("H")
    tokens.frombytes(data[1024:])
    if sys.byteorder == "big":
        tokens.byteswap()
    assert len(tokens) == header[2]
    return list(tokens)


def independent_write(path: Path, tokens: list[int], magic: int = 20240520, version: int = 1) -> Path:
    """A shard of ``tokens``."""
    header = struct.pack("<256i", magic, version, len(tokens), *([0] * 253))
    path.write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens))
    return path
