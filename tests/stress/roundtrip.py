"""Does every validation document come back from the codec, and at the size that `eval` claims?

    python tests/stress/roundtrip.py runs/cpu-demo --data data/default

Each document is compressed as a file of its own and decompressed again, in as many streams side by side as the codec
takes at once. Every beginning of a stream costs something, so the sum is far above what one large file would take;
``--streams`` sets their number, 0 for as many as pay.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import numpy as np
from measuring import table

from bytegolf.data.dataset import open_split
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.infer.files import open_codec
from bytegolf.infer.streams import MOST_STREAMS


def documents(data: Path) -> list[bytes]:
    """The validation documents, by the BOS in front of each."""
    tokenizer = ByteTokenizer()
    stream = open_split(data, tokenizer.name, "val", tokenizer.vocab_size)
    tokens = stream.slice(0, len(stream))
    return [tokenizer.decode(part) for part in np.split(tokens, np.flatnonzero(tokens == tokenizer.BOS)[1:])]


def main() -> None:
    """Parse the command line, go through the documents, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run's folder or an artifact file")
    parser.add_argument("--data", type=Path, default=Path("data/default"))
    parser.add_argument("--limit", type=int, default=0, help="documents to try; 0 = all")
    parser.add_argument("--streams", type=int, default=MOST_STREAMS)
    arguments = parser.parse_args()
    codec, _ = open_codec(arguments.model)
    rows, wrong = [], 0
    texts = documents(arguments.data)
    for number, text in enumerate(texts[: arguments.limit or None]):
        packed, back = io.BytesIO(), io.BytesIO()
        started = time.perf_counter()
        codec.compress(io.BytesIO(text), packed, streams=arguments.streams)
        codec.decompress(io.BytesIO(packed.getvalue()), back)
        exact = back.getvalue() == text
        wrong += not exact
        size = len(packed.getvalue())
        figures = {"bytes": len(text), "compressed": size, "bits per byte": 8 * size / max(1, len(text))}
        rows.append({"document": number, **figures, "exact": str(exact)})
        print(f"{number + 1} of {len(texts)}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    print(table(rows))
    print(json.dumps({"documents": len(rows), "exact": len(rows) - wrong, "bytes": sum(row["bytes"] for row in rows)}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
