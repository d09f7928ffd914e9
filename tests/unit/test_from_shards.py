"""Token shards as documents: the same as the documents themselves, or a refusal that says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import files_of, lines, made_up
from independent_shards import independent_read, independent_write

from bytegolf.data import from_shards
from bytegolf.data.dataset import MANIFEST, read_manifest
from bytegolf.data.prepare import prepare
from bytegolf.errors import BytegolfError

ODD = [" leading", "  two", "\n first", "end \n", "a\0b", "tab\tand  spaces", "🙂 東京 ﬁnal Ⅳ", "<unk></s><0x41>", "é"]
PIECES = 330
TEXTS = [text for pair in zip(made_up(len(ODD) * 4), ODD * 4, strict=True) for text in pair]
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
KINDS: dict[str, dict[str, Any]] = {
    "bare": IDENTITY,
    "prefix": {**IDENTITY, "add_dummy_prefix": True},
    "published": {},
    "squeezed": {**IDENTITY, "remove_extra_whitespaces": True},
}


def specs(folder: Path, *kinds: str) -> str:
    value: list[dict[str, Any]] = [
        {"name": kind, "dataset_suffix": kind, "model_prefix": kind, "trainer_overrides": KINDS[kind]} for kind in kinds
    ]
    for spec in value:
        spec["vocab_size"] = PIECES
    path = folder / f"{'-'.join(kinds)}.json"
    path.write_text(json.dumps([*value, {"kind": "byte"}]))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents with every tokenizer, in shards of 300 tokens."""
    folder = tmp_path_factory.mktemp("data")
    source = lines(folder / "docs.jsonl", TEXTS)
    prepare([source], folder / "out", specs(folder, *KINDS), "first:9", shard_tokens=300, quiet=True)
    return folder / "out"


def shards_of(out: Path, name: str) -> dict[str, bytes]:
    return files_of(out / "datasets" / f"fineweb10B_{name}")


def from_data_set(data: Path, name: str) -> str:
    return f"shards:{data}/datasets/fineweb10B_{name}"


@pytest.mark.parametrize("name", ["bare", "prefix", "byte260"])
@pytest.mark.parametrize("block", [60, 10_000])
def test_shards_give_the_documents_back(
    data: Path, tmp_path: Path, name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents across the borders of shards and blocks; with sizes, counts and sidecar of the documents themselves."""
    monkeypatch.setattr(from_shards, "BLOCK_TOKENS", block)
    manifest = prepare([from_data_set(data, name)], tmp_path / "d", "byte260", shard_tokens=300, quiet=True)
    assert shards_of(tmp_path / "d", "byte260") == shards_of(data, "byte260")
    original = read_manifest(data)
    assert manifest["documents_digest"] == original["documents_digest"]
    assert manifest["split"] == "first:9"
    assert manifest["datasets"][0]["stats"] == original["datasets"][-1]["stats"]


def test_bytes_become_pieces(data: Path, tmp_path: Path) -> None:
    model = {"reuse_model_path": str(data / "tokenizers" / "published.model"), "model_prefix": "published"}
    raw = {"name": "published", "dataset_suffix": "published", "vocab_size": PIECES, **model}
    (tmp_path / "s.json").write_text(json.dumps([raw]))
    source = from_data_set(data, "byte260")
    prepare([source], tmp_path / "d", str(tmp_path / "s.json"), shard_tokens=300, quiet=True)
    assert shards_of(tmp_path / "d", "published") == shards_of(data, "published")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("published", r"published\.model rewrites characters \(nmt_nfkc\) and removes spaces .* prepare from the doc"),
        ("squeezed", r"squeezed\.model removes spaces \(remove_extra_whitespaces\) before it cuts text"),
    ],
)
def test_a_normaliser_that_cannot_be_undone_is_refused(data: Path, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(BytegolfError, match=words):
        prepare([from_data_set(data, name)], tmp_path / "d", quiet=True)
    assert not (tmp_path / "d").exists()


def copy(data: Path, to: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """A data folder with "bare" alone, and what ``change`` does to its manifest; without a manifest if it is None."""
    for name, content in files_of(data).items():
        if "fineweb10B_bare/" in name or name == "tokenizers/bare.model":
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes(content)
    manifest = read_manifest(data)
    if change is None:
        (to / "tokenizers" / "bare.model").rename(to / "tokenizers" / "fineweb_bare_bpe.model")
    else:
        manifest["datasets"] = [entry for entry in manifest["datasets"] if entry["tokenizer_name"] == "bare"]
        change(manifest)
        (to / MANIFEST).write_text(json.dumps(manifest))
    return to


def test_a_folder_without_manifest_or_with_one_data_set(data: Path, tmp_path: Path) -> None:
    bare = copy(data, tmp_path / "bare")
    prepare([from_data_set(bare, "bare")], tmp_path / "a", shard_tokens=300, quiet=True)
    one = copy(data, tmp_path / "one", lambda manifest: None)
    prepare([f"shards:{one}"], tmp_path / "b", shard_tokens=300, quiet=True)
    assert shards_of(tmp_path / "a", "byte260") == shards_of(tmp_path / "b", "byte260") == shards_of(data, "byte260")
    with pytest.raises(BytegolfError, match=r"holds 5 data sets: name one of shards:.*fineweb10B_bare, "):
        prepare([f"shards:{data}"], tmp_path / "c", quiet=True)


@pytest.mark.parametrize("split", ["first:3", "hash:0.5"])
def test_a_text_with_sentencepiece_s_own_mark_is_noticed(tmp_path: Path, split: str) -> None:
    """By the hash of all documents, or where their order is lost, by their length."""
    source = lines(tmp_path / "docs.jsonl", [*TEXTS, "a▁b"])
    prepare([source], tmp_path / "data", specs(tmp_path, "bare"), split, quiet=True)
    with pytest.raises(BytegolfError, match=r"do not give back the documents .*a ▁ in a text comes back as a space"):
        prepare([from_data_set(tmp_path / "data", "bare")], tmp_path / "d", quiet=True)
    assert not (tmp_path / "d" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (3, r"tokens 0 to [\d,]+ of the val shards .* hold the token 3 of bare, which stands for no text"),
        (2, "hold the token 2 of bare"),
        (65535, "hold the token 65535, but bare has 330"),
        (4 + 0xFF, "hold a document that is not UTF-8"),
    ],
)
def test_tokens_that_are_no_text_are_refused(data: Path, tmp_path: Path, token: int, words: str) -> None:
    folder = copy(data, tmp_path / "bare") / "datasets" / "fineweb10B_bare"
    shard = folder / "fineweb_val_000000.bin"
    tokens = independent_read(shard)
    tokens[20] = token
    independent_write(shard, tokens)
    with pytest.raises(BytegolfError, match=words):
        prepare([f"shards:{folder}"], tmp_path / "d", quiet=True)


def test_shards_that_are_not_all_there(data: Path, tmp_path: Path) -> None:
    folder = copy(data, tmp_path / "one", lambda manifest: None) / "datasets" / "fineweb10B_bare"
    sorted(folder.glob("fineweb_train_*.bin"))[-1].unlink()
    with pytest.raises(BytegolfError, match="tokens of its train split, so its last document may be cut off"):
        prepare([f"shards:{folder}"], tmp_path / "d", quiet=True)
    for shard in folder.glob("fineweb_val_*.bin"):
        shard.unlink()
    with pytest.raises(BytegolfError, match=r"has no fineweb_val_\*\.bin: both splits are needed"):
        prepare([f"shards:{folder}"], tmp_path / "d", quiet=True)


def test_what_is_no_stream_of_documents(data: Path, tmp_path: Path) -> None:
    folder = copy(data, tmp_path / "bare") / "datasets" / "fineweb10B_bare"
    independent_write(folder / "fineweb_val_000000.bin", [270, 1, 270])
    with pytest.raises(BytegolfError, match="do not begin with a BOS"):
        prepare([f"shards:{folder}"], tmp_path / "d", quiet=True)
    for path in folder.glob("fineweb_val_*"):
        path.unlink()
    independent_write(folder / "fineweb_val_000000.bin", [1, 270, 1, 1, 270])
    with pytest.raises(BytegolfError, match="hold a document without text"):
        prepare([f"shards:{folder}"], tmp_path / "d", quiet=True)
    with pytest.raises(BytegolfError, match="is a source of its own"):
        prepare([f"shards:{folder}", "more.txt"], tmp_path / "d", quiet=True)
    assert np.array_equal(independent_read(folder / "fineweb_val_000000.bin"), [1, 270, 1, 1, 270])
