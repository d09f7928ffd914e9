"""Bits per byte of the validation text by the usual compressors: what a language model should beat.

    python benchmarks/compressors.py --data data/default

*alone*: the compressor sees the validation text only. *primed*: it has read the whole training text before, as a
trained model has: size(training + validation) − size(training), with windows and memories that hold all of it, where
the format allows. *whole*: training and validation text as one, per byte of both. The text is what the byte260 shards
hold, without the tokens between documents. PPMd and brotli need `pip install pyppmd brotli`.
"""

from __future__ import annotations

import argparse
import bz2
import importlib
import json
import lzma
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import zstandard
from measuring import table

from bytegolf.data.shards import open_split
from bytegolf.data.tokenizer import ByteTokenizer

Compress = Callable[[bytes], bytes]


def text_of(data: Path, split: str) -> bytes:
    """The bytes of a split's documents, one behind the other."""
    tokenizer = ByteTokenizer()
    stream = open_split(data, tokenizer.name, split, tokenizer.vocab_size)
    return tokenizer.decode(stream.slice(0, len(stream)))


def optional(name: str) -> ModuleType | None:
    """A module that only this benchmark needs; a sentence if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed, so its rows are missing: pip install {name}")
        return None


def zstd(level: int, long: bool = False) -> Compress:
    """zstd at ``level``; ``long`` asks for a window of 128 MiB and matches over all of it (--long=27)."""
    if long:
        settings = zstandard.ZstdCompressionParameters.from_level(level, window_log=27, enable_ldm=True)
        return zstandard.ZstdCompressor(compression_params=settings).compress
    return zstandard.ZstdCompressor(level=level).compress


def compressors(order: int, memory: int) -> dict[str, Compress]:
    """Each compressor by name; PPMd gets ``order`` and ``memory`` bytes for its model."""
    found: dict[str, Compress] = {
        "bzip2 -9": lambda text: bz2.compress(text, 9),
        "xz -6": lambda text: lzma.compress(text, preset=6),
        "xz -9e": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
        "zstd -19": zstd(19),
        "zstd -19 --long=27": zstd(19, long=True),
        "zstd --ultra -22": zstd(22),
        "zstd --ultra -22 --long=27": zstd(22, long=True),
    }
    if brotli := optional("brotli"):
        found["brotli -q 11 -w 24"] = lambda text: brotli.compress(text, quality=11, lgwin=24)
    if pyppmd := optional("pyppmd"):

        def variant_h(text: bytes) -> bytes:
            encoder = pyppmd.Ppmd7Encoder(order, memory)
            return bytes(encoder.encode(text) + encoder.flush())

        def variant_i(text: bytes) -> bytes:
            encoder = pyppmd.Ppmd8Encoder(order, memory, pyppmd.PPMD8_RESTORE_METHOD_RESTART)
            return bytes(encoder.encode(text) + encoder.flush())

        found[f"PPMd H, order {order}"] = variant_h
        found[f"PPMd I, order {order}"] = variant_i
    return found


def main() -> None:
    """Parse the command line, compress, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/default"))
    parser.add_argument("--order", type=int, default=16, help="of PPMd")
    parser.add_argument("--memory", type=int, default=1 << 30, help="bytes for PPMd's model")
    arguments = parser.parse_args()
    training, validation = text_of(arguments.data, "train"), text_of(arguments.data, "val")
    print(f"training text {len(training):,} bytes, validation text {len(validation):,} bytes")
    rows = []
    for name, compress in compressors(arguments.order, arguments.memory).items():
        started = time.perf_counter()
        alone, before, both = (len(compress(text)) for text in (validation, training, training + validation))
        bits = 8 / len(validation)
        whole = 8 * both / (len(training) + len(validation))
        figures = {"alone": alone * bits, "primed": (both - before) * bits, "whole": whole}
        rounded = {key: round(value, 4) for key, value in figures.items()}
        rows.append({"compressor": name, **rounded, "seconds": round(time.perf_counter() - started, 1)})
    print(table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
