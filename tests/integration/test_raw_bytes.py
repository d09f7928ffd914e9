"""byte256, raw bytes with BOS 254 and EOS 255: from text to a trained model and every use of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import good, refused, small, text

import bytegolf
from bytegolf.data.dataset import open_split, read_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("raw")
    rows = [json.dumps({"text": text(600, seed)}) for seed in range(60)]
    (home / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    good("prepare", home / "corpus.jsonl", "--out", home / "data", "--tokenizer", "byte256,byte260", "--val", "first:6")
    return home / "data"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "raw"
    changes = ("data.tokenizer=byte256", "model.vocab_size=256")
    good("train", "cpu-demo", *small("cpu-demo"), *changes, "--data", data, "--out", folder)
    return folder


def test_prepare_writes_the_bytes_themselves(data: Path) -> None:
    raw, shifted = open_split(data, "byte256", "val", 256), open_split(data, "byte260", "val", 260)
    ids, others = raw.slice(0, len(raw)), shifted.slice(0, len(shifted))
    assert np.array_equal(np.flatnonzero(ids == 254), np.flatnonzero(others == 1)), "a BOS before each document"
    assert np.array_equal(ids[ids < 254], others[others >= 4] - 4)
    entries = {entry["tokenizer_name"]: entry for entry in read_manifest(data)["datasets"]}
    assert (entries["pure_byte_256"]["bos_id"], entries["pure_byte_256"]["eos_id"]) == (254, 255)
    assert entries["pure_byte_256"]["stats"]["bytes_val"] == entries["pure_byte_260"]["stats"]["bytes_val"]
    description = json.loads((data / "tokenizers" / "fineweb_pure_byte_256.json").read_text())
    assert description == {
        "tokenizer_type": "pure_byte", "vocab_size": 256, "bos_id": 254, "eos_id": 255, "byte_offset": 0
    }  # fmt: skip


def test_shards_of_raw_bytes_give_their_documents_back(data: Path, tmp_path: Path) -> None:
    shards = data / "datasets" / "fineweb10B_byte256"
    good("prepare", f"shards:{shards}", "--out", tmp_path / "again", "--tokenizer", "byte260")
    for split in ("train", "val"):
        one, two = (open_split(folder, "byte260", split, 260) for folder in (data, tmp_path / "again"))
        assert np.array_equal(one.slice(0, len(one)), two.slice(0, len(two)))


@pytest.mark.usefixtures("proved_quickly")
def test_every_use_of_a_model_over_raw_bytes(run: Path, data: Path, tmp_path: Path) -> None:
    model = bytegolf.load(run, precision="fp32")
    sample = "A café — 東京."
    assert model.tokenizer.name == "byte256"
    assert model.log_probs(sample).shape == (len(sample.encode()), 256)
    assert b"".join(model.chunks(sample.encode())) == sample.encode()
    found = good("eval", run, "--data", data, "--json").json
    assert found["bytes"] == found["tokens"] - 5, "a BOS between documents has no byte"
    good("verify", run, "--data", data, "--json")
    good("sample", run, "The ", "--bytes", "20", "--seed", "1")
    everything = bytes(range(256)) * 4  # the codec takes 254 and 255 as bytes, which a text has not
    assert model.decompress(model.compress(everything)) == everything
    (tmp_path / "odd").write_bytes(b"ab\xfec")
    assert "byte 2 of the text is 254" in refused("segment", run, "--file", tmp_path / "odd")
