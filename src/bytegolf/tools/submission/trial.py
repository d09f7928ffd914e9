"""The rules by experiment: the script runs on texts made for the purpose, in a process of its own and within limits.

``experiments`` is that process; what it notes is judged here.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from bytegolf.data.dataset import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.files import cache_folder, lines_of
from bytegolf.ops.compiler import find_compiler
from bytegolf.tools.submission import experiments
from bytegolf.tools.submission.verdict import Finding

MOVED = 1e-3
"""Nats by which an earlier score may move when the future changes: rounding, where shapes depend on the text."""

SUM = 1e-2
"""How far from 1 probabilities may add up to, each taken from a text of its own."""

SAME_BPB = 1e-4
"""How far the score may be from the claimed one."""


@dataclass(frozen=True)
class Limits:
    """What a script may take."""

    seconds: float = 1800.0
    gibibytes: float = 24.0


LIMITS = Limits()
"""What an audit allows by default."""


def trial(
    script: Path,
    data: Path,
    stream: TokenStream,
    tokenizer: Tokenizer,
    claim: float | None,
    limits: Limits,
    kernels: bool = False,
) -> Iterator[Finding]:
    """What comes of running ``script`` on the validation split ``stream``, which lies in ``data``, and on others.

    Natively if its ``kernels`` are known: it may start the compiler, and keeps what that makes where this package
    does. Else nothing is compiled, as nobody sees what native code does.
    """
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        scratch = home / "scratch"
        scratch.mkdir()
        size = min(len(stream), experiments.SAMPLES[-1])
        np.save(home / "tokens.npy", stream.slice(0, size).astype(np.int64))
        job = {
            "script": str(script.absolute()),
            "data": [str(data.absolute())],
            "scratch": str(scratch),
            "tokens": str(home / "tokens.npy"),
            "results": str(home / "results.jsonl"),
            "losses": str(scratch / "whole.npy"),
            "seconds": limits.seconds,
            "compiler": find_compiler()[0] if kernels else "",
            "writable": [str(scratch), *([str(cache_folder())] if kernels else [])],
            "limits": {"RLIMIT_AS": int(limits.gibibytes * 2**30), "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 2**30},
        }
        (home / "job.json").write_text(json.dumps(job))
        ended = _run(home / "job.json", scratch, script.absolute().parent, limits.seconds, kernels)
        results = home / "results.jsonl"
        notes = [json.loads(line) for line in lines_of(results.read_text())] if results.exists() else []
        losses = np.load(job["losses"]) if Path(str(job["losses"])).exists() else None  # type: ignore[arg-type]
    yield from _judged(notes, ended)
    yield from _counted(notes, losses, stream, tokenizer, claim)


def not_run(why: str) -> Iterator[Finding]:
    """What cannot be said of a script that does not run."""
    for rule in ("causal", "normalised", "counted once", "as claimed"):
        yield Finding(rule, "not proved", f"not run: {why}")


def _run(job: Path, scratch: Path, folder: Path, seconds: float, kernels: bool) -> str:
    """Run all parts of a job in ``folder``; how they ended, if not well."""
    until = time.monotonic() + seconds
    native = {"BYTEGOLF_CACHE": str(cache_folder().absolute())} if kernels else {"BYTEGOLF_NATIVE": "0"}
    for part in experiments.PARTS:
        threads = {"OMP_NUM_THREADS": "1"} if part == "experiments" else {}
        left = max(0.0, until - time.monotonic())
        if ended := _part(job, part, scratch, folder, left, native | threads):
            return f"stopped after {seconds:g} s" if ended == STOPPED else ended
    return ""


STOPPED = "stopped"


def _part(job: Path, part: str, scratch: Path, folder: Path, seconds: float, settings: dict[str, str]) -> str:
    """Run one; how it ended, if not well."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "BYTEGOLF_"))}
    environment |= {"HOME": str(scratch), "TMPDIR": str(scratch), "XDG_CACHE_HOME": str(scratch)}
    environment |= {"CUDA_VISIBLE_DEVICES": "", **settings}
    # -B: of modules that were installed without byte code Python would write it, which is no write of the script's
    command = [sys.executable, "-E", "-P", "-B", str(Path(experiments.__file__)), str(job), part]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            _, complaints = process.communicate(timeout=seconds)
        except BaseException as error:  # Ctrl-C too, which the script does not hear in a session of its own
            with contextlib.suppress(ProcessLookupError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:  # Windows, which has no groups of processes
                    process.kill()
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return STOPPED
    lines = complaints.decode(errors="replace").strip().splitlines()
    return "" if process.returncode == 0 else f"ended with {process.returncode}: {lines[-1] if lines else 'no words'}"


def _judged(notes: list[dict[str, Any]], ended: str) -> Iterator[Finding]:
    """What the experiments on texts of our own say."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for note in notes:
        by_name.setdefault(note["name"], []).append(note)
    failed = ended or "; ".join(dict.fromkeys(note["why"] for note in by_name.get("fails", ())))
    for rule, name in (("causal", "future"), ("normalised", "sum")):
        if name not in by_name:
            why = failed or "; ".join(note["why"] for note in by_name.get("no sum", ())) or "nothing was tried"
            yield Finding(rule, "not proved", f"by experiment: {why}")
    yield from _futures(by_name.get("future", []), by_name.get("again", []))
    for note in by_name.get("sum", ()):
        good = abs(note["total"] - 1) <= SUM
        evidence = f"Σp over all {note['tokens']} tokens put at place {note['place']} is {note['total']:.6g}"
        yield Finding("normalised", "shown" if good else "broken", evidence)
        if note["moved"] > MOVED:
            said = f"which token is at place {note['place']} moves earlier scores by up to {note['moved']:.3g} nats"
            yield Finding("causal", "broken", said)
    for note in by_name.get("plain", ()):
        alike = note["moved"] <= MOVED
        said = f"without its kernels {note['targets']:,} targets come out as with them, to {note['moved']:.1g} nats"
        yield Finding("as claimed", "shown" if alike else "not proved", said)
    for note in by_name.get("watched", ()):
        for rule, kinds in (("no network", ("network",)), ("self-contained", ("reads", "writes", "imports"))):
            seen = [f"{kind}: {what}" for kind in kinds for what in dict.fromkeys(note[kind])]
            if seen:
                yield Finding(rule, "broken", f"the run was refused {'; '.join(seen[:3])}")
            elif not failed:
                yield Finding(rule, "shown", "the evaluation ran without, where that is refused")
        if note["processes"]:
            yield Finding("self-contained", "not proved", f"it wants to start programs: {note['processes'][0]}")


def _futures(futures: list[dict[str, Any]], again: list[dict[str, Any]]) -> Iterator[Finding]:
    if not futures:
        return
    noise = max((note["moved"] for note in again), default=0.0)
    if noise > MOVED:
        yield Finding("causal", "not proved", f"two runs on the same text differ by up to {noise:.2g} nats")
        return
    worst = max(futures, key=lambda note: note["moved"])
    alive = sum(note["alive"] for note in futures)
    tried = f"{len(futures)} futures (replaced, deleted, shuffled)"
    if worst["moved"] > MOVED:
        said = (
            f"tokens {worst['how']} behind token {worst['at']} move earlier scores by up to {worst['moved']:.3g} nats"
        )
        yield Finding("causal", "broken", said)
        yield Finding("score, then update", "broken", said)
    elif alive < len(futures):
        yield Finding(
            "causal", "not proved", f"only {alive} of {tried} changed any later score: is the text read at all?"
        )
    else:
        said = f"{tried}: no earlier score moves by more than {worst['moved']:.1g} nats"
        yield Finding("causal", "shown", said)
        yield Finding("score, then update", "shown", said)


def _counted(
    notes: list[dict[str, Any]],
    losses: Float[np.ndarray, "T 2"] | None,
    stream: TokenStream,
    tokenizer: Tokenizer,
    claim: float | None,
) -> Iterator[Finding]:
    """What the score of the whole split says."""
    whole = next((note for note in notes if note["name"] == "whole"), None)
    if whole is None or losses is None:
        for rule in ("counted once", "as claimed"):
            yield Finding(rule, "not proved", "the whole split was not scored")
        return
    targets = len(stream) - 1
    tokens = stream.slice(0, len(stream))
    sizes = tokenizer.byte_counts(tokens[1:], tokens[:-1])
    wrong = []
    if len(losses) != targets:
        wrong.append(f"{len(losses):,} targets are listed, and the split has {targets:,}")
    else:
        scored = ~np.isnan(losses[:, 0])
        last = int(np.flatnonzero(scored)[-1]) + 1 if scored.any() else 0
        if not scored[:last].all() or targets - last >= max(whole["seq_len"], 1):
            wrong.append(f"only {int(scored.sum()):,} of the split's {targets:,} targets are scored")
        if int(scored.sum()) != whole["tokens"]:
            wrong.append(f"{whole['tokens']:,} tokens are claimed, and {int(scored.sum()):,} listed")
        if (losses[scored, 1] != sizes[scored]).any() or whole["bytes"] != int(sizes[scored].sum()):
            wrong.append(f"{whole['bytes']:,} bytes are counted, and the text has {int(sizes[scored].sum()):,}")
        bits = float(losses[scored, 0].sum()) / math.log(2) / max(1, int(sizes[scored].sum()))
        if abs(bits - whole["val_bpb"]) > SAME_BPB:
            wrong.append(f"its losses come to {bits:.6f} bits per byte, and it says {whole['val_bpb']:.6f}")
    said = "; ".join(wrong) or f"{whole['tokens']:,} of {targets:,} targets once each, {whole['bytes']:,} bytes"
    yield Finding("counted once", "broken" if wrong else "shown", said)
    if claim is None:
        yield Finding("as claimed", "not proved", "submission.json claims no val_bpb")
    else:
        same = abs(whole["val_bpb"] - claim) <= SAME_BPB
        said = f"{whole['val_bpb']:.6f} over the whole split in {whole['seconds']:.0f} s, {claim:.6f} claimed"
        yield Finding("as claimed", "shown" if same else "broken", said)
