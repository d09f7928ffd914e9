"""Load a trained model and look inside: its chunks, its boundaries, its probabilities, its score.

python examples/load_and_look.py                       # trains a small model for half a minute first
python examples/load_and_look.py runs/cpu-demo         # a run of yours, or an artifact file (.bgolf)
python examples/load_and_look.py runs/cpu-demo --text "Any text that you like."
"""

import argparse
from pathlib import Path

import numpy as np

import bytegolf

TEXT = "The quick brown fox jumps over the lazy dog."


def quick_run(*overrides: str) -> Path:
    """A small run on the default corpus, 12 MB of messages of US presidents; trained once and then kept."""
    data, run = Path("data/default"), Path("runs/quick")
    if not (data / "manifest.json").exists():
        bytegolf.prepare([], data)
    limits = ["train.max_seconds=30", "eval.limit=65536", *overrides]
    return run if (run / "summary.json").exists() else bytegolf.train("cpu-demo", data, run, overrides=limits).path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run's folder or an artifact; without it, a small run is trained")
    parser.add_argument("--text", default=TEXT)
    options = parser.parse_args()

    model = bytegolf.load(options.run or quick_run())
    print(model)

    # The model reads bytes and decides before which of them a new chunk begins. A chunk is one position of its main
    # network, which does most of the work: the longer the chunks, the cheaper the text.
    print("\nchunks      ", model.chunks(options.text))
    print("boundaries  ", model.boundaries(options.text), "(byte offsets at which chunks begin)")

    # `read` has both views of every byte: p, the router's probability that a chunk begins there, and the byte's
    # surprisal in bits. (p is NaN where the router has no choice: the first byte of a text always begins a chunk.)
    reading = model.read(options.text)
    p = reading.levels[0].p if reading.levels else np.full(len(reading.data), np.nan)
    print("\nbyte    p  bits")
    for byte, probability, bits in list(zip(reading.data, p, reading.bits, strict=True))[:12]:
        print(f"{chr(byte)!r:5} {probability:4.2f} {bits:5.2f}")

    # Row i of log_probs is the distribution of byte i, given the bytes before it: natural logarithms, (n, 256).
    log_probs = model.log_probs(options.text)
    likely = np.argsort(log_probs[-1])[::-1][:5]  # the five likeliest last bytes
    print("\nlast byte   ", {chr(value): round(float(np.exp(log_probs[-1, value])), 3) for value in likely})

    score = model.score(options.text)
    print(f"score        {score.nats:.1f} nats over {score.bytes} bytes: {score.bpb:.3f} bits per byte")
    print(f"continuation {model.generate(options.text[:20], max_bytes=60, seed=1)!r}")


if __name__ == "__main__":
    main()
