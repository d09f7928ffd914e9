"""The usual compressors, at the settings at which they compress best: what a model's bits per byte are held against."""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable
from types import ModuleType

import zstandard

Compress = Callable[[bytes], bytes]


def optional(name: str) -> ModuleType | None:
    """A module that only comparisons need."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def zstd(level: int, long: bool = False) -> Compress:
    """zstd at ``level``; ``long`` asks for a window of 128 MiB and matches over all of it (--long=27)."""
    if long:
        settings = zstandard.ZstdCompressionParameters.from_level(level, window_log=27, enable_ldm=True)
        return zstandard.ZstdCompressor(compression_params=settings).compress
    return zstandard.ZstdCompressor(level=level).compress


def xz(text: bytes) -> bytes:
    """xz -9e with a dictionary no larger than the text, which makes it no larger and spares 64 MiB to be cleared."""
    dictionary = min(64 << 20, max(4096, len(text)))
    settings = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}
    return lzma.compress(text, filters=[settings])


def best() -> dict[str, Compress]:
    """One setting of each compressor that people have at hand, by name; brotli and PPMd where they are installed."""
    found: dict[str, Compress] = {
        "zlib -9": lambda text: zlib.compress(text, 9),
        "bzip2 -9": lambda text: bz2.compress(text, 9),
        "xz -9e": xz,
        "zstd --ultra -22": zstd(22),
    }
    if brotli := optional("brotli"):
        found["brotli -q 11 -w 24"] = lambda text: brotli.compress(text, quality=11, lgwin=24)
    if ppmd := optional("pyppmd"):
        found["PPMd I, order 8"] = lambda text: ppmd.compress(text, max_order=8, mem_size=256 << 20)
    return found
