"""Train a byte-level H-Net on a text of your own: prepare, train, score, look at its chunks.

python examples/own_text.py                                   # this repository's documentation, 60 seconds
python examples/own_text.py notes.txt                         # a file of yours
python examples/own_text.py books/ mail.jsonl --seconds 1800  # folders, JSON lines, Parquet; half an hour
python examples/own_text.py notes.txt --set model.network.main.layers=6 train.seed=2
"""

import argparse
import lzma
from pathlib import Path

import bytegolf

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", default=[str(DOCS)], help="files or folders of text")
    parser.add_argument("--out", type=Path, default=Path("runs/own_text"), help="where data and run go")
    parser.add_argument("--preset", default="cpu-demo", help="`bytegolf presets` lists them")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--set", nargs="*", default=[], help="any other setting: section.key=value")
    options = parser.parse_args()

    # 1. Text becomes token shards: one token per byte, and one at the start of each document. A long file is cut into
    # documents of about 2,000 bytes, of which one in ten is held out for validation: the same ones on every machine.
    data, run = options.out / "data", options.out / "run"
    bytegolf.prepare(options.text, data, val="hash:0.1", cut=2_000)

    # 2. `train` is the whole job: train, quantise, write the artifact, read it back, and score *that file* on the
    # validation split. Ctrl-C stops early and does the rest all the same; the same command again goes on from there.
    limits = [f"train.max_seconds={options.seconds:g}", *options.set]
    summary = bytegolf.train(options.preset, data, run, overrides=limits, resume=True).summary
    assert summary is not None  # None only on the helpers of a distributed run
    print(f"\n{summary.steps} steps, {summary.train_bytes:,} bytes read in {summary.train_seconds:.0f} s")
    print(f"artifact: {summary.artifact_bytes:,} bytes, validation: {summary.bpb:.3f} bits per byte")

    # 3. The model as anyone would load it. Bits per byte compare with what a compressor needs for the same text.
    model = bytegolf.load(run)
    sentence = "The model reads bytes, and finds chunks of its own."
    packed = len(lzma.compress(sentence.encode(), lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]))
    print(f"\n{sentence!r}: {model.score(sentence).bpb:.2f} bits per byte, LZMA {8 * packed / len(sentence):.2f}")
    print(model.chunks(sentence))
    print(model.generate("The model", max_bytes=80, temperature=0.7, seed=1))


if __name__ == "__main__":
    main()
