"""Documents to a data folder: exact counts, the same files every time, and nothing lost when something fails."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import signal
import tracemalloc
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import TEXTS, files_of, lines
from independent_shards import independent_read, independent_write
from processes import in_own_process

from bytegolf.data import blocks, tables
from bytegolf.data.dataset import (
    MANIFEST,
    UNFINISHED,
    data_summary,
    dataset_entry,
    open_split,
    read_manifest,
    validation_bytes,
)
from bytegolf.data.dataset_writer import SIDECAR
from bytegolf.data.document import Document
from bytegolf.data.prepare import prepare
from bytegolf.data.split import Split
from bytegolf.data.tokenizer import load_tokenizer
from bytegolf.errors import BytegolfError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return lines(tmp_path_factory.mktemp("source") / "docs.jsonl", TEXTS)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Both kinds of SentencePiece tokenizer, and bytes."""
    identity = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    value = [
        {"name": "sp_bpe_300", "dataset_suffix": "sp300", "vocab_size": 300},
        {
            "name": "sp_bpe_300i",
            "dataset_suffix": "sp300i",
            "vocab_size": 300,
            "model_prefix": "identity_300",
            "trainer_overrides": identity,
        },
        {"kind": "byte"},
    ]
    path = tmp_path_factory.mktemp("specs") / "specs.json"
    path.write_text(json.dumps({"tokenizers": value}))
    return str(path)


@pytest.fixture(scope="module")
def everything(source: str, specs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tokenizers in one pass, in shards of 1,000 tokens."""
    out = tmp_path_factory.mktemp("data") / "all"
    prepare([source], out, specs, "first:9", shard_tokens=1000, quiet=True)
    return out


def split_texts(split: str) -> list[str]:
    return TEXTS[:9] if split == "val" else TEXTS[9:]


def tokens_of(folder: Path, suffix: str, split: str) -> list[list[int]]:
    """The documents' tokens without BOS, read by the independent reader."""
    shards = sorted((folder / "datasets" / f"fineweb10B_{suffix}").glob(f"fineweb_{split}_*.bin"))
    documents: list[list[int]] = []
    for token in (token for path in shards for token in independent_read(path)):
        if token == 1:
            documents.append([])
        else:
            documents[-1].append(token)
    return documents


# ---------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("suffix", ["byte260", "sp300", "sp300i"])
def test_tokens_are_the_documents(everything: Path, suffix: str) -> None:
    tokenizer = load_tokenizer(suffix, everything)
    for split in ("train", "val"):
        expected = split_texts(split)
        if suffix == "sp300":
            expected = [unicodedata.normalize("NFKC", text) for text in expected]
            assert expected != split_texts(split), "the sample must hold what NFKC changes"
        tokens = tokens_of(everything, suffix, split)
        assert [tokenizer.decode(ids).decode() for ids in tokens] == expected
        if suffix == "byte260":  # without the tokenizer's own decoder
            assert [bytes(token - 4 for token in ids).decode() for ids in tokens] == expected
        stream = open_split(everything, suffix, split, tokenizer.vocab_size)
        assert int((stream.slice(0, len(stream)) == 1).sum()) == len(expected)


@pytest.mark.parametrize("suffix", ["byte260", "sp300", "sp300i"])
def test_the_manifest_counts_exactly(everything: Path, suffix: str) -> None:
    entry = dataset_entry(everything, suffix)
    assert entry is not None
    stats, folder = entry.stats, everything / str(entry.path)
    assert stats["docs_total"] == 80
    for split, count in (("train", 71), ("val", 9)):
        documents, texts = tokens_of(everything, suffix, split), split_texts(split)
        assert stats[f"docs_{split}"] == len(documents) == count
        assert stats[f"tokens_{split}"] == sum(len(ids) + 1 for ids in documents)
        shards = sorted(folder.glob(f"fineweb_{split}_*.bin"))
        assert stats[f"files_{split}"] == len(shards) == -(-stats[f"tokens_{split}"] // 1000)
        assert {path.stat().st_size for path in shards[:-1]} <= {1024 + 2000}
        assert stats[f"original_bytes_{split}"] == sum(len(text.encode()) for text in texts)
        kept = texts if suffix != "sp300" else [unicodedata.normalize("NFKC", text) for text in texts]
        assert stats[f"bytes_{split}"] == sum(len(text.encode()) for text in kept)
        for path in shards:
            assert entry.sha256[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (stats["bytes_val"] != stats["original_bytes_val"]) == (suffix == "sp300")
    assert stats["tokens_total"] == stats["tokens_train"] + stats["tokens_val"]
    assert stats["files_total"] == stats["files_train"] + stats["files_val"]
    assert validation_bytes(everything, suffix) == stats["original_bytes_val"]
    assert data_summary(everything)[suffix]["tokens_val"] == stats["tokens_val"]


@pytest.mark.parametrize("suffix", ["byte260", "sp300", "sp300i"])
def test_the_sidecar_counts_each_validation_document(everything: Path, suffix: str) -> None:
    tables = np.load(everything / "datasets" / f"fineweb10B_{suffix}" / SIDECAR)
    tokenizer = load_tokenizer(suffix, everything)
    documents = tokens_of(everything, suffix, "val")
    assert tables.dtype == np.int64
    assert tables.tolist() == [
        [len(ids) + 1, len(tokenizer.decode(ids)), len(text.encode())]
        for ids, text in zip(documents, split_texts("val"), strict=True)
    ]


def test_the_layout_is_the_public_one(everything: Path) -> None:
    names = set(files_of(everything))
    shards = {name for name in names if name.endswith(".bin")}
    assert "datasets/fineweb10B_sp300/fineweb_train_000001.bin" in shards
    assert names - shards == {
        MANIFEST,
        "tokenizers/fineweb_300_bpe.model",
        "tokenizers/fineweb_300_bpe.vocab",
        "tokenizers/identity_300.model",
        "tokenizers/identity_300.vocab",
        "tokenizers/fineweb_pure_byte_260.json",
        *(f"datasets/fineweb10B_{suffix}/{SIDECAR}" for suffix in ("byte260", "sp300", "sp300i")),
    }, "no temporary file, no marker"
    manifest = read_manifest(everything)
    assert manifest["docs_total"] == 80
    by_name = {entry["name"]: entry for entry in manifest["tokenizers"]}
    assert by_name["sp_bpe_300"]["model_path"] == "tokenizers/fineweb_300_bpe.model"
    assert by_name["sp_bpe_300"]["vocab_path"] == "tokenizers/fineweb_300_bpe.vocab"
    assert by_name["pure_byte_260"]["path"] == "tokenizers/fineweb_pure_byte_260.json"
    assert [entry["name"] for entry in manifest["datasets"]] == [
        f"fineweb10B_{s}" for s in ("sp300", "sp300i", "byte260")
    ]


def test_the_same_files_again_elsewhere_and_with_any_number_of_workers(
    everything: Path, source: str, specs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = files_of(everything)
    prepare([source], everything, specs, "first:9", shard_tokens=1000, quiet=True, workers=1)
    assert files_of(everything) == expected
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2000)
    prepare([source], tmp_path / "two", specs, "first:9", shard_tokens=1000, quiet=True, workers=2)
    assert files_of(tmp_path / "two") == expected


def test_only_training_documents_train_the_tokenizer(source: str, tmp_path: Path) -> None:
    """The validation text must not shape the vocabulary: the tokenizer is the one of the training text alone."""
    prepare([source], tmp_path / "b", "sp300", "first:9", quiet=True)
    odd = ["\u0416" * 50 + str(number) for number in range(9)]
    other = lines(tmp_path / "other.jsonl", [*odd, *split_texts("train")])
    prepare([other], tmp_path / "c", "sp300", "first:9", quiet=True)
    model = "tokenizers/fineweb_300_bpe.model"
    assert (tmp_path / "b" / model).read_bytes() == (tmp_path / "c" / model).read_bytes()


def test_shards_of_an_independent_writer_load(everything: Path, tmp_path: Path) -> None:
    """The public download: shards and the model, no manifest."""
    folder = tmp_path / "datasets" / "fineweb10B_sp300"
    folder.mkdir(parents=True)
    (tmp_path / "tokenizers").mkdir()
    model = (everything / "tokenizers" / "fineweb_300_bpe.model").read_bytes()
    (tmp_path / "tokenizers" / "fineweb_300_bpe.model").write_bytes(model)
    documents = tokens_of(everything, "sp300", "val")
    stream = [token for ids in documents for token in (1, *ids)]
    independent_write(folder / "fineweb_val_000000.bin", stream[:100])
    independent_write(folder / "fineweb_val_000001.bin", stream[100:])
    tokenizer = load_tokenizer("sp300", tmp_path)
    opened = open_split(tmp_path, "sp300", "val", tokenizer.vocab_size)
    assert opened.slice(0, len(opened)).tolist() == stream
    assert tokenizer.decode(documents[0]).decode() == unicodedata.normalize("NFKC", TEXTS[0])


# ---------------------------------------------------------------------------------------------- the same folder again


def test_a_second_tokenizer_keeps_the_first(source: str, everything: Path, tmp_path: Path) -> None:
    prepare([source], tmp_path, "byte260", "first:9", quiet=True)
    before = files_of(tmp_path)
    prepare([source], tmp_path, "sp300", "first:9", quiet=True)
    after = files_of(tmp_path)
    assert {name: after[name] for name in before if name != MANIFEST} == {
        name: data for name, data in before.items() if name != MANIFEST
    }
    assert set(data_summary(tmp_path)) == {"byte260", "sp300"}
    assert load_tokenizer("sp300", tmp_path).identity() == load_tokenizer("sp300", everything).identity()


@pytest.mark.parametrize("change", ["other file", "more text", "split", "field"])
def test_other_documents_or_another_split_are_refused(tmp_path: Path, change: str) -> None:
    source = lines(tmp_path / "a.jsonl", TEXTS)
    out = tmp_path / "data"
    prepare([source], out, "byte260", "first:9", quiet=True)
    before = files_of(out)
    if change == "other file":
        source = lines(tmp_path / "b.jsonl", TEXTS)
    elif change == "more text":
        lines(tmp_path / "a.jsonl", [*TEXTS, "more"])
    split, field = "first:8" if change == "split" else "first:9", "title" if change == "field" else "text"
    with pytest.raises(BytegolfError, match="other documents or with another split: choose another --out"):
        prepare([source], out, "sp300", split, text_field=field, quiet=True)
    assert files_of(out) == before


class Stdin:
    def __init__(self, text: str) -> None:
        self.buffer = io.BytesIO(text.encode())


def test_other_documents_that_look_the_same_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input says nothing about itself, and a file may be edited: only the text tells."""
    raw = {"name": "other", "dataset_suffix": "other", "kind": "byte"}
    (tmp_path / "other.json").write_text(json.dumps([raw]))
    other, out = str(tmp_path / "other.json"), tmp_path / "data"
    monkeypatch.setattr("sys.stdin", Stdin("some text " * 50))
    prepare(["-"], out, "byte260", "first:1", cut=100, quiet=True)
    monkeypatch.setattr("sys.stdin", Stdin("same size " * 50))
    with pytest.raises(BytegolfError, match=r"the documents are not those that .* was made from"):
        prepare(["-"], out, other, "first:1", cut=100, quiet=True)
    assert validation_bytes(out, "byte260") == 100, "what was there is untouched and usable"
    with pytest.raises(BytegolfError, match="no data for the tokenizer 'other'"):
        dataset_entry(out, "other")
    monkeypatch.setattr("sys.stdin", Stdin("some text " * 50))
    prepare(["-"], out, other, "first:1", cut=100, quiet=True)
    assert set(data_summary(out)) == {"byte260", "other"}


def test_a_tokenizer_may_not_take_another_s_files(source: str, tmp_path: Path) -> None:
    prepare([source], tmp_path / "d", "sp300", "first:9", quiet=True)
    before = files_of(tmp_path / "d")
    for raw in (
        {"name": "mine", "dataset_suffix": "mine", "vocab_size": 300},
        {"name": "mine", "dataset_suffix": "sp300", "model_prefix": "mine", "vocab_size": 300},
    ):
        (tmp_path / "s.json").write_text(json.dumps([raw]))
        with pytest.raises(BytegolfError, match="of another tokenizer than mine: give the spec its own"):
            prepare([source], tmp_path / "d", str(tmp_path / "s.json"), "first:9", quiet=True)
    assert files_of(tmp_path / "d") == before


def test_a_download_without_manifest_is_not_overwritten(source: str, tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "fineweb10B_byte260"
    folder.mkdir(parents=True)
    independent_write(folder / "fineweb_train_000000.bin", [1, 5])
    before = files_of(tmp_path)
    with pytest.raises(BytegolfError, match=r"has shards but no manifest\.json"):
        prepare([source], tmp_path, "byte260", quiet=True)
    assert files_of(tmp_path) == before


# ---------------------------------------------------------------------------------------------- existing models


def write_spec(path: Path, **more: Any) -> str:
    path.write_text(json.dumps([{"name": "reused", "dataset_suffix": "sp300", "vocab_size": 300, **more}]))
    return str(path)


def test_an_existing_model_is_taken_over(everything: Path, source: str, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "s.json", reuse_model_path=str(everything / "tokenizers" / "fineweb_300_bpe.model"))
    prepare([source], tmp_path / "d", spec, "first:9", shard_tokens=1000, quiet=True)
    ours, theirs = files_of(tmp_path / "d"), files_of(everything)
    same = [name for name in ours if name.startswith("datasets/fineweb10B_sp300/") or name.startswith("tokenizers/")]
    assert len(same) > 5
    assert all(ours[name] == theirs[name] for name in same)
    assert dataset_entry(tmp_path / "d", "sp300") is not None
    # from stdin too, which training could not read twice; and a model in its own place is left there
    again = write_spec(
        tmp_path / "t.json", reuse_model_path=str(tmp_path / "d" / "tokenizers" / "fineweb_300_bpe.model")
    )
    prepare([source], tmp_path / "d", again, "first:9", shard_tokens=1000, quiet=True)
    assert {name: data for name, data in files_of(tmp_path / "d").items() if name != MANIFEST} == {
        name: data for name, data in ours.items() if name != MANIFEST
    }


def test_an_earlier_model_s_vocab_does_not_stay(everything: Path, source: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare.model"
    bare.write_bytes((everything / "tokenizers" / "identity_300.model").read_bytes())
    prepare([source], tmp_path / "d", write_spec(tmp_path / "s.json"), "first:9", quiet=True)
    prepare(
        [source], tmp_path / "d", write_spec(tmp_path / "s.json", reuse_model_path=str(bare)), "first:9", quiet=True
    )
    [entry] = read_manifest(tmp_path / "d")["tokenizers"]
    assert "vocab_path" not in entry
    assert not (tmp_path / "d" / "tokenizers" / "fineweb_300_bpe.vocab").exists()


def test_a_model_that_does_not_fit_its_spec(everything: Path, source: str, tmp_path: Path) -> None:
    model = str(everything / "tokenizers" / "fineweb_300_bpe.model")
    spec = write_spec(tmp_path / "s.json", reuse_model_path=model, vocab_size=301)
    with pytest.raises(BytegolfError, match="has 300 pieces, but its spec reused says 301"):
        prepare([source], tmp_path / "d", spec, quiet=True)
    spec = write_spec(tmp_path / "s.json", reuse_model_path="nowhere.model")
    with pytest.raises(BytegolfError, match=r"nowhere\.model"):
        prepare([source], tmp_path / "d", spec, quiet=True)


def test_stdin_cannot_train_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Stdin("text"))
    with pytest.raises(BytegolfError, match="training sp300 reads the documents twice"):
        prepare(["-"], tmp_path / "d", "sp300", quiet=True)
    assert not (tmp_path / "d").exists()


# ---------------------------------------------------------------------------------------------- failures


def break_after(monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
    whole, read = tables.record, 0

    def record(*arguments: Any) -> Document:
        nonlocal read
        if read == count:
            raise error
        read += 1
        return whole(*arguments)

    monkeypatch.setattr(tables, "record", record)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BytegolfError("line 61 is broken")])
def test_an_interruption_is_mended_by_running_again(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2000)
    with monkeypatch.context() as broken:
        break_after(broken, 60, error)
        with pytest.raises(type(error)):
            prepare([source], tmp_path / "d", "byte260", "first:9", shard_tokens=1000, quiet=True)
    left = files_of(tmp_path / "d")
    assert left["prepare.unfinished"] == b"fineweb10B_byte260\n"
    assert "datasets/fineweb10B_byte260/fineweb_train_000000.bin" in left
    assert not [name for name in left if name.endswith(".tmp")]
    with pytest.raises(BytegolfError, match="unfinished export: run the same"):
        open_split(tmp_path / "d", "byte260", "train", 260)
    killed = tmp_path / "d" / "datasets" / "fineweb10B_byte260" / ".fineweb_train_000099.bin.tmp"
    killed.write_bytes(b"left by a process that was killed")
    prepare([source], tmp_path / "d", "byte260", "first:9", shard_tokens=1000, quiet=True)
    prepare([source], tmp_path / "e", "byte260", "first:9", shard_tokens=1000, quiet=True)
    assert files_of(tmp_path / "d") == files_of(tmp_path / "e")


def test_a_second_tokenizer_that_fails_leaves_the_first_usable(source: str, tmp_path: Path) -> None:
    """sp261 cannot be trained on this alphabet, however often the same command is run."""
    prepare([source], tmp_path, "byte260", "first:9", quiet=True)
    with pytest.raises(BytegolfError, match="sp261"):
        prepare([source], tmp_path, "sp261", "first:9", quiet=True)
    assert len(open_split(tmp_path, "byte260", "val", 260)) > 0
    prepare([source], tmp_path, "sp300", "first:9", quiet=True)
    assert set(data_summary(tmp_path)) == {"byte260", "sp300"}
    assert not (tmp_path / UNFINISHED).exists()


def test_half_a_replaced_data_set_is_never_taken_for_whole(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([source], tmp_path, "byte260,sp300", "first:9", quiet=True)
    with monkeypatch.context() as broken:
        break_after(broken, 60, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare([source], tmp_path, "byte260", "first:9", quiet=True)
    with pytest.raises(BytegolfError, match="unfinished"):
        open_split(tmp_path, "byte260", "val", 260)
    assert len(open_split(tmp_path, "sp300", "val", 300)) > 0
    prepare([source], tmp_path, "sp300", "first:9", quiet=True)
    with pytest.raises(BytegolfError, match="no data for the tokenizer 'byte260'"):
        open_split(tmp_path, "byte260", "val", 260)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a full disk does: no file grows beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("repeats", [3, 2000])  # noticed when the shard is closed, and while it is written
def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path, repeats: int) -> None:
    source = lines(tmp_path / "d.jsonl", [text * repeats for text in TEXTS])
    with (
        largest_file(4000),
        pytest.raises(BytegolfError, match=r"cannot write .*fineweb_\w+_000000\.bin: ") as caught,
    ):
        prepare([source], tmp_path / "d", "byte260", "first:9", quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("texts", "val", "words"),
    [
        ([], "first:1", "no text at all"),
        (["", " \n"], "first:1", "no text at all"),
        (["one"], None, "leaves none for"),
        (["one"], "first:1", "leaves none for training"),
        (["one", "two"], "groups:d.jsonl", "leaves none for training"),
        (["one", "two"], "groups:Monroe", r"names groups without documents \(Monroe\)"),
        (["one", "two"], "tail:1", "is no validation split"),
    ],
)
def test_splits_and_texts_that_leave_nothing(tmp_path: Path, texts: list[str], val: str | None, words: str) -> None:
    source = lines(tmp_path / "d.jsonl", texts)
    with pytest.raises(BytegolfError, match=words):
        prepare([source], tmp_path / "d", val=val, quiet=True)
    assert not (tmp_path / "d" / MANIFEST).exists()


def test_groups_and_hashes_hold_out_what_the_rule_says(tmp_path: Path) -> None:
    tables = [{"text": text, "by": f"author {number % 5}"} for number, text in enumerate(TEXTS)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tables))
    source = str(tmp_path / "d.jsonl")
    manifest = prepare([source], tmp_path / "g", val="groups:author 1,author 3", group_field="by", quiet=True)
    assert manifest["split"] == "groups:author 1,author 3"
    found = [bytes(token - 4 for token in ids).decode() for ids in tokens_of(tmp_path / "g", "byte260", "val")]
    assert found == [text for number, text in enumerate(TEXTS) if number % 5 in (1, 3)]
    manifest = prepare([source], tmp_path / "h", val="hash:0.2", quiet=True)
    rule = Split.parse("hash:0.2")
    expected = [text for text in TEXTS if rule.holds_out(0, Document(text.encode(), ""))]
    found = [bytes(token - 4 for token in ids).decode() for ids in tokens_of(tmp_path / "h", "byte260", "val")]
    assert found == expected


def peaks_of_memory(folder: str, counts: list[int]) -> list[int]:
    """The most bytes that Python's objects and arrays take while so many documents are prepared, for each count."""
    blocks.BLOCK_BYTES = 100_000
    text, peaks = "a few words " * 350, []
    for count in counts:
        source = lines(Path(folder) / f"{count}.jsonl", [f"{number} {text}" for number in range(count)])
        tracemalloc.start()
        prepare([source], Path(folder) / str(count), val="hash:0.5", workers=1, quiet=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return peaks


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    _, small, large = in_own_process(peaks_of_memory, str(tmp_path), [10, 200, 5000])  # the first one imports
    assert large < small + 1_000_000, "20 MB of documents take no more than 1 MB"


def test_the_progress_is_told_on_stderr(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare([source], tmp_path / "d", val="first:9")
    out, err = capsys.readouterr()
    assert out == ""
    assert "writing shards" in err
    assert "100%" in err
    assert "B/s" in err
