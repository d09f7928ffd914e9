"""Tokenizers, and the exact number of bytes that each token stands for.

A score in bits per byte is only as right as its byte counts, so they are part of a tokenizer's interface: the
sum of ``byte_counts`` over a document equals the length of what ``decode`` gives back. Where the tokenizer
normalises text (SentencePiece's ``nmt_nfkc``) that is not the length of the original; `bytegolf.data.prepare`
records both.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bytegolf.data.dataset import path_in, tokenizer_entry
from bytegolf.errors import BytegolfError
from bytegolf.files import read_file

SPACE = "▁"  # U+2581, SentencePiece's mark for a space

WHITESPACE = b" \t\n\r\v\f"
"""The bytes that count as whitespace, wherever chunks and words are compared: ASCII's."""

TokenizerKind = Literal["byte", "sentencepiece"]


class TokenizerIdentity(TypedDict):
    """What a model records of its tokenizer."""

    name: str
    kind: TokenizerKind
    vocab_size: int
    sha256: str | None


class Tokenizer(ABC):
    """Text to token ids and back; ids fit in uint16.

    Attributes:
        name: the suffix of its data set, for instance ``byte260`` or ``sp1024``.
        kind: ``byte`` or ``sentencepiece``.
        vocab_size: number of ids.
        sha256: of the model file, where there is one.
    """

    PAD: ClassVar[int] = 0
    BOS: ClassVar[int] = 1
    EOS: ClassVar[int] = 2
    UNK: ClassVar[int] = 3

    name: str
    kind: TokenizerKind
    vocab_size: int
    sha256: str | None = None

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.uint16]:
        """The tokens of a text, uint16 of shape (tokens,); no BOS, no EOS."""

    def encode_documents(self, documents: Sequence[bytes]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Documents in UTF-8 as a stream, each behind a BOS; and how many tokens each is, its BOS included.

        Returns uint16 of shape (tokens,) and int64 of shape (documents,).
        """
        bos = np.array([self.BOS], dtype=np.uint16)
        parts = [part for document in documents for part in (bos, self.encode(document.decode("utf-8")))]
        lengths = np.array([1 + len(part) for part in parts[1::2]], dtype=np.int64)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint16), lengths

    @abstractmethod
    def decode(self, ids: ArrayLike, previous: int = BOS) -> bytes:
        """The bytes that tokens stand for, ``previous`` being the token before the first; specials give none.

        Its length is the sum of the tokens' ``byte_counts``. Bytes, not str: a cut need not fall between
        characters.
        """

    @abstractmethod
    def byte_counts(self, targets: ArrayLike, previous: ArrayLike) -> NDArray[np.int64]:
        """How many bytes each token of ``targets`` stands for after the token at its place in ``previous``.

        Both of one shape, which is the result's (int64); the special tokens count 0.
        """

    def identity(self) -> TokenizerIdentity:
        """What a model must record to be used with this tokenizer only."""
        return {"name": self.name, "kind": self.kind, "vocab_size": self.vocab_size, "sha256": self.sha256}

    def check_identity(self, identity: Mapping[str, object]) -> None:
        """Raise if ``identity`` is not this tokenizer's. The name may differ: only what changes ids matters."""
        mine: Mapping[str, object] = self.identity()
        for key, what in (("kind", "kind"), ("vocab_size", "vocabulary size"), ("sha256", "model file's sha256")):
            if identity.get(key) != mine[key]:
                raise BytegolfError(
                    f"the model was made with tokenizer {identity.get('name')!r} ({what} "
                    f"{identity.get(key)}), but the data's is {self.name!r} ({what} {mine[key]}): use data "
                    "prepared with the model's tokenizer"
                )

    def _ids(self, ids: ArrayLike) -> NDArray[np.int64]:
        array = np.asarray(ids, dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            raise BytegolfError(
                f"token ids from {array.min()} to {array.max()} are not {self.name}'s, which go from 0 to "
                f"{self.vocab_size - 1}: use the tokenizer that the tokens were made with"
            )
        return array


class ByteTokenizer(Tokenizer):
    """byte260: four special tokens, then byte v as token v + 4.

    >>> ByteTokenizer().encode("Hi").tolist()
    [76, 109]
    """

    OFFSET: ClassVar[int] = 4

    def __init__(self, name: str = "") -> None:
        self.vocab_size = 256 + self.OFFSET
        self.name = name or f"byte{self.vocab_size}"
        self.kind = "byte"

    def encode(self, text: str) -> NDArray[np.uint16]:
        return self.encode_bytes(text.encode("utf-8"))

    def encode_bytes(self, data: bytes) -> NDArray[np.uint16]:
        """The tokens of any bytes, UTF-8 or not: uint16 of shape (len(data),)."""
        return self.values(data)

    def values(self, data: bytes) -> NDArray[np.uint16]:
        """The token of each byte's value, whatever else that token means."""
        tokens = np.frombuffer(data, dtype=np.uint8).astype(np.uint16)
        tokens += self.OFFSET  # in place: six times as fast as an addition that converts
        return tokens

    def encode_documents(self, documents: Sequence[bytes]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        # one pass over all of them: a zero byte keeps the place of each BOS
        lengths = np.array([1 + len(document) for document in documents], dtype=np.int64)
        tokens = self.values(b"\0".join([b"", *documents]))
        tokens[np.cumsum(lengths) - lengths] = self.BOS
        return tokens, lengths

    def decode(self, ids: ArrayLike, previous: int = Tokenizer.BOS) -> bytes:
        array = self._ids(ids).reshape(-1)
        return (array[array >= self.OFFSET] - self.OFFSET).astype(np.uint8).tobytes()

    def byte_counts(self, targets: ArrayLike, previous: ArrayLike) -> NDArray[np.int64]:
        return (self._ids(targets) >= self.OFFSET).astype(np.int64)


class RawByteTokenizer(ByteTokenizer):
    """byte256: byte v as token v; 254 and 255, which no UTF-8 has, are BOS and EOS (S4, arXiv 2507.07955).

    >>> RawByteTokenizer().encode("Hi").tolist()
    [72, 105]
    """

    OFFSET: ClassVar[int] = 0
    BOS: ClassVar[int] = 254
    EOS: ClassVar[int] = 255

    def encode_bytes(self, data: bytes) -> NDArray[np.uint16]:
        """The tokens of bytes that are no 254 or 255. Raises BytegolfError for these, which UTF-8 does not have."""
        tokens = self.values(data)
        if tokens.size and tokens.max() >= self.BOS:
            raise BytegolfError(
                f"byte {int(np.argmax(tokens >= self.BOS))} of the text is {tokens.max()}, which means the start or "
                f"end of a document in {self.name}: give text in UTF-8"
            )
        return tokens

    def decode(self, ids: ArrayLike, previous: int = Tokenizer.BOS) -> bytes:
        array = self._ids(ids).reshape(-1)
        return array[array < self.BOS].astype(np.uint8).tobytes()

    def byte_counts(self, targets: ArrayLike, previous: ArrayLike) -> NDArray[np.int64]:
        return (self._ids(targets) < self.BOS).astype(np.int64)


def byte_tokenizer(vocab_size: int, name: str = "") -> ByteTokenizer | None:
    """The tokenizer over bytes of that many ids; None if there is none."""
    kinds = {256: RawByteTokenizer, 256 + ByteTokenizer.OFFSET: ByteTokenizer}
    return kinds[vocab_size](name) if vocab_size in kinds else None


BYTE_TOKENIZERS = {f"byte{size}": size for size in (256 + ByteTokenizer.OFFSET, 256)}
"""The names of the tokenizers over bytes, which need no file, and how many ids they have."""


class SentencePieceTokenizer(Tokenizer):
    """A trained SentencePiece model whose pad, bos, eos and unk are 0, 1, 2, 3.

    A piece stands for its UTF-8 bytes, each "▁" being one space; a byte-fallback piece for one byte; control,
    unknown and unused pieces ("boundary tokens") for none. A *leading* "▁" counts only if the previous token
    is no boundary token, because there is no space before the first word of a document.

    Attributes:
        path: the model file.
        piece_bytes: per id, the bytes of the piece without its leading space.
        leading_space: bool (vocab_size,), whether the piece begins with "▁".
        boundary: bool (vocab_size,), whether the piece is a control, unknown or unused one.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        import sentencepiece

        self.path = Path(path)
        data = read_file(self.path, "tokenizer model")
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
            size = int(self._processor.vocab_size())
        except (RuntimeError, ValueError) as error:
            raise BytegolfError(f"{self.path} is not a SentencePiece model: give a .model file") from error
        if not 0 < size <= 1 << 16:
            raise BytegolfError(f"{self.path} has {size} pieces: shards of uint16 hold 1 to 65536 of them")
        self.name = name or f"sp{size}"
        self.kind = "sentencepiece"
        self.vocab_size = size
        model = self._processor
        specials = (model.pad_id(), model.bos_id(), model.eos_id(), model.unk_id())
        if specials != (self.PAD, self.BOS, self.EOS, self.UNK):
            raise BytegolfError(
                f"{self.path} has pad, bos, eos, unk = {', '.join(map(str, specials))}, but token shards "
                "need 0, 1, 2, 3: train the tokenizer with these ids"
            )
        try:
            self._make_tables()
        except ValueError as error:  # a piece that is not UTF-8, or a byte's that names none
            raise BytegolfError(f"{self.path} has a piece that is no text ({error}): give another .model") from error

    def encode(self, text: str) -> NDArray[np.uint16]:
        return np.asarray(self._processor.encode(text, out_type=int), dtype=np.uint16)

    def decode(self, ids: ArrayLike, previous: int = Tokenizer.BOS) -> bytes:
        parts = []
        for token in self._ids(ids).reshape(-1).tolist():
            if self.leading_space[token] and not self.boundary[previous]:
                parts.append(b" ")
            parts.append(self.piece_bytes[token])
            previous = token
        return b"".join(parts)

    def pieces(self, text: str) -> tuple[list[str], str, list[int]]:
        """The pieces of a text, what it is normalised to ("▁" for a space), and for each character of that the
        character of ``text`` that it came from; the last list may be longer.
        """
        normal, origin = self._processor.normalize(text, with_offsets=True)
        return self._processor.encode(text, out_type=str), normal, origin

    def byte_counts(self, targets: ArrayLike, previous: ArrayLike) -> NDArray[np.int64]:
        ids = self._ids(targets)
        spaces = self.leading_space[ids] & ~self.boundary[self._ids(previous)]
        return np.asarray(self._lengths[ids] + spaces, dtype=np.int64)

    def model(self) -> bytes:
        """The model file's contents, a protocol buffer."""
        return bytes(self._processor.serialized_model_proto())

    def _make_tables(self) -> None:
        model = self._processor
        self.piece_bytes: list[bytes] = []
        self.leading_space: NDArray[np.bool_] = np.zeros(self.vocab_size, dtype=np.bool_)
        self.boundary: NDArray[np.bool_] = np.zeros(self.vocab_size, dtype=np.bool_)
        for token in range(self.vocab_size):
            piece = str(model.id_to_piece(token))
            if model.is_control(token) or model.is_unknown(token) or model.is_unused(token):
                self.boundary[token] = True
                self.piece_bytes.append(b"")
            elif model.is_byte(token):  # written "<0xE2>"
                self.piece_bytes.append(bytes([int(piece[3:-1], 16)]))
            else:
                self.leading_space[token] = piece.startswith(SPACE)
                # a "▁" inside a piece (only without split_by_whitespace) is a space too: one byte, not three
                self.piece_bytes.append(piece.removeprefix(SPACE).replace(SPACE, " ").encode("utf-8"))
        self._lengths = np.array([len(piece) for piece in self.piece_bytes], dtype=np.int64)


def load_tokenizer(name: str, folder: str | Path | None = None) -> Tokenizer:
    """The tokenizer called ``name``: byte260, byte256, or that of a data set or manifest entry in ``folder``.

    A folder without a manifest may hold ``tokenizers/fineweb_<vocab>_bpe.model``, as the public downloads do.
    """
    if own := byte_tokenizer(BYTE_TOKENIZERS.get(name, 0)):
        return own
    if folder is None:
        raise BytegolfError(f"the tokenizer {name!r} comes with its data: name the data folder too")
    folder = Path(folder)
    entry = tokenizer_entry(folder, name)
    if entry is None:
        return SentencePieceTokenizer(_find_model(folder, name), name)
    if entry.kind in ("byte", "pure_byte"):
        return byte_tokenizer(entry.vocab_size or 0, name) or ByteTokenizer(name)
    if entry.model_path is None:
        raise BytegolfError(
            f"the manifest of {folder} gives {name!r} the kind {entry.kind!r} and no model_path: "
            "only byte and SentencePiece tokenizers are supported"
        )
    path = path_in(folder, entry.model_path) or _find_model(folder, name)
    tokenizer = SentencePieceTokenizer(path, name)
    if entry.sha256 not in (None, tokenizer.sha256):
        raise BytegolfError(f"{path} is not the file that the manifest of {folder} was made with: run prepare again")
    return tokenizer


def _find_model(folder: Path, name: str) -> Path:
    file = f"fineweb_{name.removeprefix('sp')}_bpe.model"
    places = [folder / "tokenizers" / file, folder / file, folder.parent.parent / "tokenizers" / file]
    for place in places:
        if place.exists():
            return place
    raise BytegolfError(f"{folder} has neither a manifest.json nor {places[0]}, so no tokenizer {name!r}: add one")
