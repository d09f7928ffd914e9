"""Whatever lies in a file, a reader takes it or says in one sentence why not. tests/stress/fuzz.py tries far more.

Here a few changes of each reader's good input, drawn by hypothesis, and every kind of bug that the fuzzer has found.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import shapes_unchecked
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.errors import MOST_CHARACTERS, BytegolfError

FOLDER = Path(__file__).parents[1] / "stress"
NAMES = (
    *(
        "shard",
        "manifest",
        "specs",
        "sentencepiece",
        "artifact",
        "checkpoint",
        "resume",
        "compressed",
        "compressed alone",
    ),
    *("public", "hnet", "weights"),
    *("config", "overrides", "study", "results", "ended", "documents"),
)


@pytest.fixture(scope="module")
def fuzzing() -> Iterator[ModuleType]:
    """The readers of tests/stress/fuzzing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("fuzzing.readers")


@pytest.fixture(scope="module")
def judge(fuzzing: ModuleType) -> Callable[..., str]:
    return importlib.import_module("fuzzing.guard").judge  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def readers(fuzzing: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A reader by its name, made once; it takes its good input."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            (kind,) = (reader for reader in fuzzing.READERS if reader.name == name)
            made[name] = kind(tmp_path_factory.mktemp(name))
            for seed in made[name].seeds:
                with contextlib.chdir(made[name].folder):
                    made[name].read(seed)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with shapes_unchecked():
        yield


def test_no_reader_is_left_out(fuzzing: ModuleType) -> None:
    assert tuple(reader.name for reader in fuzzing.READERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_answered(name: str, readers: Callable[[str], Any], judge: Callable[..., str]) -> None:
    """Hypothesis draws the number of an input rather than each choice, which it would take ten times as long over."""
    reader = readers(name)

    @settings(max_examples=15)
    @given(st.integers(0, 1 << 32))
    def check(number: int) -> None:
        data = reader.input(random.Random(number))
        assert judge(lambda: reader.read(data), reader.folder, reader.roams) in ("accepted", "refused")

    check()


# ------------------------------------------------------------------------------------------------ found by fuzzing


def said(name: str, data: bytes, readers: Callable[[str], Any], judge: Callable[..., str]) -> str:
    """The sentence that refuses ``data``."""
    reader = readers(name)
    assert judge(lambda: reader.read(data), reader.folder, reader.roams) == "refused"
    with contextlib.chdir(reader.folder), pytest.raises(BytegolfError) as caught:
        reader.read(data)
    return str(caught.value)


DEEP = b"[" * 100_000 + b"]" * 100_000
DIGITS = b"9" * 5000


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("specs", DEEP, "nested too deeply"),
        ("manifest", b'{"datasets":' + DEEP, "nested too deeply"),
        ("documents", b'\1{"text":' + DEEP, "nested too deeply"),
        ("config", b"name = " + DEEP, "nested too deeply"),
        ("config", b"name = " + DIGITS, "not valid TOML"),
        ("study", b"name = " + DIGITS, "not valid TOML"),
        ("overrides", b"train.seed=" + DIGITS, "train.seed is '9999"),
        ("overrides", b"train.seed=" + DEEP, "train.seed is '[[["),
        ("overrides", b"train.max_seconds=1" + b"0" * 400, "train.max_seconds"),
        ("overrides", b"tra\x1b[2Jin.seed=1", r"tra\x1b[2Jin"),
        ("config", b'extends = "/dev/zero"', "more than"),
        ("config", b'extends = "' + b"x" * 300 + b'/x.toml"', "cannot read"),
        ("specs", b'[{"vocab_size": 500, "reuse_model_path": "' + b"x" * 300 + b'"}]', "cannot read"),
        ("overrides", b"tra\xffin.seed=1", r"tra\xffin"),
    ],
)
def test_texts(name: str, data: bytes, words: str, readers: Callable[[str], Any], judge: Callable[..., str]) -> None:
    assert words in said(name, data, readers, judge)


def test_a_sentence_is_short_and_printable_whatever_it_quotes() -> None:
    assert str(BytegolfError("no key a\nb\x1b[2J \ud800 \u202e")) == r"no key a b\x1b[2J \ud800 \u202e"
    long = str(BytegolfError("a" * 10_000 + "\0" + "z" * 10_000))
    assert len(long) <= MOST_CHARACTERS
    assert long.startswith("aaa")
    assert long.endswith("zzz")
    escaped = str(BytegolfError("\udc80" * 900))  # six characters each
    assert len(escaped) <= MOST_CHARACTERS
    assert escaped.isprintable()


def test_it_stays_the_same_between_processes() -> None:
    error = BytegolfError("it has a\ttab")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "it has a tab"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found["datasets"][0].update(stats=[3]), "as stats"),
        (lambda found: found["datasets"][0]["stats"].update(tokens_val=[3]), "as tokens_val"),
        (lambda found: found["datasets"][0]["stats"].update(original_bytes_val=1e999), "as original_bytes_val"),
        (lambda found: found["datasets"][0].update(name=3), "as a name"),
    ],
)
def test_manifests(
    change: Callable[[Any], None], words: str, readers: Callable[[str], Any], judge: Callable[..., str]
) -> None:
    found = json.loads(readers("manifest").seeds[0])
    change(found)
    assert words in said("manifest", json.dumps(found).encode(), readers, judge)


def test_a_piece_that_is_no_text(readers: Callable[[str], Any], judge: Callable[..., str]) -> None:
    data = readers("sentencepiece").seeds[0]
    assert "é".encode() in data
    assert "a piece that is no text" in said("sentencepiece", data.replace("é".encode(), b"\xe5\xa9"), readers, judge)


def test_a_path_that_is_too_long_and_a_home_that_is_not(
    readers: Callable[[str], Any], judge: Callable[..., str]
) -> None:
    found = json.loads(readers("manifest").seeds[0])
    found["datasets"][0]["path"] = "x" * 300
    assert "cannot read" in said("manifest", json.dumps(found).encode(), readers, judge)
    reader = readers("specs")
    with contextlib.chdir(reader.folder):
        (spec,) = reader.read(b'[{"vocab_size": 500, "reuse_model_path": "~nobody-of-that-name/x.model"}]')
    assert spec["reuse_model_path"].endswith("~nobody-of-that-name/x.model")


def test_a_tokenizer_whose_name_is_a_path(readers: Callable[[str], Any]) -> None:
    """Such a name may stand in an artifact."""
    from bytegolf.data.tokenizer import load_tokenizer

    for name in ("sp/../../../outside", "a\0b", "x" * 300):
        with pytest.raises(BytegolfError, match="no tokenizer's name"):
            load_tokenizer(name, readers("manifest").folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("bpb", "x"), ("bpb", float("nan")), ("steps", None), ("fits", 1), ("boundaries", [3]), ("bpb_original", {})],
)
def test_summaries(
    key: str, value: Any, readers: Callable[[str], Any], judge: Callable[..., str], fuzzing: Any
) -> None:
    for name in ("results", "ended"):
        reader = readers(name)
        if name == "results":
            lines = [json.loads(line) for line in reader.seeds[0].splitlines()]
            lines[-1]["summary"][key] = value
            data = b"\n".join(json.dumps(line).encode() for line in lines)
        else:
            summary, made = fuzzing.unbundled(reader.seeds[0], 2)
            data = fuzzing.bundled(json.dumps({**json.loads(summary), key: value}).encode(), made)
        assert f"no valid {key}" in said(name, data, readers, judge)


@pytest.mark.parametrize(
    ("made", "words"), [({"git": 3}, "git"), ({"git": {"commit": "c"}}, "modified"), ({"packages": [1]}, "torch")]
)
def test_environments(
    made: dict[str, Any], words: str, readers: Callable[[str], Any], judge: Callable[..., str], fuzzing: Any
) -> None:
    summary, before = fuzzing.unbundled(readers("ended").seeds[0], 2)
    data = fuzzing.bundled(summary, json.dumps({**json.loads(before), **made}).encode())
    assert f"no valid {words}" in said("ended", data, readers, judge)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("step", 3, "another than its own"),
        ("step", True, "another than its own"),
        ("seconds", "x", "seconds is 'x'"),
        ("seconds", float("nan"), "seconds is nan"),
        ("validation_bpb", [], "validation_bpb is []"),
        ("window", 3, "must be a table of keys"),
        ("window", {"losses": [float("inf")]}, "losses[0] is inf"),
        ("window", {"losses": [1.0], "rates": [[0.5, 0.5]]}, "does not fit the model"),
    ],
)
def test_progress(
    key: str, value: Any, words: str, readers: Callable[[str], Any], judge: Callable[..., str], fuzzing: Any
) -> None:
    progress, *rest = fuzzing.unbundled(readers("resume").seeds[0], 4)
    data = fuzzing.bundled(json.dumps({**json.loads(progress), key: value}).encode(), *rest)
    assert words in said("resume", data, readers, judge)


@pytest.mark.parametrize("row", [3, {"step": 1}, {"kind": 3, "step": 1}, {"kind": "a", "step": 1, "rates": ["x"]}])
def test_metrics(row: Any, readers: Callable[[str], Any], judge: Callable[..., str], fuzzing: Any) -> None:
    *parts, metrics = fuzzing.unbundled(readers("resume").seeds[0], 4)
    data = fuzzing.bundled(*parts, metrics + json.dumps(row).encode())
    assert "no row of metrics" in said("resume", data, readers, judge)


def test_states_of_other_shapes(readers: Callable[[str], Any], judge: Callable[..., str], fuzzing: Any) -> None:
    progress, model, optimizer, metrics = fuzzing.unbundled(readers("resume").seeds[0], 4)
    for key, value in {
        "step.network.main.blocks.0.mlp_scale": torch.zeros(3),
        "exp_avg.network.main.blocks.0.mlp_scale": torch.zeros(8, dtype=torch.int64),
    }.items():
        state = safetensors.torch.load(optimizer)
        assert key in state
        state[key] = value
        data = fuzzing.bundled(progress, model, safetensors.torch.save(state), metrics)
        assert f"does not fit at {key}" in said("resume", data, readers, judge)


def test_a_model_of_a_billion_blocks_is_not_outlined(readers: Callable[[str], Any], judge: Callable[..., str]) -> None:
    """Its outline alone would take hours and all memory."""
    from fuzzing.readers import sealed

    data = readers("artifact").seeds[0]
    size = struct.unpack_from("<I", data, 12)[0]
    header = json.loads(data[16 : 16 + size])
    for key, value, words in (("layers", 10**9, "more blocks"), ("dim", 1 << 60, "no such shapes")):
        changed = json.loads(json.dumps(header))
        changed["config"]["model"]["network"]["main"][key] = value
        text = json.dumps(changed).encode()
        body = struct.pack("<8sII", b"BYTEGOLF", 3, len(text)) + text + data[16 + size : -32]
        assert words in said("artifact", sealed(body), readers, judge)


# ------------------------------------------------------------------------------------------------ the guard itself


@pytest.mark.parametrize(
    "act",
    [
        lambda: Path("/etc/hostname").read_bytes(),
        lambda: list(Path("..").iterdir()),
        lambda: pickle.loads(pickle.dumps(Path)),
        lambda: __import__("subprocess").run(["true"]),
        lambda: (Path("link").symlink_to("/etc/hostname"), Path("link").read_bytes()),  # type: ignore[func-returns-value]
    ],
)
def test_the_guard_sees_what_is_forbidden(act: Callable[[], object], tmp_path: Path, fuzzing: Any) -> None:
    guard = importlib.import_module("fuzzing.guard")
    with pytest.raises(guard.ForbiddenError):
        guard.judge(act, tmp_path)


def test_the_guard_sees_hanging_and_bad_words(tmp_path: Path, fuzzing: Any) -> None:
    guard = importlib.import_module("fuzzing.guard")

    def hang() -> None:
        while True:
            zlib.crc32(b"x")

    with pytest.raises(guard.ForbiddenError, match="takes more than"), guard.limited(0.05):
        hang()
    with pytest.raises(KeyError):
        guard.judge(lambda: {}["x"], tmp_path)  # type: ignore[index]
    with pytest.raises(AssertionError, match="no printable sentence"):
        guard.judge(lambda: _raise(BytegolfError("")), tmp_path)
    assert guard.judge(io.BytesIO, tmp_path) == "accepted"


def _raise(error: BaseException) -> None:
    raise error
