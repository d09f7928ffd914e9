"""Names of any bytes: found, counted, written down, read again and shown as they are."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from bytegolf.console import PlainConsole
from bytegolf.data import blocks, corpus
from bytegolf.data.dataset import read_manifest
from bytegolf.data.document import Document, Reading
from bytegolf.data.prepare import prepare
from bytegolf.data.split import Split
from bytegolf.files import json_line, lines_of, parse_json, read_json, write_json
from bytegolf.folders import Tally, in_words

ODD = [
    "a,b",
    r"a\,b",
    r"b\ ",
    "-x",
    "--out",
    "..x",
    "a\nb",
    "[a] b [/c]",
    ":on:",
    "x\u2028y",
    "x\x85y",
    "\x7f",
    " a ",
    "~",
    "*",
]
NAMES = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
    st.text(st.sampled_from("\\,[]/. -\n:ab\u2028"), min_size=1, max_size=12),
    st.binary(min_size=1, max_size=12).map(os.fsdecode),  # what is no UTF-8 becomes lone surrogates
).filter(lambda name: not set(name) & {"/", "\0"} and name not in (".", ".."))


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
@settings(max_examples=500)
def test_files_are_found_by_their_names_and_held_out_by_them(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as home:
        names = [f"{name}.txt" for name in names]
        for name in names:
            (Path(home) / name).write_text("text")
        tally = Tally()
        (Path(home) / "x.txt").write_text("text")  # so that there is one at least
        files = corpus.expand([home], tally)
        seen = sorted(name for name in {*names, "x.txt"} if not name.startswith("."))
        assert sorted(Path(file).name for file in files) == seen
        assert sum(one.count for one in tally.all()) == len({*names, "x.txt"}) - len(seen)
        assert in_words(tally.all()).count("\n") == sum(one.example.count("\n") for one in tally.all())
        found = {document.group for document in blocks.documents(blocks.of_files(files, Reading()), lambda count: None)}
        assert found == set(seen)


@given(st.sets(NAMES | st.text(min_size=1, max_size=6), min_size=1, max_size=4))
@example({"a,b.txt"})
@example({" ", "\\"})
@settings(max_examples=500)
def test_a_split_by_groups_can_name_any_of_them(names: set[str]) -> None:
    split = Split("groups", groups=frozenset(names))
    again = Split.parse(str(split))
    assert again == split
    assert all(again.holds_out(0, Document(b"x", name)) for name in names)
    assert not again.holds_out(0, Document(b"x", None))


@given(NAMES | st.text(st.characters(codec=None), max_size=20))
@settings(max_examples=500)
def test_names_are_written_and_read_again(name: str) -> None:
    """In files of JSON and in lines of it, whatever the reader takes for the end of a line."""
    line = json_line({"name": name, name: 1})
    assert len(line.splitlines()) == len(lines_of(line)) == 1
    assert parse_json(line.encode("utf-8")) == {"name": name, name: 1}
    with tempfile.TemporaryDirectory() as home:
        write_json(Path(home) / "x.json", {"name": name})
        assert read_json(Path(home) / "x.json", "file") == {"name": name}


@given(st.lists(st.text(st.characters(codec=None), max_size=12), min_size=1, max_size=3))
@settings(max_examples=500)
def test_a_table_of_names_is_shown_as_it_is(names: list[str]) -> None:
    """A row each, without control characters and markup; also of ``Text``, which rich would show as it is."""
    console, table = PlainConsole(width=400), Table(box=None, show_header=False)
    for name in names:
        table.add_row("row", f"|{name}|")
    with console.capture() as captured:
        console.print(table, Text("|".join(names)))
    lines = lines_of(captured.get())
    assert all(line.isprintable() for line in lines)
    assert [line.startswith(" row ") for line in lines[: len(names)]] == [True] * len(names)
    for line, name in zip(lines, names, strict=False):
        if name.isprintable():
            assert f"|{name}|" in line


@given(NAMES)
@settings(max_examples=40)
def test_a_data_folder_may_be_called_anything(name: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        source, out = Path(home) / f"{name}.txt", Path(home) / f"{name}.data"
        source.write_text("text")
        manifest = prepare([source, source], out, val="first:1", quiet=True)
        assert read_manifest(out) == manifest
        assert manifest["corpus"]["sources"] == [str(source)] * 2
