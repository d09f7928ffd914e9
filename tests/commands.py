"""Help for tests that go through the command line: run it in this process, on a small corpus and tiny models."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bytegolf.config import Config

SUBWORDS = "sp400"
"""The second tokenizer of the tiny corpus: a SentencePiece model of 400 pieces, trained on it."""

VERBS = (
    "prepare",
    "fetch",
    "presets",
    "plan",
    "train",
    "study",
    "segment",
    "sample",
    "analyze",
    "probe",
    "serve",
    "eval",
    "verify",
    "bench",
    "compress",
    "decompress",
    "check",
    "import",
    "export",
    "submit",
    "audit",
    "push",
)
"""Every verb, in the order of the help."""

_WORDS = (
    "the of people and government congress states public great present united country law peace nation year war power "
    "time treaty revenue commerce citizens justice duty café future naïve"
)


@dataclass(frozen=True)
class Ran:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What ``--json`` prints: an object on one line, and nothing else on stdout."""
        (line,) = self.out.splitlines()
        value = json.loads(line)
        assert isinstance(value, dict)
        return value


def cli(*arguments: object, stdin: bytes = b"") -> Ran:
    """Run ``bytegolf ARGUMENTS`` in this process; an exception that would print a traceback fails the test."""
    from bytegolf.cli import main

    out, err = io.StringIO(), io.StringIO()
    before, plugins = (sys.argv, sys.stdin), os.environ.get("BYTEGOLF_PLUGINS")
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        sys.argv, sys.stdin = ["bytegolf", *map(str, arguments)], io.TextIOWrapper(file)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit:
                main()
        finally:
            sys.argv, sys.stdin = before
            if plugins is None:  # --plugin is for the processes that the command starts, not for later tests
                os.environ.pop("BYTEGOLF_PLUGINS", None)
            else:
                os.environ["BYTEGOLF_PLUGINS"] = plugins
    assert isinstance(exit.value.code, int)
    return Ran(exit.value.code, out.getvalue(), err.getvalue())


def good(*arguments: object, stdin: bytes = b"") -> Ran:
    """``cli``, for commands that must succeed."""
    ran = cli(*arguments, stdin=stdin)
    assert ran.code == 0, ran.err or ran.out
    return ran


def refused(*arguments: object, stdin: bytes = b"") -> str:
    """``cli``, for commands that must be refused: exit code 2 and one line on stderr, which is returned.

    Only what had already begun may have told of its progress before.
    """
    ran = cli(*arguments, stdin=stdin)
    assert ran.code == 2, (ran.out, ran.err)
    *progress, line = ran.err.splitlines()
    assert all(" · " in said for said in progress), ran.err
    assert line.startswith("bytegolf: ")
    return line.removeprefix("bytegolf: ")


def sentences(count: int, seed: int = 1) -> Iterator[str]:
    """Made-up English; some letters have two bytes."""
    draw = random.Random(seed)
    for _ in range(count):
        yield " ".join(draw.choices(_WORDS.split(), k=draw.randint(5, 14))).capitalize() + "."


def text(size: int, seed: int = 1) -> str:
    """About ``size`` bytes of sentences."""
    return " ".join(sentences(size // 60, seed))


def small(preset: str = "cpu-demo", *, dim: int = 32, layers: int = 1, seq_len: int = 128) -> list[str]:
    """Overrides that make a preset's every stage tiny and its training ten quick steps."""
    from bytegolf.config import Config

    changes = []
    for path, stage in stages(Config.load(preset)):
        size = f"layers={layers}" if not stage.layout else "layout=" + re.sub(r"\d+", str(layers), stage.layout)
        changes += [f"{path}.{key}" for key in (f"dim={dim}", size, "heads=2", "kv_heads=1")]
        if stage.layout:
            changes += [f"{path}.{key}" for key in ("rotary_dim=4", "mlp_hidden=40")]
        if "m" in stage.layout.lower():
            changes.append(f"{path}.options={{d_state = 8, headdim = 16, chunk_size = 16}}")
    budget = ("max_seconds=0", "max_steps=10", "warmup_steps=0", "validate_tokens=1024", "log_every=2")
    if Config.load(preset).model.ngrams.longest > 1:
        changes.append("model.ngrams.bits=8")
    shape = (f"seq_len={seq_len}", f"batch_tokens={4 * seq_len}", "micro_batch=0", "precision=fp32")
    return [*changes, *(f"train.{change}" for change in (*shape, *budget))]


def stages(config: Config) -> Iterator[tuple[str, Any]]:
    """Each stage of a configuration with its dotted path."""
    from bytegolf.config import HNetConfig, StackConfig

    def walk(network: StackConfig | HNetConfig, path: str) -> Iterator[tuple[str, StackConfig]]:
        if isinstance(network, StackConfig):
            yield path, network
        else:
            yield f"{path}.encoder", network.encoder
            yield from walk(network.main, f"{path}.main")
            yield f"{path}.decoder", network.decoder

    return walk(config.model.network, "model.network")


@pytest.fixture
def proved_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` tries less of everything than it does for a user, and scores again in this process (in one of its own:
    test_proofs)."""
    from bytegolf.evaluate import verification

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        ran = cli(*command[command.index("bytegolf") + 1 :])
        return subprocess.CompletedProcess(command, ran.code, ran.out, ran.err)

    monkeypatch.setattr(verification, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(verification, "QUICK", verification.Effort(cuts=1, places=2, streams=24, tokens=1024))


# ---------------------------------------------------------------------------------------------- shared folders


@dataclass(frozen=True)
class TinyRun:
    """A run that the tests share: look, but change nothing in it."""

    folder: Path
    data: Path
    ran: Ran


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 60 kB with byte and SentencePiece tokens, as `prepare` makes it from a .jsonl."""
    home = tmp_path_factory.mktemp("corpus")
    rows = [json.dumps({"text": text(600, seed), "n": seed}) for seed in range(100)]
    (home / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    specs = [
        {"name": "pure_byte_260", "kind": "byte", "dataset_suffix": "byte260"},
        {"name": f"{SUBWORDS}_bpe", "dataset_suffix": SUBWORDS, "vocab_size": int(SUBWORDS[2:])},
    ]
    (home / "specs.json").write_text(json.dumps({"tokenizers": specs}))
    good(
        "prepare",
        home / "corpus.jsonl",
        "--out",
        home / "data",
        "--tokenizer",
        home / "specs.json",
        "--val",
        "first:10",
    )
    return home / "data"


def _train(data: Path, folder: Path, preset: str, *changes: str) -> TinyRun:
    ran = good("train", preset, *small(preset), *changes, "--data", data, "--out", folder, "--json")
    return TinyRun(folder, data, ran)


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A one-level H-Net over bytes, after ten steps."""
    return _train(tiny_data, tmp_path_factory.mktemp("runs") / "hnet", "cpu-demo")


@pytest.fixture(scope="session")
def flat_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A flat GPT over bytes, after ten steps."""
    return _train(tiny_data, tmp_path_factory.mktemp("runs") / "flat", "cpu-gpt")


@pytest.fixture(scope="session")
def two_level_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A two-level H-Net over bytes, after ten steps."""
    return _train(tiny_data, tmp_path_factory.mktemp("runs") / "two", "hnet-2stage")


@pytest.fixture(scope="session")
def subword_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A one-level H-Net over SentencePiece tokens, after ten steps."""
    changes = (f"data.tokenizer={SUBWORDS}", f"model.vocab_size={SUBWORDS[2:]}")
    return _train(tiny_data, tmp_path_factory.mktemp("runs") / "subwords", "study1-sp1024", *changes)


@pytest.fixture(scope="session")
def soft_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A flat GPT over bytes with soft chunking before it, after ten steps."""
    return _train(tiny_data, tmp_path_factory.mktemp("runs") / "soft", "cpu-soft")
