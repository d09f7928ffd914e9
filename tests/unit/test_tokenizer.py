"""byte260 and SentencePiece: round trips and the exact byte count of every token."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.data.specs import _PUBLISHED, parse_tokenizer, train_sentencepiece
from bytegolf.data.tokenizer import (
    SPACE,
    ByteTokenizer,
    RawByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from bytegolf.errors import BytegolfError

WORDS = "the of state Union message people 1789 1826 naïve café ﬁnal Ⅳ 東京 Ελλάδα — “peace” and war".split()  # noqa: SIM905


def made_up_documents(count: int = 60) -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=80)) + "\n\n  Indented\tline " + str(number) for number in range(count)]


@pytest.fixture(scope="module")
def published_style(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    """A small tokenizer trained with the published options (NFKC)."""
    prefix = tmp_path_factory.mktemp("sp") / "tiny"
    return train_sentencepiece(iter(made_up_documents()), parse_tokenizer("sp360"), prefix, threads=1)


@pytest.fixture(scope="module")
def identity_style(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    """The same, but one that leaves the text as it is."""
    prefix = tmp_path_factory.mktemp("sp") / "tiny"
    spec = parse_tokenizer("sp360-identity")
    return train_sentencepiece(iter(made_up_documents()), spec, prefix, threads=1)


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == text.encode()
    assert tokenizer.byte_counts(ids, ids).sum() == len(text.encode())


def test_byte260_is_bytes_plus_four() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode_bytes(bytes(range(256))).tolist() == list(range(4, 260))
    every = np.arange(260)
    assert tokenizer.byte_counts(every, every).tolist() == [0] * 4 + [1] * 256
    assert tokenizer.decode([1, 76, 2, 109, 0, 3]) == b"Hi"
    assert (Tokenizer.PAD, Tokenizer.BOS, Tokenizer.EOS, Tokenizer.UNK) == (0, 1, 2, 3)


def test_every_piece_s_count_follows_the_rule(published_style: SentencePieceTokenizer) -> None:
    """Recomputed piece by piece from the rule's wording, after a boundary token and after another."""
    processor = published_style._processor
    size = published_style.vocab_size
    assert size == processor.vocab_size()
    kinds = set()
    for token in range(size):
        piece = processor.id_to_piece(token)
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            expected = after_boundary = 0
            kinds.add("boundary")
        elif processor.is_byte(token):
            expected = after_boundary = 1
            kinds.add("byte")
        else:
            bare = piece[1:] if piece[0] == SPACE else piece
            after_boundary = len(bare.encode("utf-8"))
            expected = after_boundary + (piece[0] == SPACE)
            kinds.add("space" if piece[0] == SPACE else "bare")
        assert published_style.byte_counts([token], [300]).tolist() == [expected], piece
        for boundary in (Tokenizer.PAD, Tokenizer.BOS, Tokenizer.EOS, Tokenizer.UNK):
            assert published_style.byte_counts([token], [boundary]).tolist() == [after_boundary], piece
    assert kinds == {"boundary", "byte", "space", "bare"}


@given(st.text())
@settings(deadline=None)
def test_counts_are_the_decoded_bytes(published_style: SentencePieceTokenizer, text: str) -> None:
    ids = published_style.encode(text)
    decoded = published_style.decode(ids)
    previous = np.concatenate([[Tokenizer.BOS], ids[:-1]])[: len(ids)]
    assert published_style.byte_counts(ids, previous).sum() == len(decoded)
    assert decoded.decode() == published_style._processor.normalize(text).replace(SPACE, " ")


@given(st.text(st.characters(exclude_characters=SPACE + "\0", exclude_categories=["Cs"])))
@settings(deadline=None)
def test_without_normalization_the_text_survives(identity_style: SentencePieceTokenizer, text: str) -> None:
    ids = identity_style.encode(text)
    # the first word's space is the only thing that a document's start can swallow
    assert identity_style.decode(ids, previous=300) == text.encode()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
@settings(deadline=None)
def test_documents_are_encoded_one_by_one_behind_a_bos(
    published_style: SentencePieceTokenizer, documents: list[str]
) -> None:
    for tokenizer in (published_style, ByteTokenizer()):
        tokens, lengths = tokenizer.encode_documents([text.encode() for text in documents])
        expected = [[Tokenizer.BOS, *tokenizer.encode(text).tolist()] for text in documents]
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == [token for document in expected for token in document]
        assert lengths.tolist() == [len(document) for document in expected]


def test_training_is_deterministic_and_takes_long_documents(tmp_path: Path) -> None:
    """One document far beyond SentencePiece's sentence limit, which would drop it in silence."""
    document = "\n".join(made_up_documents())
    one, two, narrow = (
        train_sentencepiece(iter([document]), parse_tokenizer("sp360"), tmp_path / name / "m", threads=threads)
        for name, threads in (("one", 2), ("two", 2), ("narrow", 1))
    )
    assert one.vocab_size == 360
    assert one.identity()["sha256"] == two.identity()["sha256"], "a model must not know where it was written"
    assert one.path.with_suffix(".vocab").read_bytes() == narrow.path.with_suffix(".vocab").read_bytes()


def test_the_vocab_file_is_sentencepiece_s_own(tmp_path: Path) -> None:
    import sentencepiece

    ours = train_sentencepiece(iter(made_up_documents()), parse_tokenizer("sp360"), tmp_path / "ours")
    options = {**_PUBLISHED, "vocab_size": 360, "model_prefix": str(tmp_path / "theirs")}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(made_up_documents()), **options)
    assert ours.path.with_suffix(".vocab").read_bytes() == (tmp_path / "theirs.vocab").read_bytes()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"nonsense": 4}, 'sp360.*unknown field name "nonsense"'),
        ({"vocab_size": "many"}, 'sp360.*cannot parse "many"'),
        ({"max_sentence_length": "long"}, "max_sentence_length of sp360 is 'long'"),
        ({"max_sentence_length": 0}, "max_sentence_length of sp360 is 0"),
        ({"pad_id": -1}, "need 0, 1, 2, 3"),
    ],
)
def test_wrong_training_options_are_said(tmp_path: Path, override: dict[str, object], words: str) -> None:
    spec = dataclasses.replace(parse_tokenizer("sp360"), trainer_overrides={"minloglevel": 2, **override})
    with pytest.raises(BytegolfError, match=words):
        train_sentencepiece(iter(made_up_documents()), spec, tmp_path / "t")


def test_training_errors_are_said(tmp_path: Path) -> None:
    with pytest.raises(BytegolfError, match="no text to train"):
        train_sentencepiece(iter(["", " \n"]), parse_tokenizer("sp360"), tmp_path / "t", threads=1)

    def broken() -> object:
        yield "some text"
        raise BytegolfError("docs.jsonl, line 7: broken")

    with pytest.raises(BytegolfError, match=r"docs\.jsonl, line 7"):
        train_sentencepiece(broken(), parse_tokenizer("sp360"), tmp_path / "t", threads=1)  # type: ignore[arg-type]
    with pytest.raises(BytegolfError, match="sp261"):
        train_sentencepiece(iter(made_up_documents()), parse_tokenizer("sp261"), tmp_path / "t", threads=1)


def test_identity_is_checked(published_style: SentencePieceTokenizer) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.identity() == {"name": "byte260", "kind": "byte", "vocab_size": 260, "sha256": None}
    tokenizer.check_identity(tokenizer.identity())
    published_style.check_identity({**published_style.identity(), "name": "renamed"})
    with pytest.raises(BytegolfError, match=r"made with tokenizer 'byte260'.*data's is 'sp360'"):
        published_style.check_identity(tokenizer.identity())
    with pytest.raises(BytegolfError, match="sha256"):
        published_style.check_identity({**published_style.identity(), "sha256": "0"})


def test_wrong_ids_and_wrong_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(BytegolfError, match="from 5 to 260 are not byte260's"):
        ByteTokenizer().decode([5, 260])
    path = tmp_path / "broken.model"
    path.write_bytes(b"no model")
    with pytest.raises(BytegolfError, match=r"broken\.model is not a SentencePiece model"):
        SentencePieceTokenizer(path)
    with pytest.raises(BytegolfError, match=r"missing\.model: no such file"):
        SentencePieceTokenizer(tmp_path / "missing.model")
    with pytest.raises(BytegolfError, match="name the data folder"):
        load_tokenizer("sp1024")
    with pytest.raises(BytegolfError, match="bytegolf prepare --out"):
        load_tokenizer("sp1024", tmp_path / "nowhere")


def test_a_public_download_without_manifest(tmp_path: Path, published_style: SentencePieceTokenizer) -> None:
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizers" / "fineweb_360_bpe.model").write_bytes(published_style.path.read_bytes())
    assert load_tokenizer("sp360", tmp_path).identity() == published_style.identity()
    assert load_tokenizer("byte260").vocab_size == 260


def test_raw_bytes_have_their_special_tokens_where_no_utf8_is() -> None:
    tokenizer = load_tokenizer("byte256")
    assert isinstance(tokenizer, RawByteTokenizer)
    assert (tokenizer.vocab_size, tokenizer.BOS, tokenizer.EOS) == (256, 254, 255)
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 97)])).encode()
    assert tokenizer.encode_bytes(every).tolist() == list(every)
    assert tokenizer.decode([254, 72, 105, 255]) == b"Hi"
    assert tokenizer.byte_counts([254, 72, 255], [0, 0, 0]).tolist() == [0, 1, 0]
    ids, lengths = tokenizer.encode_documents([b"a", b"", b"bc"])
    assert (ids.tolist(), lengths.tolist()) == ([254, 97, 254, 254, 98, 99], [2, 1, 3])
    with pytest.raises(BytegolfError, match="byte 1 of the text is 255"):
        tokenizer.encode_bytes(b"a\xff")
