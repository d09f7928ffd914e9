"""Validation splits: what each rule holds out, and how it is written."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytegolf.data.document import Document
from bytegolf.data.split import DEFAULT, Split
from bytegolf.errors import BytegolfError


def document(text: str, group: str = "g") -> Document:
    return Document(text.encode(), group)


def held_out(rule: str, documents: list[Document]) -> list[int]:
    split = Split.parse(rule)
    return [number for number, one in enumerate(documents) if split.holds_out(number, one)]


def test_first_holds_out_the_first_k() -> None:
    documents = [document(str(number)) for number in range(6)]
    assert held_out("first:1", documents) == [0]
    assert held_out("first:4", documents) == [0, 1, 2, 3]
    assert held_out("first:99", documents) == list(range(6))


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.999])
def test_hash_is_the_first_eight_bytes_of_the_text_s_sha256(fraction: float) -> None:
    """Stated, so that another tool can make the same split: the digest's first 64 bits, as a share of 2^64."""
    documents = [document(f"text {number} é", group=str(number % 3)) for number in range(400)]
    expected = [
        number
        for number, one in enumerate(documents)
        if int(hashlib.sha256(one.data).hexdigest()[:16], 16) / 2**64 < fraction
    ]
    assert held_out(f"hash:{fraction}", documents) == expected
    assert 0.5 * fraction < len(expected) / 400 < 1.5 * fraction


def test_some_hashes_are_what_they_were() -> None:
    """A later version that splits otherwise would score models on text that they were trained on."""
    assert held_out("hash:0.25", [document(f"text {number}") for number in range(24)]) == HELD


HELD = [6, 7, 12, 13, 14, 17, 19, 20]


@given(st.lists(st.text(max_size=3), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_equal_texts_fall_on_one_side_of_a_hash_wherever_they_stand(texts: list[str], fraction: float) -> None:
    split = Split("hash", fraction=fraction)
    sides: dict[str, bool] = {}
    for number, text in enumerate(texts):
        side = split.holds_out(number, document(text, group=str(number)))
        assert sides.setdefault(text, side) == side


@given(st.lists(st.text(max_size=2), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_a_group_falls_on_one_side(groups: list[str], fraction: float) -> None:
    split = Split("group", fraction=fraction)
    sides: dict[str, bool] = {}
    for number, group in enumerate(groups):
        side = split.holds_out(number, document(f"text {number}", group))
        assert sides.setdefault(group, side) == side


def test_group_takes_the_same_hash_of_the_name() -> None:
    names = [f"text {number}" for number in range(24)]
    assert held_out("group:0.25", [document("same", name) for name in names]) == HELD


def test_groups_are_those_named() -> None:
    documents = [document("a", "Monroe"), document("b", "Adams"), document("c", "Arthur"), document("d", "monroe")]
    assert held_out("groups:Arthur, Monroe,", documents) == [0, 2]


def test_half_a_surrogate_has_a_hash_too() -> None:
    assert Split.parse("group:0.5").holds_out(0, document("a", "\ud800")) in (True, False)


@pytest.mark.parametrize(
    "text",
    ["first:1", "first:50000", "hash:0.05", "hash:0.123456789", "hash:1e-07", "group:0.25", "groups:A", "groups:A,B c"],
)
def test_a_rule_is_written_as_it_is_read(text: str) -> None:
    assert str(Split.parse(text)) == text
    assert Split.parse(str(Split.parse(text))) == Split.parse(text)


@given(st.floats(0, 1, exclude_min=True, exclude_max=True), st.sampled_from(["hash", "group"]))
def test_any_fraction_survives_being_written(fraction: float, kind: str) -> None:
    """The manifest keeps the text alone, and two rules may not look the same."""
    assert Split.parse(str(Split(kind, fraction=fraction))) == Split(kind, fraction=fraction)


def test_the_default_is_a_rule() -> None:
    assert Split.parse(DEFAULT) == Split("hash", fraction=0.05)


@pytest.mark.parametrize(
    "text",
    ["", "first", "first:", "first:0", "first:-1", "first:1.5", "hash:0", "hash:1", "hash:1.5", "hash:nan", "hash:x",
     "group:", "groups:", "groups: ,", "last:5", "0.05", "First:1"],
)  # fmt: skip
def test_what_is_no_rule_is_said(text: str) -> None:
    with pytest.raises(BytegolfError, match="is no validation split: give first:K, hash:FRACTION") as caught:
        Split.parse(text)
    assert repr(text) in str(caught.value)


def test_an_empty_side_is_said() -> None:
    split = Split.parse("hash:0.5")
    split.check(1, 1)
    with pytest.raises(BytegolfError, match=r"hash:0.5 of 3 documents leaves none for validation: .*--cut"):
        split.check(3, 0)
    with pytest.raises(BytegolfError, match="leaves none for training"):
        split.check(0, 3)


def test_a_misspelt_group_is_said() -> None:
    with pytest.raises(BytegolfError, match=r"groups:Arthur,Kenedy names groups without documents \(Kenedy\)"):
        Split.parse("groups:Kenedy,Arthur").check(9, 1, {"Kenedy"})
