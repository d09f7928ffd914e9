"""Compress a file with a language model, and get it back: every byte of it.

    python examples/compress_file.py                                 # trains a small model for half a minute first
    python examples/compress_file.py runs/cpu-demo letter.txt        # → letter.txt.bgz, and back again
    python examples/compress_file.py runs/cpu-demo letter.txt --keep letter.bgz

The model predicts each byte from those before it, and an entropy coder writes what the prediction did not know:
-log2 p(byte) bits each. Whoever has the same artifact makes the same predictions and can undo it. A model of a few
megabytes is thus part of the compressor, not of the file. It pays on text of the kind that the model was trained on.
"""

import argparse
import lzma
import math
import time
import zlib
from pathlib import Path

from load_and_look import quick_run

import bytegolf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run's folder or an artifact; without it, a small run is trained")
    parser.add_argument(
        "file", nargs="?", type=Path, default=Path(__file__), help="what to compress; by default this script"
    )
    parser.add_argument("--keep", type=Path, help="where the compressed file goes; by default FILE.bgz")
    options = parser.parse_args()

    data = options.file.read_bytes()
    model = bytegolf.load(options.run or quick_run())

    # Encoder and decoder must agree on every probability exactly, so both run in fp32 on the CPU, and the artifact's
    # hash is in the header: another model refuses the file. (Large files: `bytegolf compress` works piece by piece.)
    started = time.perf_counter()
    packed = model.compress(data)
    seconds = time.perf_counter() - started

    target = options.keep or Path(f"{options.file.name}.bgz")
    target.write_bytes(packed)
    assert model.decompress(target.read_bytes()) == data, "not the same bytes: please report this"

    print(f"{options.file.name}: {len(data):,} bytes, {len(data) / seconds:,.0f} bytes/s; {target} gives them back")
    for name, size in {
        "bytegolf": len(packed),
        "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "gzip -9": len(zlib.compress(data, 9)),
    }.items():
        print(f"{name:10} {size:9,} bytes  {8 * size / max(len(data), 1):.3f} bits per byte")

    # What the score promised: the text's surprisal in bits. The file adds a header, a checksum, and the coder's loss.
    print(f"{'surprisal':10} {model.score(data).nats / math.log(2) / 8:9,.0f} bytes")


if __name__ == "__main__":
    main()
