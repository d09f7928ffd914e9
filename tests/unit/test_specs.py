"""Tokenizer specs: short names, files in the public shape, and what is said of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bytegolf.data.specs import TokenizerSpec, parse_tokenizer, parse_tokenizers, read_specs
from bytegolf.errors import BytegolfError

SP1024 = TokenizerSpec("sp_bpe_1024", "sp1024", "sentencepiece", 1024, "fineweb_1024_bpe")
BYTE260 = TokenizerSpec("pure_byte_260", "byte260", "byte", 260, "fineweb_260_bpe")
PUBLIC: dict[str, Any] = {"name": "sp_bpe_1024", "dataset_suffix": "sp1024", "vocab_size": 1024}


def write(folder: Path, value: Any, name: str = "specs.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(value))
    return path


def test_short_names() -> None:
    assert parse_tokenizer("byte260") == BYTE260
    assert parse_tokenizer("sp1024") == SP1024
    identity = parse_tokenizer("sp4096-identity")
    assert (identity.name, identity.suffix, identity.vocab_size) == ("sp_bpe_4096-identity", "sp4096-identity", 4096)
    assert identity.model_prefix == "fineweb_4096_bpe-identity"
    assert identity.trainer_overrides == {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize("name", ["", "sp", "sp0", "sp01", "spx", "byte", "SP1024", "sp1024-nfc", "gpt2", "sp1024 "])
def test_what_is_no_short_name(name: str) -> None:
    with pytest.raises(BytegolfError, match="is no tokenizer: give byte260, byte256, sp1024"):
        parse_tokenizer(name)


@pytest.mark.parametrize("wrapper", ["tokenizers", "tokenizer_specs", None])
def test_a_file_in_the_public_shape(tmp_path: Path, wrapper: str | None) -> None:
    specs = [PUBLIC, {"name": "pure_byte_260", "kind": "byte", "dataset_suffix": "byte260"}]
    path = write(tmp_path, {wrapper: specs} if wrapper else specs)
    assert read_specs(path) == [SP1024, BYTE260]
    assert parse_tokenizers([str(path)]) == [SP1024, BYTE260]


@pytest.mark.parametrize(
    "raw",
    [{"kind": "byte"}, {"kind": "pure_byte"}, {"dataset_suffix": "byte260"}, {"kind": "byte", "vocab_size": 260}],
)
def test_a_byte_tokenizer_is_told_by_kind_or_suffix(tmp_path: Path, raw: dict[str, Any]) -> None:
    assert read_specs(write(tmp_path, [raw])) == [BYTE260]


@pytest.mark.parametrize("kind", [None, "sentencepiece", "sentencepiece_bpe"])
def test_names_follow_from_the_size(tmp_path: Path, kind: str | None) -> None:
    assert read_specs(write(tmp_path, [{"kind": kind, "vocab_size": 1024}])) == [SP1024]


def test_every_option_is_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "old.model").write_bytes(b"")
    raw = {
        **PUBLIC,
        "kind": "sentencepiece",
        "model_prefix": "mine",
        "reuse_model_path": "old.model",
        "tokenizer_train_docs": 500,
        "trainer_overrides": {"character_coverage": 1.0},
    }
    [spec] = read_specs(write(tmp_path, [raw]))
    assert spec.to_json() == {**raw, "reuse_model_path": str(tmp_path / "old.model")}, "found beside the file"
    assert read_specs(write(tmp_path, [spec.to_json()])) == [spec]
    [ignored] = read_specs(write(tmp_path, [{**PUBLIC, "recommended_bigram_vocab_size": 2048, "kind": None}]))
    assert ignored == SP1024


def test_several_names_keep_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, [{"vocab_size": 2048}])
    names = [spec.suffix for spec in parse_tokenizers(["sp1024", str(path), BYTE260])]
    assert names == ["sp1024", "sp2048", "byte260"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (7, "is an object of keys, not 7"),
        ({"vocab_sise": 1024}, "unknown key 'vocab_sise': did you mean vocab_size"),
        ({"colour": 1}, "unknown key 'colour': known are name, kind"),
        ({"vocab_size": "1024"}, "vocab_size is '1024': give a value of type int"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"name": "x"}, "vocab_size is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"vocab_size": 260}, "vocab_size is 260: give 261 to 65536"),
        ({"vocab_size": 65537}, "vocab_size is 65537: give 261 to 65536"),
        ({"kind": "wordpiece", "vocab_size": 1024}, "kind is 'wordpiece': give byte or sentencepiece"),
        ({"kind": "byte", "vocab_size": 257}, "a byte tokenizer has vocab_size 260, or 256 for raw bytes, not 257"),
        ({**PUBLIC, "dataset_suffix": "../x"}, "'../x' becomes part of a file name"),
        ({**PUBLIC, "name": "a/b"}, "'a/b' becomes part of a file name"),
        ({**PUBLIC, "model_prefix": ".m"}, "'.m' becomes part of a file name"),
        ({**PUBLIC, "tokenizer_train_docs": 0}, "tokenizer_train_docs is 0: give 1 or more"),
        ({**PUBLIC, "trainer_overrides": []}, "trainer_overrides is []"),
    ],
)
def test_a_wrong_spec_is_named(tmp_path: Path, raw: Any, words: str) -> None:
    path = write(tmp_path, [PUBLIC, raw])
    with pytest.raises(BytegolfError) as caught:
        read_specs(path)
    assert str(caught.value).startswith(f"{path}, tokenizer 2")
    assert words in str(caught.value)


@pytest.mark.parametrize("value", [{}, [], {"tokenizers": []}, {"tokenizers": {}}, "sp1024"])
def test_a_file_without_specs(tmp_path: Path, value: Any) -> None:
    with pytest.raises(BytegolfError, match="holds no list of tokenizer specs"):
        read_specs(write(tmp_path, value))


def test_a_file_that_is_missing_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(BytegolfError, match=r"nowhere\.json"):
        parse_tokenizers([str(tmp_path / "nowhere.json")])
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BytegolfError, match=r"bad\.json is not valid JSON"):
        read_specs(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"dataset_suffix": "other", "model_prefix": "other"}, "the name 'sp_bpe_1024'"),
        ({"name": "other", "model_prefix": "other"}, "the dataset_suffix 'sp1024'"),
        ({"name": "other", "dataset_suffix": "other"}, "the model_prefix 'fineweb_1024_bpe'"),
    ],
)
def test_two_tokenizers_may_not_share_a_file(tmp_path: Path, second: dict[str, Any], words: str) -> None:
    path = write(tmp_path, [PUBLIC, {**PUBLIC, **second}])
    with pytest.raises(BytegolfError, match=f"two tokenizers have {words}: give each its own"):
        parse_tokenizers([str(path)])


def test_no_tokenizer_at_all() -> None:
    with pytest.raises(BytegolfError, match="no tokenizer was named"):
        parse_tokenizers([])
