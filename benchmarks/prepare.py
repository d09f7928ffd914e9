"""How fast `bytegolf prepare` turns documents into token shards, in how much memory, and whether always the same ones.

    python benchmarks/prepare.py --megabytes 1000 --kill
    python benchmarks/prepare.py --megabytes 1000 --kill --tokenizer sp1024
    python benchmarks/prepare.py --source docs_selected.jsonl --tokenizer byte260

The documents are made up unless `--source` names some: words of Zipf's frequencies, some not ASCII, in documents whose
lengths scatter as FineWeb's do (mean 3,100 bytes), as JSON lines with the sidecar of published ones, from a fixed seed.
Each row is a command of its own: MB of documents a second by the clock, and by the processors' time of all its
processes (user + system), and the largest memory of them together (proportional set size, sampled). Every row must
leave the same bytes; with `--kill`, one that is killed (SIGKILL) halfway and run again as well.

A SentencePiece tokenizer is trained first, on 20 MB, and then used. All lies in a temporary folder, of about five times
the size of the documents, which is deleted in the end; $TMPDIR says where.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import bytegolf, machine, run, table

from bytegolf.data.specs import parse_tokenizers
from bytegolf.files import sha256

MEAN, SPREAD = 3_100, 0.9
"""Bytes of a made-up document: lognormal, mean and sigma."""


def made_up(size: int, seed: int = 0) -> Iterator[str]:
    """Documents of words whose frequencies fall as 1/rank, ``size`` bytes all told or a little more."""
    chance = np.random.default_rng(seed)
    letters = np.array(list("eeeettttaaaooiinnsshhrrddllccuummwwffggyyppbbvkxjqzéüß"))
    words = np.array(["".join(chance.choice(letters, count)) for count in chance.integers(2, 12, 20_000)], dtype=object)
    shares = 1 / np.arange(1, len(words) + 1)
    edges = np.cumsum(shares / shares.sum())
    word = float((shares / shares.sum() * [len(word.encode()) + 1 for word in words]).sum())
    written = 0
    while written < size:
        lengths = np.exp(chance.normal(np.log(MEAN) - SPREAD**2 / 2, SPREAD, 1000)) / word
        counts = np.maximum(1, lengths.astype(int))
        drawn = words[np.searchsorted(edges, chance.random(counts.sum()))]
        for piece in np.split(drawn, np.cumsum(counts)[:-1]):
            text = " ".join(piece) + ".\n"
            written += len(text.encode())
            yield text
            if written >= size:
                return


def write(path: Path, size: int) -> None:
    """Made-up documents and their sidecar, as they are published."""
    count, found = 0, hashlib.sha256()
    with path.open("wb") as file:
        for text in made_up(size):
            line = json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
            file.write(line)
            found.update(line)
            count += 1
    about = {"num_docs": count, "docs_val": min(50_000, count // 2), "docs_sha256": found.hexdigest()}
    path.with_name(path.name.removesuffix(".jsonl") + ".source_manifest.json").write_text(json.dumps(about))


def tree(pid: int) -> list[int]:
    """A process and all that it has started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(process for child in children for process in tree(int(child)))]


def memory(pid: int) -> int:
    """Bytes that a process and all that it has started hold together; pages that they share count once."""
    total = 0
    for process in tree(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended since
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def export(command: list[str], kill_after: float | None = None) -> dict[str, Any]:
    """Run `prepare`, and kill it after so many seconds; what it took."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        if kill_after is not None and time.perf_counter() - started > kill_after:
            os.kill(process.pid, signal.SIGKILL)
            kill_after = None
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, said = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"{' '.join(command)} failed with exit code {process.returncode}:\n{said}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor": used, "peak": peak, "killed": process.returncode != 0}


def fingerprint(out: Path) -> str:
    """One hash of all that is in a folder."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return hashlib.sha256("".join(f"{path.relative_to(out)} {sha256(path)}\n" for path in files).encode()).hexdigest()


def trained(tokenizer: str, folder: Path) -> str:
    """A file of specs that takes a model over, trained here on made-up documents."""
    documents = folder / "training.jsonl"
    write(documents, 20_000_000)
    run(bytegolf("prepare", str(documents), "--out", str(folder / "trained"), "--tokenizer", tokenizer))
    (model,) = (folder / "trained" / "tokenizers").glob("*.model")
    (spec,) = parse_tokenizers([tokenizer])
    path = folder / "specs.json"
    path.write_text(json.dumps([{**spec.to_json(), "reuse_model_path": str(model)}]))
    return str(path)


def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="byte260", help="byte260 or spN")
    parser.add_argument("--megabytes", type=float, default=64)
    parser.add_argument("--source", type=Path, help="a file that prepare reads, instead of made-up documents")
    parser.add_argument("--workers", default="1,2", help="numbers of processes, a row each")
    parser.add_argument("--kill", action="store_true", help="also kill one halfway, and run it again")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    prints: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch), Path(scratch) / "out"
        source = arguments.source or folder / "docs_selected.jsonl"
        if not arguments.source:
            write(source, round(arguments.megabytes * 1e6))
        size = source.stat().st_size
        tokenizer = arguments.tokenizer
        if tokenizer != "byte260":
            tokenizer = trained(tokenizer, folder)

        def measure(workers: str, what: str, kill_after: float | None = None) -> float:
            command = bytegolf(
                "prepare", str(source), "--out", str(out), "--tokenizer", tokenizer, "--workers", workers
            )
            took = export(command, kill_after)
            rows.append(
                {
                    "tokenizer": arguments.tokenizer,
                    "what": what,
                    "workers": int(workers),
                    "MB": round(size / 1e6, 1),
                    "seconds": round(took["seconds"], 2),
                    "MB/s": None if took["killed"] else round(size / 1e6 / took["seconds"], 1),
                    "processor s": round(took["processor"], 2),
                    "MB/processor s": None if took["killed"] else round(size / 1e6 / took["processor"], 1),
                    "peak MB": round(took["peak"] / 1e6),
                }
            )
            if not took["killed"]:
                prints.add(fingerprint(out))
                shutil.rmtree(out)
            return float(took["seconds"])

        for workers in arguments.workers.split(","):
            seconds = measure(workers, "export")
        if arguments.kill:
            measure(workers, "killed", seconds / 2)
            measure(workers, "gone on")
    print(machine(), end="\n\n")
    print(table(rows))
    print("every export left the same bytes" if len(prints) == 1 else f"{len(prints)} DIFFERENT exports", end="\n\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
