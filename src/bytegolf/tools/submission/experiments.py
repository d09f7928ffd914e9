"""Runs a submission's evaluation on texts made for the purpose, and notes what came of it.

It is a program of its own, started in a process of its own: numpy and Python's library are all it needs, and bytegolf
cannot be imported in it. What the script opens, connects to or starts is noted, and refused where no evaluation needs
it. (Python tells of these; native code could hide them.)

All it asks of a script is `eval --data FOLDER --losses FILE.npy`: the nats and bytes of each target, and a last line of
JSON with val_bpb, tokens, bytes, seq_len and vocab_size.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import numpy as np

SAMPLES = (4097, 16385, 65537)
"""Tokens of the first text tried; the next where the script says it is too short."""

BOS = 1
SEPARATE_SECONDS = 120.0
"""How long it may take to score one text once for every token of the alphabet."""

MOST_TOKENS = 4_000_000
"""The longest text that is made of blocks."""

SAME = 8
"""Equal blocks that must score the same, for blocks to count as independent."""

NEEDS = ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/bin")
"""Where Python, torch and numpy look besides their own folders."""

REFUSED = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")


class Watch:
    """What the script does besides computing, by kind: network, processes, files, imports."""

    def __init__(self, readable: list[str], writable: list[str]) -> None:
        self.seen: dict[str, list[str]] = {"network": [], "processes": [], "reads": [], "writes": [], "imports": []}
        self._readable = tuple(map(os.path.realpath, [*readable, *writable]))
        self._writable = tuple(map(os.path.realpath, writable))
        self.on = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook; what it refuses fails with a PermissionError."""
        if not self.on:
            return
        if event in REFUSED:
            self._refuse("network", f"{event} {arguments[1:]}")
        elif event in STARTS:
            self._refuse("processes", f"{event} {str(arguments[:2])[:200]}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            path, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2] or 0
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            allowed = self._writable if writes else self._readable
            if not path.startswith(allowed) and not path.startswith(NEEDS):
                self._refuse("writes" if writes else "reads", path)

    def _refuse(self, kind: str, what: str) -> None:
        self.seen[kind].append(what)
        raise PermissionError(f"an evaluation has no business with {what}")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """An import hook, which finds nothing and refuses bytegolf."""
        if name.partition(".")[0] == "bytegolf":
            self.seen["imports"].append(name)
            raise ImportError(f"{name} is not part of the submission")


class ScriptError(Exception):
    """The script failed; why, in its own last words."""


class Runner:
    """Runs the script's evaluation."""

    def __init__(self, script: Path, scratch: Path, watch: Watch) -> None:
        self._script, self._scratch, self._watch = script, scratch, watch
        self._count = 0
        self._code = compile(script.read_bytes(), str(script), "exec")

    def text(self, tokens: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        """What it says of a validation split of ``tokens``."""
        self._count += 1
        folder = self._scratch / f"text{self._count}"
        folder.mkdir()
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(tokens)
        shard = folder / "fineweb_val_000000.bin"
        shard.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())
        try:
            found, table = self.folder(folder, self._scratch / f"text{self._count}.npy")
        finally:
            shard.unlink()
            folder.rmdir()
        if len(table) != len(tokens) - 1:
            raise ScriptError(f"it lists {len(table)} targets of a text that has {len(tokens) - 1}")
        return found, table

    def folder(self, data: Path, losses: Path) -> tuple[dict[str, Any], np.ndarray]:
        """What it says of the validation split in ``data``: its JSON, and nats and bytes by target, (N, 2)."""
        said, complaints = io.StringIO(), io.StringIO()
        sys.argv = [str(self._script), "eval", "--data", str(data), "--losses", str(losses)]
        self._watch.on = True
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaints):
                sys.modules["__main__"] = module = ModuleType("__main__")
                module.__file__ = str(self._script)
                exec(self._code, module.__dict__)
        except SystemExit as error:
            if error.code:
                raise ScriptError(str(error.code)[:500]) from error
        except BaseException as error:
            raise ScriptError("".join(traceback.format_exception_only(error)).strip()[-500:]) from error
        finally:
            self._watch.on = False
        try:
            found = json.loads(said.getvalue().rstrip("\n").split("\n")[-1])
            table = np.load(losses, allow_pickle=False).astype(np.float64)
            if not isinstance(found, dict) or table.ndim != 2 or table.shape[1] != 2:
                raise ValueError
        except (ValueError, IndexError, OSError) as error:
            raise ScriptError("it prints no JSON object or writes no table of losses") from error
        return found, table


def experiments(runner: Runner, job: dict[str, Any], note: Callable[..., None]) -> None:
    """Everything that is tried on texts of our own; ``note(name, **facts)`` after each."""
    tokens = np.load(job["tokens"])
    for size in SAMPLES:
        try:
            found, _ = runner.text(tokens[:size])
            break
        except ScriptError as error:
            if size == SAMPLES[-1] or size >= len(tokens):
                note("fails", why=str(error))
                return
    length, alphabet = int(found.get("seq_len", 0)), int(found.get("vocab_size", 0))
    if length < 2 or alphabet < 2:
        note("fails", why="its JSON says no seq_len and vocab_size")
        return
    sample = tokens[: length * min(4, (len(tokens) - 1) // length) + 1]
    started = time.perf_counter()
    _, before = runner.text(sample)
    seconds = time.perf_counter() - started
    note("again", moved=_moved(before, runner.text(sample)[1]), targets=len(before))
    for name, at, changed in _futures(sample, length, alphabet):
        _, after = runner.text(changed)
        earlier, later = (slice(0, at), slice(at, None))
        alive = bool((before[later, 0] != after[later, 0]).any())
        note("future", how=name, at=at, moved=_moved(before[earlier], after[earlier]), alive=alive)
    for place in (length - 1, length - 2):
        _sums(runner, sample[:length], place, alphabet, seconds, note)


def _moved(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference in nats; infinite where one has a score and the other none."""
    a, b = a[:, 0], b[:, 0]
    if len(a) != len(b) or (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    return float(np.nan_to_num(np.abs(a - b)).max(initial=0.0))


def _futures(sample: np.ndarray, length: int, alphabet: int) -> Iterator[tuple[str, int, np.ndarray]]:
    """The text with other tokens behind a place: how, the last token that is as it was, and all of them."""
    chance = np.random.Generator(np.random.PCG64(length))
    last = len(sample) - 1
    for number, at in enumerate(sorted({last // 5 | 1, last // 3 & ~1, length, last // 2 | 1, 3 * last // 4 & ~1})):
        future = sample[at + 1 :]
        if number % 3 == 0:
            yield "replaced", at, np.concatenate((sample[: at + 1], 4 + chance.integers(0, alphabet - 4, len(future))))
        elif number % 3 == 1:
            cut = min(len(future), 2)
            drawn = 4 + chance.integers(0, alphabet - 4, cut)
            yield "deleted", at, np.concatenate((sample[: at + 1], future[cut:], drawn))
        else:
            yield "shuffled", at, np.concatenate((sample[: at + 1], chance.permutation(future)))


def _sums(
    runner: Runner, prefix: np.ndarray, place: int, alphabet: int, seconds: float, note: Callable[..., None]
) -> None:
    """Put every token of the alphabet at one place: if the probabilities are a distribution fixed before it is seen,
    what they say of each adds up to 1. A model that sees the token it predicts gives each too much.

    The scores before it must not tell which it is. All are scored in one text, block behind block, if blocks turn out
    not to know of one another; else one by one.
    """
    block = prefix.copy()
    block[0] = BOS
    length = len(block)
    blocks = np.tile(block, (alphabet, 1))
    target = np.arange(alphabet) * length + place - 1  # target i is token i + 1
    if blocks.size <= MOST_TOKENS:
        few = slice(0, min(alphabet, SAME))
        same = runner.text(np.append(blocks[few].ravel(), BOS))[1][target[few], 0]
        if not np.isnan(same).any() and np.ptp(same) < 1e-4:
            blocks[:, place] = np.arange(alphabet)
            nats = runner.text(np.append(blocks.ravel(), BOS))[1][:, 0].reshape(alphabet, length)
            total = float(np.exp(-nats[:, place - 1]).sum())
            note("sum", place=place, total=total, tokens=alphabet, moved=_spread(nats[:, : place - 1]))
            return
    if alphabet * seconds > SEPARATE_SECONDS:
        note(
            "no sum", why=f"its blocks influence each other, and {alphabet} runs of {seconds:.1f} s would take too long"
        )
        return
    rows = []
    for token in range(alphabet):
        block[place] = token
        rows.append(runner.text(np.append(block, BOS))[1][:place, 0])
    total = float(np.exp(-np.stack(rows)[:, -1]).sum())
    note("sum", place=place, total=total, tokens=alphabet, moved=_spread(np.stack(rows)[:, :-1]))


def _spread(nats: np.ndarray) -> float:
    """How far the scores before the place differ, whatever token is put there."""
    return float(np.nan_to_num(np.ptp(nats, axis=0), nan=float("inf")).max(initial=0.0))


def _whole(runner: Runner, job: dict[str, Any], note: Callable[..., None]) -> None:
    """Score the split itself."""
    found, _ = runner.folder(Path(job["data"][0]), Path(job["losses"]))
    note("whole", **{key: found.get(key) for key in ("val_bpb", "tokens", "bytes", "seq_len")})


def main(job: dict[str, Any]) -> None:
    """Do a job: see ``trial``."""
    import resource  # which Windows lacks

    for kind, most in job["limits"].items():
        resource.setrlimit(getattr(resource, kind), (most, most))
    script, scratch = Path(job["script"]), Path(job["scratch"])
    libraries = [sys.prefix, sys.base_prefix, *filter(None, sys.path)]
    watch = Watch([str(script.parent), __file__, *job["data"], *libraries], [str(scratch)])
    sys.addaudithook(watch.hook)
    sys.meta_path.insert(0, watch)
    results: TextIO
    with open(job["results"], "w", encoding="utf-8") as results:  # noqa: PTH123  (no path of the script's)

        def note(name: str, **facts: Any) -> None:
            results.write(json.dumps({"name": name, **facts}) + "\n")
            results.flush()

        runner = Runner(script, scratch, watch)
        for part in (experiments, _whole):
            try:
                part(runner, job, note)
            except ScriptError as error:
                note("fails", why=str(error))
        note("watched", **watch.seen)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
