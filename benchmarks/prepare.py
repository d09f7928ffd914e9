"""How fast `bytegolf prepare` turns text into token shards, in MB of text a second.

    python benchmarks/prepare.py
    python benchmarks/prepare.py --tokenizer sp1024 --megabytes 16
    python benchmarks/prepare.py --source books/ --tokenizer byte260

The corpus is made up (words of Zipf's frequencies, some not ASCII) unless `--source` names one; it is written as plain
text and as JSON lines, in a temporary folder. A SentencePiece tokenizer is trained first and then used: the row "train
and encode" has both, "encode" a second export with the model that the first left.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import tempfile
import time
from pathlib import Path

from measuring import machine, peak_memory, table

from bytegolf.data.prepare import prepare
from bytegolf.data.specs import TokenizerSpec, parse_tokenizers

DOCUMENT = 4_000
"""Characters of a made-up document."""


def made_up(size: int) -> list[str]:
    """Documents of words whose frequencies fall as 1/rank, ``size`` bytes all told (or a little more)."""
    chance = random.Random(0)
    letters = "eeeettttaaaooiinnsshhrrddllccuummwwffggyyppbbvkxjqzéüß"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 11))) for _ in range(20_000)]
    shares = [1 / rank for rank in range(1, len(words) + 1)]
    documents, written = [], 0
    while written < size:
        text = " ".join(chance.choices(words, shares, k=DOCUMENT // 7)) + ".\n"
        documents.append(text)
        written += len(text.encode())
    return documents


def write(documents: list[str], folder: Path) -> dict[str, tuple[list[str], int]]:
    """Sources by format: the paths to give to ``prepare`` and the size of their text in bytes."""
    size = sum(len(text.encode()) for text in documents)
    plain = folder / "text"
    plain.mkdir()
    for first in range(0, len(documents), 100):
        (plain / f"{first:07d}.txt").write_text("".join(documents[first : first + 100]), encoding="utf-8")
    lines = folder / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return {"text": ([str(plain)], size), "JSON lines": ([str(lines)], size)}


def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="byte260", help="byte260 or spN")
    parser.add_argument("--megabytes", type=float, default=64)
    parser.add_argument("--source", type=Path, help="a file or folder that prepare reads, instead of made-up text")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.source:
            files = [arguments.source] if arguments.source.is_file() else arguments.source.rglob("*")
            size = sum(path.stat().st_size for path in files if path.is_file())
            sources = {"given": ([str(arguments.source)], size)}
        else:
            sources = write(made_up(round(arguments.megabytes * 1e6)), folder)
        spec: str | TokenizerSpec = arguments.tokenizer

        def export(form: str, what: str, out: Path) -> None:
            paths, size = sources[form]
            started = time.perf_counter()
            prepare(paths, out, [spec], cut=100_000, quiet=True)
            seconds = time.perf_counter() - started
            rows.append(
                {
                    "tokenizer": arguments.tokenizer,
                    "source": form,
                    "what": what,
                    "MB": round(size / 1e6, 1),
                    "seconds": round(seconds, 2),
                    "MB/s": round(size / 1e6 / seconds, 2),
                    "peak MB": round(peak_memory() / 1e6),
                }
            )

        if arguments.tokenizer != "byte260":
            export(next(iter(sources)), "train and encode", folder / "trained")
            (model,) = (folder / "trained" / "tokenizers").glob("*.model")
            (trained,) = parse_tokenizers([arguments.tokenizer])
            spec = dataclasses.replace(trained, reuse_model_path=str(model))
        for round_ in range(arguments.repeats):
            for form in sources:
                export(form, "encode", folder / f"{form}{round_}")
    print(machine(), end="\n\n")
    print(table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
