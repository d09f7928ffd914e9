"""Rows of every kind: each becomes a document, is counted as left out, or is named in one sentence."""

from __future__ import annotations

import datetime
import decimal
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import PACK
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.data import blocks
from bytegolf.data.document import Document, Reading
from bytegolf.data.encoding import Encoder
from bytegolf.data.split import Split
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.folders import LeftOut, Tally

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
TEXTS = st.lists(TEXT | st.none() | st.sampled_from(["", " \n", "\u3000", "None", "null"]), min_size=1, max_size=6)
PATHS = st.sampled_from(["text", "a.text", "a.b.text", "dotted.name", "a.dotted.name"])
GROUPS = st.none() | TEXT | st.integers() | st.booleans() | st.sampled_from(["None", "null", "true", "True", "1"])


def read(path: Path, reading: Reading) -> tuple[list[Document], list[LeftOut]]:
    """The documents with text, and what is left out, as `prepare` has them."""
    found, tally = [], Tally()
    for block in blocks.of_files([str(path)], reading):
        documents = list(block.documents())
        encoded = Encoder(Split.parse("first:1"), [ByteTokenizer()])(block)
        tally.include(encoded.left_out)
        found += [document for document in documents if document.has_text()]
        assert len(encoded.original_bytes) == sum(map(Document.has_text, documents))
    return found, tally.all()


def nested(path: str, value: Any, whole: bool) -> Any:
    """A row with ``value`` at a path; ``whole``: "dotted.name" is one field's name, not two."""
    names = path.replace("dotted.name", "dotted\0name" if whole else "dotted.name").split(".")
    for name in reversed(names):
        value = {name.replace("\0", "."): value}
    return value


def check(documents: list[Document], left: Sequence[LeftOut], texts: Sequence[str | None]) -> None:
    """All texts are there or counted."""
    assert [document.text for document in documents] == [text for text in texts if text and not text.isspace()]
    counts = {one.why: (one.count, one.bytes) for one in left}
    nulls = sum(text is None for text in texts)
    blank = [text for text in texts if text is not None and (not text or text.isspace())]
    assert counts.pop("null text", (0, 0)) == (nulls, 0)
    assert counts.pop("blank", (0, 0)) == (len(blank), sum(len(text.encode()) for text in blank))
    assert not counts


@given(TEXTS, PATHS, st.booleans(), st.sampled_from([".jsonl", ".json", ".ndjson.gz", ".jsonl.xz"]), st.booleans())
@settings(max_examples=500)
def test_json_rows(texts: list[str | None], path: str, whole: bool, ending: str, ascii_only: bool) -> None:
    rows = [nested(path, text, whole) for text in texts]
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    data = json.dumps(rows) if ending == ".json" else lines
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / f"d{ending}"
        file.write_bytes(PACK[ending[ending.rindex(".") :] if ending.count(".") > 1 else ""](data.encode()))
        documents, left = read(file, Reading(path))
        check(documents, left, texts)
        first = next((number for number, text in enumerate(texts, 1) if text is None), None)
        if first is not None:
            unit = "item" if ending == ".json" else "line"
            assert left[0].example == f"{file}, {unit} {first}"


ARROW_TEXTS = [
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int32(), pa.string()),
]
UNITS = st.sampled_from(["s", "ms", "us", "ns"])
TIMES = UNITS.flatmap(
    lambda unit: st.tuples(
        st.sampled_from([pa.timestamp(unit), pa.timestamp(unit, "Europe/Berlin"), pa.duration(unit)]),
        # Parquet has no seconds: they are written as milliseconds
        st.lists(
            st.integers(*(sign * 2 ** (53 if unit == "s" else 62) for sign in (-1, 1))) | st.none(),
            min_size=6,
            max_size=6,
        ),
    )
)
SMALL = st.integers(0, 86_399)
OTHERS = st.sampled_from(
    [
        (pa.date32(), st.integers(-(2**31), 2**31 - 1)),
        (pa.time64("ns"), SMALL),
        (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
        (pa.bool_(), st.booleans()),
        (pa.string(), TEXT | st.sampled_from(["None", "null", "true"])),
        (pa.binary(), st.binary(max_size=3)),
        (pa.decimal128(9, 2), st.integers(0, 999).map(decimal.Decimal)),
    ]
).flatmap(lambda kind: st.tuples(st.just(kind[0]), st.lists(kind[1] | st.none(), min_size=6, max_size=6)))


@given(TEXTS, PATHS, st.booleans(), st.sampled_from(ARROW_TEXTS), TIMES | OTHERS, st.integers(1, 3))
@settings(max_examples=500)
def test_parquet_rows(
    texts: list[str | None], path: str, whole: bool, kind: Any, groups: tuple[Any, list[Any]], size: int
) -> None:
    """Text, or bytes that are; in structs; null and dictionary-encoded; and a group column of any kind of values."""
    values = [text.encode() if text is not None and pa.types.is_binary(kind) else text for text in texts]
    if pa.types.is_large_binary(kind):
        values = [text.encode() if text is not None else None for text in texts]
    column, names = pa.array(values, kind), path.split(".")
    if whole and "dotted" in path:
        names = [*names[:-2], "dotted.name"]
    for name in reversed(names[1:]):
        column = pa.StructArray.from_arrays([column], [name])
    of = [groups[1][number % len(groups[1])] for number in range(len(texts))]
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "d.parquet"
        pq.write_table(pa.table({names[0]: column, "when": pa.array(of, groups[0])}), file, row_group_size=size)
        documents, left = read(file, Reading(path, "when"))
        check(documents, left, texts)
        its = [group for group, text in zip(of, texts, strict=True) if text and not text.isspace()]
        pairs = {(repr(group), document.group) for group, document in zip(its, documents, strict=True)}
        assert len({group for group, _ in pairs}) == len(pairs) == len({name for _, name in pairs}), "one to one"
        assert all((name is None) == (group == "None") for group, name in pairs)
        first = next((number for number, text in enumerate(texts, 1) if text is None), None)
        if first is not None:
            assert left[0].example == f"{file}, row {first}"


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=6), st.booleans())
@settings(max_examples=500)
def test_bytes_that_are_no_text(values: list[bytes], claimed: bool) -> None:
    """In a column of bytes, and in one that claims to be text: the row is named."""
    raw = pa.array(values, pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(values), raw.buffers()) if claimed else raw

    def is_text(value: bytes) -> bool:
        try:
            value.decode("utf-8")
        except UnicodeDecodeError:
            return False
        return True

    wrong = next((number for number, value in enumerate(values, 1) if not is_text(value)), None)
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "d.parquet"
        pq.write_table(pa.table({"text": column}), file)
        if wrong is None:
            check(*read(file, Reading()), [value.decode("utf-8") for value in values])
        else:
            with pytest.raises(BytegolfError, match=rf"d\.parquet, row {wrong} is not UTF-8 \(at its byte \d\)"):
                read(file, Reading())


@given(st.lists(GROUPS, min_size=1, max_size=8))
@settings(max_examples=500)
def test_groups_in_json(values: list[Any]) -> None:
    """A null is a group of its own, apart from "None" and "null"; no name is Python's spelling."""
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "d.jsonl"
        file.write_text("\n".join(json.dumps({"text": "x", "by": value}) for value in values), encoding="utf-8")
        documents, _ = read(file, Reading("text", "by"))
    for value, document in zip(values, documents, strict=True):
        assert document.group == (value if value is None or isinstance(value, str) else json.dumps(value))
        held = Split.parse("group:0.5").holds_out(0, document)
        assert held == Split.parse("group:0.5").holds_out(1, document)
        assert not Split.parse("groups:None").holds_out(0, document) or value == "None"


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([["a"]]), "has no text in column 'text', but list<"),
        (pa.array([{"title": "a", "body": "b"}]), "name one of its fields, --field text.title"),
        (pa.array([1]), "has no text in column 'text', but int64"),
        (pa.array([datetime.date(2026, 1, 1)]), "but date32"),
    ],
)
def test_columns_that_hold_no_text(tmp_path: Path, column: Any, said: str) -> None:
    file = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": column}), file)
    with pytest.raises(BytegolfError, match="parquet") as caught:
        read(file, Reading())
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"body": "a", "title": "b"}', "has no text under 'text' (it has body, title): name the right field"),
        ('{"text": 7}', "has no text under 'text', but a number"),
        ('{"text": true}', "but true or false"),
        ('{"text": ["a"]}', "but a list"),
        ("[1]", "has no text under 'text' (a list): one object a line is expected"),
        ("{}", "(it has no fields)"),
    ],
)
def test_values_that_are_no_text(tmp_path: Path, row: str, said: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(f'{{"text": "a"}}\n{row}\n')
    with pytest.raises(BytegolfError, match="line 2 has no text") as caught:
        read(file, Reading())
    assert said in str(caught.value)


def test_times_inside_of_other_values_as_groups(tmp_path: Path) -> None:
    file = tmp_path / "d.parquet"
    times = pa.array([[1], [2**62], None], pa.list_(pa.timestamp("ns")))
    pq.write_table(pa.table({"text": ["a", "b", "c"], "by": times}), file)
    with pytest.raises(BytegolfError, match="in the column of groups, which make no names: name another"):
        read(file, Reading("text", "by"))
