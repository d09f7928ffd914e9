"""Whatever a table holds and however narrow the screen is: every character is there, and no line is too long."""

from __future__ import annotations

import io

import pytest
from commands import TinyRun, cli, good
from hypothesis import given, settings
from hypothesis import strategies as st
from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from bytegolf.console import PlainConsole

WORDS = st.text(st.sampled_from("abcdefgh 0123456789.,:/é汉[]"), max_size=30)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, list[str]]:
    """A table as the verbs make them, and its cells."""
    columns = draw(st.integers(1, 5))
    table = Table(
        box=draw(st.sampled_from([None, box.SIMPLE_HEAD])),
        pad_edge=False,
        show_header=draw(st.booleans()),
        caption=draw(st.none() | WORDS),
    )
    said = []
    for _ in range(columns):
        head = draw(WORDS)
        table.add_column(Text(head), no_wrap=draw(st.booleans()), justify=draw(st.sampled_from(["left", "right"])))
    for _ in range(draw(st.integers(1, 3))):
        cells = [draw(WORDS) for _ in range(columns)]
        table.add_row(*[Text(cell) if draw(st.booleans()) else cell for cell in cells])
        said += cells
    return table, said


def shown_in(width: int, table: Table) -> str:
    out = io.StringIO()
    console = PlainConsole(width=width)
    console.file = out
    console.print(table)
    return out.getvalue()


@settings(max_examples=500)
@given(tables(), st.integers(40, 60))
def test_no_cell_is_cut_off(made: tuple[Table, list[str]], width: int) -> None:
    table, said = made
    text = shown_in(width, table)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert "…" not in text
    whole = "".join(said)
    assert all(text.count(char) >= whole.count(char) for char in set(whole) - {" "}), "headings come on top"


def test_a_table_that_fits_is_a_table() -> None:
    table = Table("variant", "BPB", box=None, pad_edge=False)
    table.add_row("two layers", "1.4432")
    assert shown_in(40, table).split("\n")[:2] == ["variant     BPB   ", "two layers  1.4432"]
    assert [line.strip() for line in shown_in(14, table).split("\n")[:2]] == ["two layers", "BPB: 1.4432"]


@pytest.mark.parametrize("width", [40, 60])
def test_verbs_on_a_phone(width: int, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure of the JSON is on the screen, whole."""
    monkeypatch.setenv("COLUMNS", str(width))
    ran = good("presets", "--json")
    assert all(f"{one['params'] / 1e6:.2f} M" in ran.err and one["name"] in ran.err for one in ran.json["presets"])
    ran = good("export", tiny_run.folder, "--out", tiny_run.folder.parent / "narrow.bgolf", "--json")
    assert all(f"{row['packed_bytes']:,}" in ran.err for row in ran.json["rows"])
    ran = cli("check", tiny_run.folder)
    assert all(cell_len(line) <= width for line in ran.out.split("\n"))
    assert "artifact.bgolf" in "".join(line.strip() for line in ran.out.split("\n"))
    good("analyze", tiny_run.folder)
    good("plan", "cpu-demo")
