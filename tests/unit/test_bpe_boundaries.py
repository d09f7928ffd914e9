"""Where the tokens of a SentencePiece tokenizer start, in bytes of the text as it was before normalising."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import WORDS, identity_style, published_style

from bytegolf.data.bpe_boundaries import stream_starts, token_starts, word_starts
from bytegolf.data.tokenizer import SPACE, ByteTokenizer, SentencePieceTokenizer
from bytegolf.errors import BytegolfError

__all__ = ["identity_style", "published_style"]

WORDY = st.lists(st.sampled_from([*WORDS, "\n", "  ", "\t", "\u200b", "e\u0301", "ﷺ", "😀"]), max_size=12).map(" ".join)
TEXTS = st.one_of(st.text(), WORDY)


def shown(tokenizer: SentencePieceTokenizer, text: str | bytes) -> list[bytes]:
    """The text cut at the starts."""
    data = text.encode() if isinstance(text, str) else text
    cuts = [*np.flatnonzero(token_starts(tokenizer, text)).tolist(), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


@given(TEXTS.filter(lambda text: SPACE not in text and "\0" not in text))
@settings(deadline=None)
def test_without_normalizing_the_parts_are_the_tokens(identity_style: SentencePieceTokenizer, text: str) -> None:
    """An oracle of its own: ids and their exact byte counts."""
    ids = identity_style.encode(text)
    ends = np.cumsum(identity_style.byte_counts(ids, np.full(len(ids), 300)))
    wanted = np.zeros(len(text.encode()), np.bool_)
    wanted[[0, *ends[:-1].tolist()] if len(ids) else []] = True
    assert token_starts(identity_style, text).tolist() == wanted.tolist()


@given(TEXTS)
@settings(deadline=None)
def test_normalizing_loses_starts_but_misplaces_none(published_style: SentencePieceTokenizer, text: str) -> None:
    data, ids = text.encode(), published_style.encode(text)
    starts = token_starts(published_style, text)
    assert starts.shape == (len(data),)
    assert starts.sum() <= max(len(ids), 1)
    assert bool(starts[:1].all()), "a text begins with a token"
    plain = published_style._processor.normalize(text).replace(SPACE, " ") == text
    if plain:
        assert starts.sum() == len(ids)
    inside = np.frombuffer(data, np.uint8) & 0xC0 == 0x80
    cut = {data[at - 1 : at + 1] for at in np.flatnonzero(starts & inside)}
    fallback = [piece for piece in published_style.pieces(text)[0] if piece.startswith("<0x")]
    assert not cut or fallback, "only byte-fallback pieces start inside a character"


@given(TEXTS, TEXTS, st.binary(max_size=3))
@settings(deadline=None)
def test_bytes_that_are_no_text_are_tokens(
    published_style: SentencePieceTokenizer, before: str, after: str, middle: bytes
) -> None:
    data = before.encode() + b"\xff" + after.encode()
    parts = (token_starts(published_style, before), [True], token_starts(published_style, after))
    assert token_starts(published_style, data).tolist() == np.concatenate(parts).tolist()
    assert len(token_starts(published_style, middle)) == len(middle)


def test_examples(published_style: SentencePieceTokenizer, identity_style: SentencePieceTokenizer) -> None:
    assert shown(identity_style, "the of state") == [b"the", b" of", b" state"], "a space begins the word behind it"
    assert shown(published_style, "the of state") == [b"the", b" of", b" state"]
    assert shown(published_style, "  the \t of  ") == [b"  the", b" \t of  "], "dropped spaces stay with their token"
    ligature, roman = "ﬁnal".encode(), "Ⅳ".encode()
    assert shown(published_style, "the ﬁnal") == [b"the", b" " + ligature], "one token, across what was one character"
    assert shown(published_style, "the Ⅳ") == [b"the", b" " + roman]
    assert shown(published_style, "the Ⅱ") == [b"the", b" " + "Ⅱ".encode()], "its second I is a token, but nowhere here"
    assert shown(published_style, "€") == [b"\xe2", b"\x82", b"\xac"], "byte fallback"
    ligature = "ﷺ".encode()  # becomes 18 characters, none of which has a piece
    assert shown(published_style, "ﷺ") == [ligature], "what was one character is not cut where it was none"
    assert shown(published_style, " \n ") == [b" \n "], "nothing is left of it"
    assert shown(published_style, "") == []
    assert shown(identity_style, SPACE + "the") == [(SPACE + "the").encode()], "the mark itself has three bytes"


def test_a_window_may_begin_and_end_inside_a_character(identity_style: SentencePieceTokenizer) -> None:
    data = "東京 the 東京".encode()[1:-2]
    assert shown(identity_style, data) == [b"\x9d", b"\xb1", "京".encode(), b" the", b" ", "東".encode(), b"\xe4"]


@given(st.lists(TEXTS, min_size=1, max_size=3))
@settings(deadline=None)
def test_a_stream_is_its_documents(identity_style: SentencePieceTokenizer, texts: list[str]) -> None:
    bytewise = ByteTokenizer()
    ids = np.concatenate([[ByteTokenizer.BOS, *bytewise.encode(text)] for text in texts])
    wanted = np.concatenate([[True, *token_starts(identity_style, text)] for text in texts])
    assert stream_starts(identity_style, ids).tolist() == wanted.tolist()
    assert stream_starts(identity_style, ids[1:]).tolist() == wanted[1:].tolist(), "a stream may begin anywhere"


def test_words_among_tokens(published_style: SentencePieceTokenizer) -> None:
    ids = np.concatenate([[1], published_style.encode("the state people"), [1], published_style.encode("of 1789")])
    starts = word_starts(published_style, ids)
    pieces = [published_style.decode([token], previous=300).decode() for token in ids]
    words: list[str] = []
    for piece, start in zip(pieces, starts, strict=True):
        words = [*words, piece] if start else [*words[:-1], words[-1] + piece]
    assert words == ["", "the", " state", " people", "", "of", " 1789"]
    assert word_starts(published_style, []).tolist() == []


def test_a_tokenizer_that_loses_characters_is_refused(
    identity_style: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_style, "pieces", lambda text: (["a"], text, list(range(len(text)))))
    with pytest.raises(BytegolfError, match="do not add up to its normalised text"):
        token_starts(identity_style, "ab")
