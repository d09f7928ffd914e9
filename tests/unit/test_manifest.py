"""Data folders: with a manifest, ours or the public one; without; and half-made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from independent_shards import independent_write

from bytegolf.data.dataset import (
    MANIFEST,
    UNFINISHED,
    DatasetEntry,
    data_summary,
    dataset_entry,
    dataset_folder,
    open_split,
    read_manifest,
    tokenizer_entry,
    validation_bytes,
)
from bytegolf.data.tokenizer import ByteTokenizer, load_tokenizer
from bytegolf.errors import BytegolfError

# as the public exporter writes it
PUBLIC: dict[str, Any] = {
    "version": "10B",
    "datasets": [
        {
            "name": "fineweb10B_sp1024",
            "tokenizer_name": "sp_bpe_1024",
            "tokenizer_kind": "sentencepiece_bpe",
            "path": "datasets/fineweb10B_sp1024",
            "vocab_size": 1024,
            "stats": {"files_train": 1, "files_val": 1, "docs_val": 50000, "tokens_val": 62021846},
        },
        {
            "name": "fineweb10B_byte260",
            "tokenizer_name": "pure_byte_260",
            "path": "datasets/fineweb10B_byte260",
            "vocab_size": 260,
            "stats": {"original_bytes_val": 123},
        },
    ],
    "tokenizers": [
        {"name": "sp_bpe_1024", "kind": "sentencepiece_bpe", "model_path": "tokenizers/fineweb_1024_bpe.model"},
        {"name": "pure_byte_260", "kind": "byte", "path": "tokenizers/fineweb_pure_byte_260.json"},
    ],
}


def shards_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    independent_write(folder / "fineweb_train_000000.bin", [1, 5, 6, 7])
    independent_write(folder / "fineweb_val_000000.bin", [1, 8])
    return folder


def write_manifest(folder: Path, value: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps(value))


@pytest.fixture
def public(tmp_path: Path) -> Path:
    for entry in PUBLIC["datasets"]:
        shards_in(tmp_path / entry["path"])
    write_manifest(tmp_path, PUBLIC)
    return tmp_path


@pytest.mark.parametrize("name", ["byte260", "pure_byte_260"])
def test_a_data_set_is_found_by_suffix_and_by_tokenizer(public: Path, name: str) -> None:
    entry = dataset_entry(public, name)
    assert entry == DatasetEntry.parse(PUBLIC["datasets"][1])
    assert entry is not None
    assert (entry.vocab_size, entry.stats, entry.sha256) == (260, {"original_bytes_val": 123}, {})
    described = tokenizer_entry(public, name)
    assert described is not None
    assert described.to_json() == PUBLIC["tokenizers"][1]
    assert dataset_folder(public, name) == public / "datasets" / "fineweb10B_byte260"
    assert isinstance(load_tokenizer(name, public), ByteTokenizer)
    assert open_split(public, name, "train", 260).slice(0, 4).tolist() == [1, 5, 6, 7]


def test_statistics(public: Path) -> None:
    assert read_manifest(public) == PUBLIC
    assert validation_bytes(public, "byte260") == 123
    assert validation_bytes(public, "sp1024") is None
    summary = data_summary(public)
    assert list(summary) == ["sp1024", "byte260"]
    assert summary["sp1024"]["tokens_val"] == 62021846
    assert (summary["byte260"]["tokenizer"], summary["byte260"]["vocab_size"]) == ("pure_byte_260", 260)


def test_the_manifest_says_where_a_data_set_lies(public: Path) -> None:
    moved = json.loads(json.dumps(PUBLIC))
    moved["datasets"][1]["path"] = "elsewhere/bytes"
    write_manifest(public, moved)
    shards_in(public / "elsewhere" / "bytes")
    assert dataset_folder(public, "byte260") == public / "elsewhere" / "bytes"
    for path in ("nowhere", "/nowhere", "../outside"):
        moved["datasets"][1]["path"] = path
        write_manifest(public, moved)
        assert dataset_folder(public, "byte260") == public / "datasets" / "fineweb10B_byte260"
    shards_in(public.parent / "outside")
    assert dataset_folder(public, "byte260") == public / "datasets" / "fineweb10B_byte260", "nothing outside is read"
    for shard in (public / "datasets" / "fineweb10B_byte260").iterdir():
        shard.unlink()
    with pytest.raises(BytegolfError, match=r"holds no token shards for 'byte260'"):
        dataset_folder(public, "byte260")


def test_unknown_tokenizers_are_said(public: Path) -> None:
    with pytest.raises(BytegolfError, match=r"no data for the tokenizer 'sp512' \(it has: sp1024, byte260\)"):
        dataset_entry(public, "sp512")
    with pytest.raises(BytegolfError, match=r"fineweb_1024_bpe\.model"):
        load_tokenizer("sp1024", public)  # the manifest names a file that is not there
    odd = json.loads(json.dumps(PUBLIC))
    odd["tokenizers"][0] = {"name": "sp_bpe_1024", "kind": "wordpiece"}
    write_manifest(public, odd)
    with pytest.raises(BytegolfError, match="the kind 'wordpiece' and no model_path"):
        load_tokenizer("sp1024", public)
    del odd["tokenizers"][0]
    write_manifest(public, odd)
    with pytest.raises(BytegolfError, match="does not describe the tokenizer 'sp_bpe_1024'"):
        tokenizer_entry(public, "sp1024")


@pytest.mark.parametrize("value", [[], 7, {}, {"datasets": []}, {"datasets": [1], "tokenizers": []}])
def test_a_file_that_is_no_manifest(tmp_path: Path, value: Any) -> None:
    write_manifest(tmp_path, value)
    with pytest.raises(BytegolfError, match=r"manifest\.json lists no datasets and tokenizers"):
        read_manifest(tmp_path)


def test_a_manifest_without_statistics(public: Path) -> None:
    bare = {"datasets": [{"name": "fineweb10B_byte260", "stats": None}], "tokenizers": []}
    write_manifest(public, bare)
    assert validation_bytes(public, "byte260") is None
    assert list(data_summary(public)) == ["byte260"]


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BytegolfError, match="there is no data folder"):
        dataset_entry(tmp_path / "nowhere", "byte260")
    with pytest.raises(BytegolfError, match=r"has no manifest\.json"):
        read_manifest(tmp_path)
    with pytest.raises(BytegolfError, match="holds no token shards for 'byte260'"):
        dataset_folder(tmp_path, "byte260")
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(BytegolfError, match=r"manifest\.json is not valid JSON"):
        read_manifest(tmp_path)


# ---------------------------------------------------------------------------------------------- without a manifest


def test_the_public_download_s_layout(tmp_path: Path) -> None:
    folder = shards_in(tmp_path / "datasets" / "fineweb10B_byte260")
    for place in (tmp_path, folder.parent, folder):
        assert dataset_entry(place, "byte260") is None
        assert tokenizer_entry(place, "byte260") is None
        assert validation_bytes(place, "byte260") is None
        assert dataset_folder(place, "byte260") == folder
        stream = open_split(place, "byte260", "val", 260)
        assert stream.slice(0, 2).tolist() == [1, 8]
    with pytest.raises(BytegolfError, match="holds no token shards for 'sp1024'"):
        dataset_folder(folder, "sp1024")  # its name says that these are bytes
    with pytest.raises(BytegolfError, match=r"fineweb_1024_bpe\.model.*so no tokenizer 'sp1024'"):
        load_tokenizer("sp1024", tmp_path)


def test_a_bare_folder_of_shards(tmp_path: Path) -> None:
    shards_in(tmp_path)
    assert np.array_equal(open_split(tmp_path, "byte260", "train", 260).slice(0, 4), [1, 5, 6, 7])
    (tmp_path / "fineweb_val_000000.bin").unlink()
    with pytest.raises(BytegolfError, match="so no val split"):
        open_split(tmp_path, "byte260", "val", 260)


# ---------------------------------------------------------------------------------------------- unfinished


def test_a_first_export_that_is_not_finished(tmp_path: Path) -> None:
    shards_in(tmp_path / "datasets" / "fineweb10B_byte260")
    (tmp_path / UNFINISHED).write_text("fineweb10B_byte260\n")
    for ask in (dataset_entry, dataset_folder, tokenizer_entry, validation_bytes):
        with pytest.raises(BytegolfError, match="unfinished export: run the same `bytegolf prepare"):
            ask(tmp_path, "byte260")


def test_an_unfinished_data_set_beside_finished_ones(public: Path) -> None:
    """That adding a tokenizer failed takes nothing from the others."""
    (public / UNFINISHED).write_text("fineweb10B_byte260\nfineweb10B_sp4096\n")
    for name in ("byte260", "pure_byte_260"):
        with pytest.raises(BytegolfError, match="unfinished export"):
            dataset_entry(public, name)
    assert dataset_entry(public, "sp1024") == DatasetEntry.parse(PUBLIC["datasets"][0])
