"""Whatever is wrong is answered in one line on stderr that says what and where, with exit code 2 and no traceback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import SUBWORDS, TinyRun, refused, small

BYTES = "datasets/fineweb10B_byte260"


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the data folder to damage."""
    return shutil.copytree(tiny_data, tmp_path / "data")


def shard(data: Path, split: str = "train") -> Path:
    return data / BYTES / f"fineweb_{split}_000000.bin"


def train(data: Path, *changes: str, out: Path | None = None) -> str:
    """What `train` says against this data or these settings; it must leave no run behind."""
    folder = out or data.parent / "run"
    said = refused("train", "cpu-demo", *small(), *changes, "--data", data, "--out", folder)
    assert out or not (folder / "artifact.bgolf").exists()
    return said


# ---------------------------------------------------------------------------------------------- data


def test_no_data_folder(tmp_path: Path) -> None:
    said = train(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in said
    assert "bytegolf prepare" in said


def test_truncated_shard(data: Path) -> None:
    file = shard(data)
    file.write_bytes(file.read_bytes()[:-3])
    assert str(file) in train(data)
    file.write_bytes(file.read_bytes()[:100])
    assert str(file) in train(data)


def test_wrong_magic_and_version(data: Path) -> None:
    file = shard(data, "val")
    good = file.read_bytes()
    for place, value in ((0, 20240521), (4, 9)):
        file.write_bytes(good[:place] + struct.pack("<i", value) + good[place + 4 :])
        said = train(data)
        assert str(file) in said
        assert str(value) in said


def test_ids_out_of_range(data: Path) -> None:
    file = shard(data)
    content = bytearray(file.read_bytes())
    content[-2:] = struct.pack("<H", 260)
    file.write_bytes(content)
    said = train(data)
    assert str(file) in said
    assert "260" in said


def test_missing_shards(data: Path) -> None:
    shard(data, "val").unlink()
    said = train(data)
    assert "val" in said
    assert str(data) in said


@pytest.mark.parametrize(("length", "split"), [(8_000, "validation"), (100_000, "training")])
def test_sequence_longer_than_the_split(tiny_data: Path, tmp_path: Path, length: int, split: str) -> None:
    said = train(tiny_data, f"train.seq_len={length}", f"train.batch_tokens={length}", out=tmp_path / "run")
    assert f"the {split} split" in said
    assert f"train.seq_len = {length}" in said


def test_damaged_manifest(data: Path) -> None:
    for content in ("{", "[]", '{"datasets": 3}'):
        (data / "manifest.json").write_text(content)
        assert str(data / "manifest.json") in train(data)


def test_a_tokenizer_that_the_data_lacks(tiny_data: Path, tmp_path: Path) -> None:
    said = train(tiny_data, "data.tokenizer=sp9999", out=tmp_path / "run")
    assert "sp9999" in said
    assert SUBWORDS in said


def test_a_tokenizer_that_does_not_match_the_model(
    tiny_data: Path, tiny_run: TinyRun, subword_run: TinyRun, tmp_path: Path
) -> None:
    said = train(tiny_data, f"data.tokenizer={SUBWORDS}", out=tmp_path / "run")
    assert "model.vocab_size = 260" in said
    assert SUBWORDS in said
    # an artifact beside another model's tokenizer file
    shutil.copy(subword_run.folder / "artifact.bgolf", tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(_other_tokenizer(tmp_path))
    assert "was made with tokenizer" in refused("segment", tmp_path / "artifact.bgolf", "x")
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    assert str(tmp_path / "tokenizer.model") in refused("segment", tmp_path / "artifact.bgolf", "x")


def _other_tokenizer(folder: Path) -> bytes:
    from bytegolf.data.specs import parse_tokenizer, train_sentencepiece

    documents = iter(["other words make other pieces here"] * 20)
    return train_sentencepiece(documents, parse_tokenizer("sp280"), folder / "other").path.read_bytes()


def test_a_score_that_cannot_be_taken_is_refused_before_training(data: Path) -> None:
    subwords = (f"data.tokenizer={SUBWORDS}", f"model.vocab_size={SUBWORDS[2:]}", "eval.mix=true")
    for changes, words in (
        (("eval.stride=5000",), "stride 5000"),
        (("eval.ttt.mode=sgd", "eval.ttt.chunk=8", "eval.stride=16"), "learn every 8 tokens"),
        (subwords, "mixing needs"),
    ):
        assert words in train(data, *changes)
        assert not (data.parent / "run").exists()


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "cpu-dem"], "did you mean cpu-demo?"),
        (["train", "nowhere.toml"], "nowhere.toml"),
        (["train", "cpu-demo", "train.sede=1"], "did you mean train.seed?"),
        (["train", "cpu-demo", "train.seed=x"], "train.seed is 'x'"),
        (["train", "cpu-demo", "train.seq_len=0"], "train.seq_len is 0"),
        (["train", "cpu-demo", "train.max_seconds=-1"], "train.max_seconds is -1"),
        (["train", "cpu-demo", "--resum"], "--resum"),
        (["train", "cpu-demo", "oops"], "'oops'"),
        (["train"], "PRESET is missing"),
        (["eval"], "MODEL is missing"),
        (["eval", "nowhere"], "nowhere"),
        (["eval", "nowhere", "--stride", "x"], "--stride"),
        (["eval", "nowhere", "--stride", "-2"], "--stride"),
        (["eval", "nowhere", "--tail", "x"], "--tail"),
        (["eval", "nowhere", "again"], "'again'"),
        (["export"], "RUN is missing"),
        (["export", "nowhere"], "nowhere"),
        (["segment", "nowhere"], "nowhere"),
        (["probe", "nowhere"], "nowhere"),
        (["probe", "nowhere", "--limit", "-1"], "--limit"),
        (["segment", "nowhere", "a", "--file", "b"], "--file"),
        (["segment", "nowhere", "--level", "-1"], "--level"),
        (["sample", "nowhere", "--bytes", "-1"], "--bytes"),
        (["sample", "nowhere", "--bytes"], "--bytes"),
        (["sample", "nowhere", "--seed", "-1"], "--seed"),
        (["presets", "more"], "'more'"),
        (["trian"], "did you mean train?"),
        (["--nonsense"], "--nonsense"),
        (["prepare"], "--out"),
    ],
    ids=" ".join,
)
def test_wrong_command_lines(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*arguments)
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-p", "0"], "top-p is 0.0"),
        (["--top-p", "1.5"], "top-p is 1.5"),
        (["\udcff"], "the prompt is not UTF-8"),
    ],
)
def test_wrong_settings_of_sample(tiny_run: TinyRun, options: list[str], said: str) -> None:
    assert said in refused("sample", tiny_run.folder, *options)


def test_wrong_settings_of_eval(tiny_run: TinyRun, tmp_path: Path) -> None:
    assert "stride 129" in refused("eval", tiny_run.folder, "--stride", 129)
    assert "abacus" in refused("eval", tiny_run.folder, "--device", "abacus")
    assert str(tmp_path / "none") in refused("eval", tiny_run.folder, "--data", tmp_path / "none")


def test_wrong_settings_of_segment(tiny_run: TinyRun, subword_run: TinyRun, tmp_path: Path) -> None:
    assert "the text is empty" in refused("segment", tiny_run.folder, "")
    (tmp_path / "empty").touch()
    assert f"{tmp_path / 'empty'} is empty" in refused("segment", tiny_run.folder, "--file", tmp_path / "empty")
    assert "stdin is empty" in refused("segment", tiny_run.folder, "--file", "-")
    assert str(tmp_path / "none") in refused("segment", tiny_run.folder, "--file", tmp_path / "none")
    assert str(tmp_path) in refused("segment", tiny_run.folder, "--file", tmp_path)
    assert "levels 0 to 0, not 1" in refused("segment", tiny_run.folder, "x", "--level", 1)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    said = refused("segment", subword_run.folder, "--file", tmp_path / "latin")
    assert f"{tmp_path / 'latin'} is not UTF-8 (byte 3)" in said


# ---------------------------------------------------------------------------------------------- artifacts and runs


def test_corrupt_artifacts(tiny_run: TinyRun, tmp_path: Path) -> None:
    good = (tiny_run.folder / "artifact.bgolf").read_bytes()
    file = tmp_path / "bad.bgolf"
    middle = len(good) // 2
    for content in (
        b"",
        good[:40],
        good[:-1],
        good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        b"no" * 99,
    ):
        file.write_bytes(content)
        for verb in ("eval", "segment", "sample"):
            assert str(file) in refused(verb, file)


def test_folders_that_are_no_runs(tiny_run: TinyRun, tmp_path: Path) -> None:
    for verb in ("eval", "export", "segment", "sample"):
        assert f"{tmp_path} is no run folder" in refused(verb, tmp_path)
    shutil.copy(tiny_run.folder / "config.toml", tmp_path)
    assert "no artifact yet" in refused("eval", tmp_path)
    assert "no checkpoint yet" in refused("export", tmp_path)


def test_damaged_checkpoint(tiny_run: TinyRun, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_run.folder, tmp_path / "run")
    (file,) = copy.glob("checkpoints/*/model.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    assert str(file) in refused("export", copy)
    assert str(file) in refused("train", copy / "config.toml", "--out", copy, "--resume")


# ---------------------------------------------------------------------------------------------- writing


def test_files_in_the_way(tiny_run: TinyRun, tiny_data: Path, tmp_path: Path) -> None:
    """For root, to whom nothing is read-only."""
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in train(tiny_data, out=tmp_path / "file")
    assert str(tmp_path / "file") in train(tiny_data, out=tmp_path / "file" / "run")
    assert str(tmp_path) in refused("export", tiny_run.folder, "--out", tmp_path)
    assert str(tmp_path / "file") in refused("export", tiny_run.folder, "--out", tmp_path / "file" / "x.bgolf")
    (tmp_path / "a.txt").write_text("some text\n")
    assert str(tmp_path / "file") in refused("prepare", tmp_path / "a.txt", "--out", tmp_path / "file")


def test_what_is_no_file_is_never_replaced(tiny_run: TinyRun, tmp_path: Path) -> None:
    """A pipe stands for /dev/null, which root could rename a file over."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert f"cannot write {pipe}" in refused("export", tiny_run.folder, "--out", pipe)
    assert pipe.is_fifo()


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes: EFBIG, which writes meet as they meet ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_spares_the_old_artifact(tiny_run: TinyRun, tmp_path: Path) -> None:
    old = tmp_path / "old.bgolf"
    old.write_bytes(b"old")
    with full_disk(10_000):
        assert str(old) in refused("export", tiny_run.folder, "--out", old)
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old], "and no temporary file is left"


def test_a_full_disk_while_training(tiny_data: Path, tmp_path: Path) -> None:
    with full_disk(20_000):
        said = train(tiny_data, "train.max_steps=1", out=tmp_path / "run")
    assert str(tmp_path / "run") in said
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "no half a checkpoint"


def test_a_full_disk_while_preparing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text and more of it\n" * 2000)
    options = ("--cut", 5000, "--val", "first:1")
    with full_disk(20_000):
        said = refused("prepare", tmp_path / "a.txt", "--out", tmp_path / "data", *options)
    assert str(tmp_path / "data") in said
    assert not (tmp_path / "data").exists()


# ---------------------------------------------------------------------------------------------- prepare


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.txt", b"caf\xe9 au lait", "UTF-8"),
        ("empty.txt", b"", "no "),
        ("bad.jsonl", b'{"text": "x"}\n{oops\n', "bad.jsonl"),
        ("field.jsonl", b'{"body": "x"}\n', "text"),
        ("number.jsonl", b'{"text": 3}\n', "text"),
        ("bad.parquet", b"PAR1 nonsense", "bad.parquet"),
        ("bad.jsonl.gz", b"nonsense", "bad.jsonl.gz"),
        ("bad.jsonl.zst", b"nonsense", "bad.jsonl.zst"),
        ("specs.txt", None, "specs.txt"),
    ],
)
def test_sources_that_cannot_be_prepared(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    answer = refused("prepare", tmp_path / name, "--out", tmp_path / "data")
    assert said in answer
    assert name in answer or said == "no "


@pytest.mark.parametrize(
    "options",
    [
        ["--tokenizer", "sp"],
        ["--tokenizer", "sp70000"],
        ["--tokenizer", "gpt2"],
        ["--tokenizer", "none.json"],
        ["--val", "hash:2"],
        ["--val", "first:x"],
        ["--val", "nonsense"],
        ["--val", "groups:A"],  # a text file has no groups
        ["--workers", "x"],
    ],
    ids=" ".join,
)
def test_options_that_cannot_be_prepared(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    said = refused("prepare", tmp_path / "a.txt", "--out", tmp_path / "data", *options)
    assert options[1].split(":")[0] in said or options[0] in said


def test_specs_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 50)
    specs = tmp_path / "specs.json"
    for content in ("{", "[]", json.dumps({"tokenizers": [{"name": "x", "vocab": 3}]})):
        specs.write_text(content)
        assert str(specs) in refused("prepare", tmp_path / "a.txt", "--out", tmp_path / "data", "--tokenizer", specs)


@pytest.mark.parametrize("place", [".", "/"])
def test_an_output_that_cannot_be_a_file_is_told_before_the_work(place: str, tiny_run: TinyRun) -> None:
    assert f"cannot write {place}: it is a folder" in refused("export", tiny_run.folder, "--out", place)
    said = refused("analyze", tiny_run.folder, "--limit", 1000, "--html", place)
    assert f"cannot write {place}: it is a folder" in said


def test_verbs_are_listed_in_order() -> None:
    verbs = re.findall(r"\w+", refused("frobnicate").partition("give ")[2].partition(" (")[0].replace(" and ", " "))
    assert len(verbs) > 20
    assert verbs == sorted(verbs)


# ---------------------------------------------------------------------------------------------- a real process


def test_a_real_process_prints_one_line_and_exits_with_2(tmp_path: Path) -> None:
    """What `refused` checks within this process holds for the installed command too."""
    command = [sys.executable, "-m", "bytegolf", "train", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert f"{tmp_path} is a folder" in ran.stderr
