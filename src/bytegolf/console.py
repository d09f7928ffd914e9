"""Where people read: any text is shown as it is, and a table that has no room becomes paragraphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from bytegolf.errors import shown

FOLDED = 24
"""Characters that a line of a path or the like has at least where it is folded."""


class PlainConsole(Console):
    """Texts are shown as they are, whatever a name, title or path holds.

    Rich's own markup and emoji codes are off: ``runs[best]`` and ``:on:`` are names. Control characters are written as
    what they are (``errors.shown``), so that no name can garble a screen. Styles come as arguments or in ``Text``.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False, soft_wrap: bool = False, width: int | None = None):
        super().__init__(
            stderr=stderr, quiet=quiet, soft_wrap=soft_wrap, width=width, markup=False, emoji=False, highlight=False
        )

    def render_str(self, text: str, **settings: Any) -> Text:
        """A string as rich prints it."""
        return super().render_str(shown(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """What rich prints; ``Text``, in tables for instance, is made of any characters, and loses the same ones."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = map(shown, segment.text.split("\n"))
                yield Segment("\n".join(lines), segment.style)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print as rich does; a table that has no room becomes paragraphs (``fitted``)."""
        super().print(*(fitted(self, each) if isinstance(each, Table) else each for each in objects), **settings)

    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which takes it for success; rich would exit with 1."""
        raise


def fitted(console: Console, table: Table) -> RenderableType:
    """``table`` if ``console`` has room for every word in it, else its rows one below the other.

    In 40 columns,

        variant        n     BPB  at whitespace        becomes        two layers
        two layers     3  1.4432          82.9%                         n: 3
                                                                        BPB: 1.4432
                                                                        at whitespace: 82.9%
    """
    columns = [[_text(console, cell) for cell in _cells(column, table.show_header)] for column in table.columns]
    if sum(map(_room, columns, table.columns)) + _frame(table) <= console.width:
        for column in table.columns:
            if not column.no_wrap:
                column.overflow = "fold"
        return table
    return Group(*_paragraphs(console, table))


def _cells(column: Column, head: bool) -> Iterator[RenderableType]:
    if head:
        yield column.header
    yield from column.cells
    yield column.footer


def _text(console: Console, cell: RenderableType) -> Text:
    """A cell as rich shows it; all of ours are strings or texts."""
    return cell.copy() if isinstance(cell, Text) else console.render_str(str(cell))


def _room(cells: Sequence[Text], column: Column) -> int:
    """The characters that a column needs: its longest line where it does not wrap, else its longest word, or what there
    is of it in a line where words may be folded.
    """
    lines = [line for cell in cells for line in cell.plain.split("\n")]
    pieces = lines if column.no_wrap else [word for line in lines for word in line.split()]
    longest = max(map(cell_len, pieces), default=0)
    if column.overflow == "fold" and not column.no_wrap:
        longest = min(longest, FOLDED)
    return max(column.min_width or 0, longest)


def _frame(table: Table) -> int:
    """The characters around and between the columns."""
    _, right, _, left = table.padding
    between = (right + left) * len(table.columns) - (0 if table.pad_edge else right + left)
    return between + (table._extra_width if table.box else 0)


def _paragraphs(console: Console, table: Table) -> Iterator[RenderableType]:
    heads = [_text(console, column.header) for column in table.columns] if table.show_header else []
    if table.title:
        yield _text(console, table.title) if not isinstance(table.title, str) else Text(table.title, style="bold")
    rows = [
        [_text(console, cell) for cell in row] for row in zip(*(column.cells for column in table.columns), strict=True)
    ]
    styles = [row.style for row in table.rows]
    if table.show_footer:
        rows.append([_text(console, column.footer) for column in table.columns])
        styles.append(None)
    for (first, *rest), style in zip(rows, styles, strict=True):
        first.stylize(style or "bold")
        if first.plain.strip():
            yield first
        for at, cell in enumerate(rest, start=1):
            if not cell.plain.strip():
                continue
            named = heads and heads[at].plain.strip()
            yield Padding(Text.assemble(heads[at], ": ", cell, overflow="fold") if named else cell, (0, 0, 0, 2))
    if table.caption:
        yield _text(console, table.caption)
