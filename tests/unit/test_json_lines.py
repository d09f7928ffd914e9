"""JSON lines by Arrow and one by one: the same documents, and the same words where there are none."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bytegolf.data import tables
from bytegolf.data.document import Document, Reading
from bytegolf.data.tables import block_records, records
from bytegolf.errors import BytegolfError


@pytest.fixture(autouse=True, scope="module")
def small_blocks_too() -> object:
    """Small blocks would not be given to Arrow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ARROW_BYTES", range(1 << 30))
        yield


def told(data: bytes, reading: Reading, whole: bool) -> list[Document] | str:
    try:
        if whole:
            return block_records(data, "d.jsonl", reading)
        return list(records(data.split(b"\n"), "d.jsonl", reading))
    except BytegolfError as error:
        return str(error)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.fixed_dictionaries({"text": st.text()}, optional={"id": VALUES, "body": VALUES, "": VALUES})
LINES = st.builds(lambda value, plain: json.dumps(value, ensure_ascii=plain).encode(), OBJECTS, st.booleans())


@given(st.lists(LINES, max_size=5), st.sampled_from([b"", b"\n", b"\r\n", b"\n\n"]))
@example([b'{"text":"a","id":1}', b'{"id":"\\u00e9","text":"\\ud83d\\ude42\\n"}'], b"\n")
def test_both_read_the_same(lines: list[bytes], end: bytes) -> None:
    data = b"\n".join(lines) + end
    assert told(data, Reading(), True) == told(data, Reading(), False)


BROKEN = [
    b"{}",
    b'{"text": null}',
    b'{"text": 1}',
    b'{"text": ["a"]}',
    b'{"text": "2026-11-23"}',
    b'{"text": "a", "text": "b"}',
    b'{"te\\u0078t": "a"}',
    b'{"text": "\\ud800"}',
    b'{"text": "\xff"}',
    b'{"text": "a\x01"}',
    b'{"text": "a"} {"text": "b"}',
    b'{"text": "a"} {"no": 1}',
    b'{"text": "a"} x',
    b'{"text": "a",}',
    b'{"text": "a"',
    b'{"text": "a"}\0',
    b'\xef\xbb\xbf{"text": "a"}',
    b"{'text': 'a'}",
    b'{"text": "a", "n": NaN, "m": 1e999}',
    b'{"text": "a", "n": 123456789012345678901234567890}',
    b'{"text": "a", "n": 01}',
    b"[1]",
    b'"text"',
    b"  ",
    b"",
]


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: line[:30].decode("latin-1"))
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_is_wrong_is_said_in_the_same_words(line: bytes, at: int) -> None:
    lines = [b'{"text": "before"}', b'{"text": "behind"}']
    lines.insert(at, line)
    data = b"\n".join(lines) + b"\n"
    assert told(data, Reading(), True) == told(data, Reading(), False)


def test_depth_is_no_danger() -> None:
    deep = b'{"text": "a", "n": ' + b"[" * 1_000_000
    assert "is not JSON" in told(deep, Reading(), True)
    assert told(deep + b"]" * 1_000_000 + b"}", Reading(), True) == [Document(b"a", "d.jsonl")]


@given(st.binary(max_size=30) | st.text(st.sampled_from('{}[]":, \n\\utex1'), max_size=30).map(str.encode))
def test_neither_crashes(data: bytes) -> None:
    line = b'{"text": "a"}\n'
    assert told(line + data, Reading(), True) == told(line + data, Reading(), False)


def test_another_field() -> None:
    assert told(b'{"text": "t", "body": "b"}\n', Reading(field="body"), True) == [Document(b"b", "d.jsonl")]


def test_groups_that_are_large_numbers() -> None:
    data = b'{"text": "t", "site": 12345678901234567890123}\n'
    assert told(data, Reading(group_field="site"), True) == [Document(b"t", "12345678901234567890123")]


def test_arrow_is_what_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "records", None)
    assert block_records(b'{"text": "a"}\n{"text": ""}\n', "d.jsonl", Reading()) == [
        Document(b"a", "d.jsonl"),
        Document(b"", "d.jsonl"),
    ]
