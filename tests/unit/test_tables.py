"""CSV and TSV as documents: what a person would call the table's rows, or a sentence."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.data import corpus
from bytegolf.data.document import Document, Reading
from bytegolf.errors import BytegolfError, install


def read(path: Path, reading: Reading | None = None) -> list[Document]:
    return list(corpus.documents(str(path), reading or Reading(), lambda count: None))


def written(path: Path, rows: list[list[str]], separator: str = ",") -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows(rows)
    path.write_bytes(text.getvalue().encode())
    return path


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=6), separator=st.sampled_from(",;\t"), packed=st.booleans())
def test_rows_are_what_was_written(
    rows: list[tuple[str, str]], separator: str, packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / ("t.tsv" if separator == "\t" else "t.csv")
    written(path, [["id", "text"], *map(list, rows)], separator)
    if packed:
        path, plain = path.with_name(f"{path.name}.gz"), path
        path.write_bytes(gzip.compress(plain.read_bytes(), 1))
    found = read(path, Reading(group_field="id"))
    assert [one.data.decode() for one in found] == [text for _, text in rows]
    assert [one.group for one in found] == [group or None for group, _ in rows]


def test_a_column_by_its_name_and_what_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", [["title", "body"], ["a", 'one, "two"\nthree'], ["b", ""]])
    assert [one.data for one in read(path, Reading("body"))] == [b'one, "two"\nthree', b""]
    assert read(path, Reading("body"))[1].null == f"{path}, row 2"
    with pytest.raises(BytegolfError, match=r"no column 'words' .*title, body.*--field"):
        read(path, Reading("words"))
    with pytest.raises(BytegolfError, match=r"no column 'author'.*--group-field"):
        read(path, Reading("body", "author"))
    said: list[str] = []
    (whole,) = corpus.documents(str(path), Reading(), lambda count: None, said.append)
    assert whole.data == path.read_bytes()
    assert "--field COLUMN" in said[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"text,id\nonly", "row 1 has 1 columns"),
        (b'text,id\n"never ends,1\n', "row 0 .*mend it"),
        (b"text\ncaf\xe9\n", "not UTF-8"),
    ],
)
def test_tables_that_are_none(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(BytegolfError, match=words):
        read(path, Reading(group_field="id") if b"id" in data else None)


def test_excels_mark_and_long_cells(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbftext;n\r\n" + b"x" * 300_000 + b";1\r\n")
    assert [len(one.data) for one in read(path)] == [300_000]


def test_an_installation_is_told_apart() -> None:
    assert install("ray").startswith("pip install -e '/")
    assert install("ray").endswith("[ray]'")
