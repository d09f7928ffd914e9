"""Runs a submission's evaluation on texts made for the purpose, and notes what came of it.

It is a program of its own, started in a process of its own: numpy and Python's library are all it needs, and bytegolf
cannot be imported in it. What the script opens, connects to or starts is noted, and refused where no evaluation needs
it. (Python tells of these; native code could hide them.)

All it asks of a script is `eval --data FOLDER --losses FILE.npy`: the nats and bytes of each target, and a last line of
JSON with val_bpb, tokens, bytes, seq_len and vocab_size.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import numpy as np

SAMPLES = (4097, 16385, 65537)
"""Tokens of the first text tried; the next where the script says it is too short."""

BOS = 1
PLAIN_SECONDS = 60
"""How long one window may take without kernels."""

SEPARATE = 0.25
"""The part of the time of all that it may take to score one text once for every token of the alphabet."""

HANGS_SECONDS = 60.0
"""How long a branch of a run may take before it counts as stuck."""

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

    def __init__(self, readable: list[str], writable: list[str], programs: Sequence[str] = ()) -> None:
        self.seen: dict[str, list[str]] = {"network": [], "processes": [], "reads": [], "writes": [], "imports": []}
        self._readable = tuple(map(os.path.realpath, [*readable, *writable]))
        self._writable = tuple(map(os.path.realpath, writable))
        self._programs = tuple(programs)
        self.on = False
        self.opens: dict[str, Callable[[], None]] = {}
        """what is called, once, when a file is about to be opened"""

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook; what it refuses fails with a PermissionError."""
        if not self.on:
            return
        if event in REFUSED:
            self._refuse("network", f"{event} {arguments[1:]}")
        elif event in STARTS:
            if event == "subprocess.Popen" and arguments[0] in self._programs:
                return
            self._refuse("processes", f"{event} {str(arguments[:2])[:200]}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            path, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2] or 0
            if path in self.opens:
                self.opens.pop(path)()
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


class BranchedError(BaseException):
    """A run has done its part: its branches went on. No Exception, which a script might catch."""


class Runner:
    """Runs the script's evaluation."""

    def __init__(self, script: Path, scratch: Path, watch: Watch) -> None:
        self._script, self._scratch, self._watch = script, scratch, watch
        self._count = 0
        self._code = compile(script.read_bytes(), str(script), "exec")

    def text(self, tokens: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        """What it says of a validation split of ``tokens``."""
        with self._shard(tokens) as (shard, losses):
            found, table = self.folder(shard.parent, losses)
        if len(table) != len(tokens) - 1:
            raise ScriptError(f"it lists {len(table)} targets of a text that has {len(tokens) - 1}")
        return found, table

    @contextlib.contextmanager
    def _shard(self, tokens: np.ndarray) -> Iterator[tuple[Path, Path]]:
        """A validation split of ``tokens``, which is the only file of its folder, and where losses are written."""
        self._count += 1
        folder = self._scratch / f"text{self._count}"
        folder.mkdir()
        shard = folder / "fineweb_val_000000.bin"
        _write(shard, tokens)
        try:
            yield shard, self._scratch / f"text{self._count}.npy"
        finally:
            shard.unlink()
            folder.rmdir()

    def branches(self, texts: np.ndarray, seconds: float) -> list[np.ndarray]:
        """The tables of several texts of one length, (texts, tokens), for which the script starts only once.

        Where it first opens the text it has seen nothing of it. There a process is forked for each text in turn, which
        finds that text in the file and goes on. So what an artifact costs to open, or a primer to read, is paid once.

        No tables where that cannot be done (no fork, another thread that a fork would lose, a branch that fails or
        hangs, a text that is opened unseen), or would take more than ``seconds``.
        """
        found: list[np.ndarray] = []
        parent = os.getpid()
        with self._shard(texts[0]) as (shard, losses):

            def branch() -> None:
                self._watch.on = False
                gc.freeze()  # a collection in a branch would touch, and so copy, every page
                begun = time.monotonic()
                until = begun + seconds
                while len(found) < len(texts) and _alone():
                    _write(shard, texts[len(found)])
                    losses.unlink(missing_ok=True)
                    child = os.fork()
                    if not child:
                        self._watch.on = True
                        return
                    if not _ends_well(child, min(until, time.monotonic() + HANGS_SECONDS)) or not losses.exists():
                        break
                    found.append(np.load(losses, allow_pickle=False).astype(np.float64))
                    now, each = time.monotonic(), len(texts) / len(found)
                    if len(found) >= SAME and begun + each * (now - begun) > until:
                        break
                raise BranchedError

            self._watch.opens = {os.path.realpath(shard): branch}
            code = 1
            try:
                self.folder(shard.parent, losses)
                code = 0
            except (ScriptError, BranchedError):
                pass
            finally:
                if os.getpid() != parent:
                    os._exit(code)
                self._watch.opens = {}
        return found if len(found) == len(texts) and {len(one) for one in found} == {texts.shape[1] - 1} else []

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
        except BranchedError:
            raise
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


def _write(shard: Path, tokens: np.ndarray) -> None:
    """A token shard."""
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    shard.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


def _alone() -> bool:
    """Whether this process can be forked, and has no thread besides this one, whose work a fork would wait for."""
    tasks = Path("/proc/self/task")
    return hasattr(os, "fork") and (len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()) == 1


def _ends_well(child: int, until: float) -> bool:
    """Wait for a process, which is killed if it has not ended in time."""
    pause = 0.001
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


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
    futures = list(_futures(sample, length, alphabet))
    texts = np.stack([sample, *(changed for _, _, changed in futures)])
    most = SEPARATE * job["seconds"]
    again, *tables = _tables(runner, texts, before, most) or [runner.text(text)[1] for text in texts]
    note("again", moved=_moved(before, again), targets=len(before))
    if job["compiler"]:
        native = runner.text(sample[: length + 1])[1]
        with contextlib.suppress(ScriptError), _without_kernels():  # a primer would take the plain form hours to read
            note("plain", moved=_moved(native, runner.text(sample[: length + 1])[1]), targets=length)
    for (name, at, _), after in zip(futures, tables, strict=True):
        earlier, later = (slice(0, at), slice(at, None))
        alive = bool((before[later, 0] != after[later, 0]).any())
        note("future", how=name, at=at, moved=_moved(before[earlier], after[earlier]), alive=alive)
    for place in (length - 1, length - 2):
        _sums(runner, sample[:length], place, alphabet, seconds, most, note)


def _tables(runner: Runner, texts: np.ndarray, first: np.ndarray, most: float) -> list[np.ndarray]:
    """The tables of texts in branches of one run, if the first is what it was in a run of its own: else the script had
    read a text before it opened one.
    """
    found = runner.branches(texts, most)
    return found if found and _moved(found[0], first) < 1e-4 else []


@contextlib.contextmanager
def _without_kernels() -> Iterator[None]:
    """What runs takes the plain forms, and fails if that takes longer than ``PLAIN_SECONDS``."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    os.environ["BYTEGOLF_NATIVE"] = "0"
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PLAIN_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        del os.environ["BYTEGOLF_NATIVE"]


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
    runner: Runner,
    prefix: np.ndarray,
    place: int,
    alphabet: int,
    seconds: float,
    most: float,
    note: Callable[..., None],
) -> None:
    """Put every token of the alphabet at one place: if the probabilities are a distribution fixed before it is seen,
    what they say of each adds up to 1. A model that sees the token it predicts gives each too much.

    The scores before it must not tell which it is. All are scored in one text, block behind block, if blocks turn out
    not to know of one another; else one by one, in branches of one run where that works.
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
    blocks[:, place] = np.arange(alphabet)
    texts = np.column_stack((blocks, np.full(alphabet, BOS)))
    if tables := _tables(runner, texts, runner.text(texts[0])[1], most):
        rows = [table[:place, 0] for table in tables]
    elif alphabet * seconds > most:
        long = f"{alphabet} runs of {seconds:.1f} s would take too long (--seconds)"
        note("no sum", why=f"its blocks influence each other, and {long}")
        return
    else:
        rows = [runner.text(text)[1][:place, 0] for text in texts]
    total = float(np.exp(-np.stack(rows)[:, -1]).sum())
    note("sum", place=place, total=total, tokens=alphabet, moved=_spread(np.stack(rows)[:, :-1]))


def _spread(nats: np.ndarray) -> float:
    """How far the scores before the place differ, whatever token is put there."""
    return float(np.nan_to_num(np.ptp(nats, axis=0), nan=float("inf")).max(initial=0.0))


def _whole(runner: Runner, job: dict[str, Any], note: Callable[..., None]) -> None:
    """Score the split itself."""
    started = time.monotonic()
    found, _ = runner.folder(Path(job["data"][0]), Path(job["losses"]))
    seconds = time.monotonic() - started
    note("whole", seconds=seconds, **{key: found.get(key) for key in ("val_bpb", "tokens", "bytes", "seq_len")})


PARTS = {"experiments": experiments, "whole": _whole}
"""What a process is asked to do: the first runs best on one thread, so that it can branch, and the second on many."""


def main(job: dict[str, Any], part: str) -> None:
    """Do a part of a job: see ``trial``."""
    import resource  # which Windows lacks

    for kind, most in job["limits"].items():
        resource.setrlimit(getattr(resource, kind), (most, most))
    script, scratch = Path(job["script"]), Path(job["scratch"])
    libraries = [sys.prefix, sys.base_prefix, *filter(None, sys.path)]
    programs = [job["compiler"], "uname"] if job["compiler"] else []  # with which a machine is told from others
    watch = Watch([str(script.parent), __file__, *job["data"], *libraries], job["writable"], programs)
    sys.addaudithook(watch.hook)
    sys.meta_path.insert(0, watch)
    results: TextIO
    with open(job["results"], "a", encoding="utf-8") as results:  # noqa: PTH123  (no path of the script's)

        def note(name: str, **facts: Any) -> None:
            results.write(json.dumps({"name": name, **facts}) + "\n")
            results.flush()

        runner = Runner(script, scratch, watch)
        try:
            PARTS[part](runner, job, note)
        except ScriptError as error:
            note("fails", why=str(error))
        note("watched", **watch.seen)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2])
