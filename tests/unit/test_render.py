"""Chunks on paper: nothing is lost, nothing is garbled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.analyze.segment import (
    COLORS,
    STANDARD_TEXT,
    brackets,
    chunks,
    colored,
    visible,
)


def word_starts(data: bytes) -> list[bool]:
    return [index == 0 or data[index - 1 : index] == b" " for index in range(len(data))]


def test_standard_text_has_the_published_size_and_words() -> None:
    assert len(STANDARD_TEXT) == 118
    pieces = chunks(STANDARD_TEXT, word_starts(STANDARD_TEXT))
    assert len(pieces) == 19
    assert brackets(pieces).startswith("[The ][quick ][brown ]")


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=40), st.data())
def test_chunks_and_what_is_shown_of_them(data: bytes, draw: st.DataObject) -> None:
    marks = draw.draw(st.lists(st.booleans(), min_size=len(data), max_size=len(data)))
    pieces = chunks(data, np.array(marks, np.bool_))
    assert b"".join(pieces) == data
    assert len(pieces) == sum(marks[1:]) + bool(data)
    assert all(pieces)
    shown = brackets(pieces)
    assert shown.isprintable()
    shown.encode()
    # whatever the bytes, they can be told from what is shown
    for piece in pieces:
        assert visible(piece).encode().decode("unicode_escape").encode("latin-1") == piece
    colored(pieces).plain.encode()


def test_visible() -> None:
    assert visible(b"a b\n\t\r\x00\x1b[0m\\") == "a b\\n\\t\\r\\x00\\x1b[0m\\\\"
    assert visible("naïve 你好".encode()) == "naïve 你好"
    assert visible("\u202e\u00a0".encode()) == "\\xe2\\x80\\xae\\xc2\\xa0"
    assert visible(b"\xff") == "\\xff"
    assert brackets([b"[x]", b"y"]) == "[\\[x\\]][y]"


def test_a_character_cut_in_two() -> None:
    pieces = chunks("é!".encode(), [True, True, False])
    assert brackets(pieces) == "[\\xc3][\\xa9!]"
    assert colored(pieces).plain == "\\xc3\\xa9!"


def test_colors_alternate_and_line_ends_break_lines() -> None:
    text = colored([b"a\n", b"b", b"c\n\nd"])
    assert text.plain == "a\\n\nb" + "c\\n\n\\n\nd"
    styles = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    assert styles[0] == ("a\\n", COLORS[0])
    assert ("b", COLORS[1]) in styles
    assert ("d", COLORS[0]) in styles


def test_wrong_number_of_boundaries() -> None:
    with pytest.raises(ValueError, match="3 bytes and 2 boundaries"):
        chunks(b"abc", [True, False])
