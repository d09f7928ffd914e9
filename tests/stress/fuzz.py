"""Does any reader of bytegolf answer a stranger's input otherwise than by taking it or refusing it in one sentence?

    python tests/stress/fuzz.py                          # every reader, 100,000 inputs in all
    python tests/stress/fuzz.py --reader artifact --inputs 20000 --seed 2
    python tests/stress/fuzz.py --replay fuzz/artifact-1a2b3c4d.bin

Inputs are good ones with parts changed: bytes, or what they mean, with checksums made right again. Where atheris is
installed (`pip install 'bytegolf[fuzz]'`), it chooses by the code that they reach; `--engine own` draws them by number,
the same for the same seed. Each reader runs in a process of its own with little more memory than it begins with. What
counts as a failure: any exception but BytegolfError, a sentence that is none, a crash, more than ten seconds, too much
memory, a file opened outside the input's folder, a process started, anything unpickled. Failing inputs are saved.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import importlib.util
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from measuring import table

MEMORY = 1 << 30
"""Bytes that a reader may take beyond what its process has when it begins."""

SILENCE = 60
"""Seconds without an input done after which a process counts as hanging."""

KEPT = 20
"""Failing inputs saved of each reader."""

COSTLY = {
    "resume": 0.08,
    "checkpoint": 0.4,
    "ended": 0.4,
    "results": 0.4,
    "study": 0.5,
    "artifact": 0.7,
    "public": 0.4,
    "hnet": 0.4,
    "weights": 0.2,
}
"""Shares of readers that are slower than the others."""

_COUNTS = struct.Struct("<4Q")  # tried, accepted, refused, failed


def main() -> None:
    """Parse the command line, fuzz, print a table and one line of JSON; exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="over all readers, or for the one that is named")
    parser.add_argument("--reader", help="only this one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0, help="stop each reader after so long; 0 = never")
    parser.add_argument("--engine", choices=("auto", "atheris", "own"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder of failing inputs")
    parser.add_argument("--replay", type=Path, help="a saved input: what its reader makes of it")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # of the process of one reader
    arguments = parser.parse_args()
    if arguments.work:
        return worker(arguments)
    if arguments.replay:
        return replay(arguments.replay)
    if arguments.engine == "auto":
        arguments.engine = "atheris" if importlib.util.find_spec("atheris") else "own"
    rows = [supervise(name, inputs, arguments) for name, inputs in shares(arguments).items()]
    total = {key: sum(row[key] for row in rows) for key in ("inputs", "accepted", "refused", "failures")}
    print(table([*rows, {"reader": "all", **total, "seconds": sum(row["seconds"] for row in rows)}]))
    print(json.dumps({"engine": arguments.engine, "seed": arguments.seed, **total, "readers": rows}))
    sys.exit(1 if total["failures"] else 0)


def shares(arguments: argparse.Namespace) -> dict[str, int]:
    """How many inputs each reader gets."""
    from fuzzing.readers import READERS

    names = [reader.name for reader in READERS]
    if arguments.reader:
        if arguments.reader not in names:
            sys.exit(f"no reader is called {arguments.reader!r}: there are {', '.join(names)}")
        return {arguments.reader: arguments.inputs}
    whole = sum(COSTLY.get(name, 1.0) for name in names)
    return {name: -int(-arguments.inputs * COSTLY.get(name, 1.0) // whole) for name in names}


def supervise(name: str, inputs: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one reader's process until it has tried ``inputs``, again after each crash; its row of the table."""
    started, crashes, seed = time.perf_counter(), 0, arguments.seed
    arguments.out.mkdir(parents=True, exist_ok=True)
    counts = [0, 0, 0, 0]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as home:
        while counts[0] < inputs and crashes < KEPT:
            work = Path(home) / f"{seed}-{counts[0]}"
            work.mkdir()
            (work / "counts").write_bytes(_COUNTS.pack(*counts))
            command = [sys.executable, __file__, "--work", str(work), "--reader", name, "--out", str(arguments.out)]
            command += ["--inputs", str(inputs), "--seed", str(seed), "--engine", arguments.engine]
            command += ["--seconds", str(arguments.seconds)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            said, why = _wait(process, work)
            counts = list(_COUNTS.unpack((work / "counts").read_bytes()))
            if process.returncode == 0:
                break
            current = work / "current"
            if not current.exists():
                sys.exit(f"the process of {name} could not begin:\n{said}")
            crashes += 1
            counts[3] += 1
            why = why or f"the process ended with {process.returncode}"
            _save(arguments.out, name, current.read_bytes(), f"{why}\n{said[-4000:]}")
            print(f"{name}: {why}", file=sys.stderr)
            seed += 1000  # of atheris; the own engine goes on with the next number
    seconds = round(time.perf_counter() - started, 1)
    row = dict(zip(("inputs", "accepted", "refused", "failures"), counts, strict=True))
    print(f"{name}: {row} in {seconds} s", file=sys.stderr)
    return {"reader": name, **row, "seconds": seconds}


def _wait(process: subprocess.Popen[bytes], work: Path) -> tuple[str, str]:
    """Wait for its end, or end it where no input has been done for long; what it said, and why it was ended."""
    before, since = -1, time.monotonic()
    while True:
        try:
            said = process.communicate(timeout=5)[1]
            return said.decode(errors="replace"), ""
        except subprocess.TimeoutExpired:
            tried = _COUNTS.unpack((work / "counts").read_bytes())[0]
            if tried != before:
                before, since = tried, time.monotonic()
            elif time.monotonic() - since > SILENCE + (60 if tried == 0 else 0):
                process.send_signal(signal.SIGABRT)
                said = process.communicate()[1]
                return said.decode(errors="replace"), f"no answer for {SILENCE} s"


def worker(arguments: argparse.Namespace) -> None:
    """Try inputs on one reader, and count in a file what came of them."""
    faulthandler.enable()
    engine = _atheris if arguments.engine == "atheris" else _own
    engine(arguments)


class Trial:
    """One reader at work, and its counts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from fuzzing import guard
        from fuzzing.readers import READERS

        (kind,) = (reader for reader in READERS if reader.name == arguments.reader)
        self.arguments, self.judge = arguments, guard.judge
        place = arguments.work / "input"
        place.mkdir()
        self.reader = kind(place)
        for seed in self.reader.seeds:  # imports what is imported late; good input must be good
            with contextlib.chdir(self.reader.folder):
                self.reader.read(seed)
        with (arguments.work / "counts").open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _COUNTS.size)
        self._current = (arguments.work / "current").open("wb", buffering=0)
        self.counts = list(_COUNTS.unpack(self._map[:]))
        self._until = time.monotonic() + arguments.seconds if arguments.seconds else float("inf")
        guard.limit_memory(MEMORY)

    def done(self) -> bool:
        """Whether there was enough of it."""
        return self.counts[0] >= self.arguments.inputs or time.monotonic() > self._until

    def __call__(self, data: bytes) -> None:
        """Try one input."""
        self._current.seek(0)
        self._current.truncate()
        self._current.write(data)
        self.counts[0] += 1
        self._map[:] = _COUNTS.pack(*self.counts)
        try:
            verdict = self.judge(lambda: self.reader.read(data), self.reader.folder, self.reader.roams)
            self.counts[1 if verdict == "accepted" else 2] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.counts[3] += 1
            if self.counts[3] <= KEPT:
                _save(self.arguments.out, self.reader.name, data, traceback.format_exc())
        self._map[:] = _COUNTS.pack(*self.counts)


def _own(arguments: argparse.Namespace) -> None:
    """Inputs by number: the same for the same seed."""
    trial = Trial(arguments)
    while not trial.done():
        trial(trial.reader.input(random.Random(f"{arguments.seed} {arguments.reader} {trial.counts[0]}")))


def _atheris(arguments: argparse.Namespace) -> None:
    """Inputs that atheris chooses by the code that they reach, changed by it or by the reader's own means."""
    import atheris

    with atheris.instrument_imports(include=["bytegolf", "json", "tomllib"], enable_loader_override=False):
        import fuzzing.readers  # noqa: F401  (with all that it imports)
    trial = Trial(arguments)
    corpus = arguments.work / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(trial.reader.seeds):
        (corpus / str(number)).write_bytes(seed)

    def change(data: bytes, longest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.2:
            return bytes(atheris.Mutate(data, longest))
        return trial.reader.alter(chance, data, chance.choice(trial.reader.seeds))[:longest]

    def test(data: bytes) -> None:
        if trial.done():
            os._exit(0)
        trial(data)

    # its own limits are off: ours say what came of an input
    options = [f"-seed={arguments.seed}", "-timeout=0", "-rss_limit_mb=0", "-malloc_limit_mb=0", "-max_len=1000000"]
    options += ["-verbosity=0", "-detect_leaks=0", "-len_control=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test, custom_mutator=change)
    atheris.Fuzz()


def _save(folder: Path, name: str, data: bytes, why: str) -> None:
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:8]}.bin"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(why, errors="backslashreplace")


def replay(path: Path) -> None:
    """Try one saved input, without limits, and say what came of it."""
    from fuzzing.guard import judge
    from fuzzing.readers import READERS

    (kind,) = (reader for reader in READERS if reader.name == path.name.split("-")[0])
    with tempfile.TemporaryDirectory() as home:
        reader = kind(Path(home))
        for seed in reader.seeds:
            with contextlib.chdir(reader.folder):
                reader.read(seed)
        data = path.read_bytes()
        print(judge(lambda: reader.read(data), reader.folder, reader.roams))


if __name__ == "__main__":
    main()
