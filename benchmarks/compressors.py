"""Bits per byte of the validation text by the usual compressors: what a language model should beat.

    python benchmarks/compressors.py --data data/default

*alone*: the compressor sees the validation text only. *primed*: it has read the whole training text before, as a
trained model has: size(training + validation) − size(training), with windows and memories that hold all of it, where
the format allows. *whole*: training and validation text as one, per byte of both. The text is what the byte260 shards
hold, without the tokens between documents. PPMd and brotli need `pip install pyppmd brotli`.
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
from pathlib import Path

from measuring import table

from bytegolf.infer.compressors import Compress, best, optional, zstd
from bytegolf.infer.files import split_text


def compressors(order: int, memory: int) -> dict[str, Compress]:
    """Each compressor by name; PPMd gets ``order`` and ``memory`` bytes for its model."""
    found: dict[str, Compress] = {
        **best(),
        "xz -6": lambda text: lzma.compress(text, preset=6),
        "zstd -19": zstd(19),
        "zstd -19 --long=27": zstd(19, long=True),
        "zstd --ultra -22 --long=27": zstd(22, long=True),
    }
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
    training, validation = (split_text(arguments.data, split) for split in ("train", "val"))
    for name, what in (("brotli", "brotli"), ("pyppmd", "PPMd")):
        if not optional(name):
            print(f"{name} is not installed, so {what} is missing: pip install {name}")
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
