"""How fast mixing is, and what each of its parts brings.

    python benchmarks/mixing.py runs/demo --data data/default
    python benchmarks/mixing.py runs/demo --data data/default --parts --tokens 0

The first measures bytes per second of processor time of mixing by itself, without a model and with the model's
distributions, and the seconds of a score with and without mixing, which take turns. With ``--parts`` it leaves out each
context and selector in turn, and adds each of the others: the model reads the text once, and only mixing is done again.
An artifact's primer is read first, each time. ``--parts`` over the whole default split takes three minutes of a core,
and with a primer of 4 MB five more. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from measuring import machine, table
from numpy.typing import NDArray

from bytegolf.artifact.loading import load_own
from bytegolf.config import ContextName, MixConfig, SelectorName
from bytegolf.data.dataset import open_split
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.evaluate.mixing import opens
from bytegolf.evaluate.modes import ScoringMode, watched
from bytegolf.mixing.frequencies import frequencies_of
from bytegolf.mixing.mixer import Mixer
from bytegolf.mixing.primer import Primer
from bytegolf.model.lm import Forward


@dataclasses.dataclass(frozen=True)
class Read:
    """A text as the model read it, without special tokens: n bytes."""

    data: NDArray[np.uint8]
    frequencies: NDArray[np.uint32]
    """(n, 1, 256)"""
    opened: NDArray[np.bool_]
    primer: Primer | None
    """the artifact's, which contexts read first"""

    def mixed(self, settings: MixConfig, experts: int = 1) -> tuple[float, float]:
        """Bits per byte, and bytes per second of processor time."""
        mixer = Mixer.behind(self.primer, settings, 1, experts, len(self.data))
        started = time.process_time()
        nats = mixer.run(self.data, self.frequencies[:, :experts], self.opened)
        seconds = time.process_time() - started
        return float(nats.mean() / np.log(2)), len(self.data) / seconds


def main() -> None:
    """Parse the command line, measure, print tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run's folder or an artifact; it must read bytes")
    parser.add_argument("--data", type=Path, required=True, help="a folder made by `bytegolf prepare`")
    parser.add_argument("--tokens", type=int, default=1 << 18, help="how many of the validation split; 0 = all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", action="store_true", help="what each part brings, instead of the speed")
    arguments = parser.parse_args()
    loaded = load_own(arguments.model, arguments.data)
    model, tokenizer, primer = loaded.model, loaded.tokenizer, loaded.artifact.primer
    assert isinstance(tokenizer, ByteTokenizer), "the model does not read bytes"
    stream = open_split(arguments.data, tokenizer.name, "val", tokenizer.vocab_size)
    limit = min(arguments.tokens, len(stream) - 1) or len(stream) - 1
    plain = ScoringMode(loaded.config.train.seq_len, tail="score", primer=primer)
    parts: list[tuple[NDArray[np.uint32], NDArray[np.bool_]]] = []

    def see(out: Forward) -> None:
        for row, opened in zip(out.logits, opens(out.traces, *out.logits.shape[:2]), strict=True):
            parts.append((frequencies_of(row.cpu(), model.config.softcap), opened))

    with watched(model, see):
        before = plain.score(model, stream, tokenizer, limit=limit)
    tokens = stream.slice(0, limit + 1).astype(np.int64)[1:]
    frequencies, opened = (np.concatenate(each)[:limit] for each in zip(*parts, strict=True))
    kept = tokens >= tokenizer.OFFSET
    data = (tokens[kept] - tokenizer.OFFSET).astype(np.uint8)
    read = Read(data, np.ascontiguousarray(frequencies[kept, tokenizer.OFFSET :])[:, None], opened[kept], primer)
    print(f"{machine()}\n{limit:,} tokens, plain {before.bpb:.4f} bits per byte\n")
    found: dict[str, Any] = {"tokens": limit, "plain": before.bpb}
    if arguments.parts:
        found["parts"] = {}
        for name, what in _variants():
            found["parts"][name] = read.mixed(*what)[0]
            print(f"{name}: {found['parts'][name]:.4f}", file=sys.stderr, flush=True)
        whole = found["parts"]["all"]
        rows = [
            {"mixing": name, "bits per byte": f"{bpb:.4f}", "against all": f"{bpb - whole:+.4f}"}
            for name, bpb in found["parts"].items()
        ]
    else:
        for name, experts in (("contexts alone", 0), ("with the model", 1)):
            runs = [read.mixed(MixConfig(), experts) for _ in range(arguments.rounds)]
            found[name] = {"bpb": runs[0][0], "bytes_per_second": statistics.median(speed for _, speed in runs)}
        seconds: dict[str, list[float]] = {"plain": [], "mixed": []}
        for _ in range(arguments.rounds):
            for name, mode in (("plain", plain), ("mixed", dataclasses.replace(plain, mix=MixConfig(on=True)))):
                started = time.perf_counter()
                mode.score(model, stream, tokenizer, limit=limit)
                seconds[name].append(time.perf_counter() - started)
        found["seconds"] = {name: statistics.median(each) for name, each in seconds.items()}
        found["ratio"] = statistics.median(b / a for a, b in zip(seconds["plain"], seconds["mixed"], strict=True))
        rows = [
            {
                "mixing by itself": name,
                "bits per byte": f"{found[name]['bpb']:.4f}",
                "kB per processor second": found[name]["bytes_per_second"] / 1000,
            }
            for name in ("contexts alone", "with the model")
        ]
        told = ", ".join(f"{name} {each:.2f} s" for name, each in found["seconds"].items())
        print(f"the whole score: {told}; ratio {found['ratio']:.2f}\n")
    print(table(rows))
    print(json.dumps(found))


def _variants() -> Iterator[tuple[str, tuple[MixConfig, int]]]:
    """What is tried, by name: settings, and how many experts."""
    whole = MixConfig()
    yield "all", (whole, 1)
    yield "no model", (whole, 0)
    for field, every in (("contexts", get_args(ContextName)), ("selectors", get_args(SelectorName))):
        named: tuple[str, ...] = getattr(whole, field)
        for name in named:
            changed = tuple(one for one in named if one != name)
            yield f"without {name}", (dataclasses.replace(whole, **{field: changed}), 1)  # type: ignore[arg-type]
        for name in every:
            if name not in named:
                yield f"with {name}", (dataclasses.replace(whole, **{field: (*named, name)}), 1)  # type: ignore[arg-type]
    rest = tuple(name for name in whole.contexts if name not in ("word", "words"))
    yield "neither words nor chunks", (dataclasses.replace(whole, contexts=rest), 1)
    yield "chunks instead of words", (dataclasses.replace(whole, contexts=(*rest, "chunk", "chunks")), 1)
    for megabytes in (16, 64, 1024):
        yield f"{megabytes} MB", (dataclasses.replace(whole, megabytes=megabytes), 1)


if __name__ == "__main__":
    main()
