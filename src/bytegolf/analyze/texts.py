"""What an analysis reads: the texts as tokens, the tokenizer to compare with, and a reader that tells how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bytegolf.analyze.reading import Reading, encode, read
from bytegolf.analyze.render import STANDARD_TEXT
from bytegolf.analyze.segment import Segmentation, segment
from bytegolf.artifact.loading import LoadedModel
from bytegolf.data.manifest import MANIFEST, data_summary
from bytegolf.data.shards import open_split
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors
from bytegolf.progress import Reporter


def reference_tokenizer(edges: str, folder: Path, tokenizers: list[Tokenizer]) -> SentencePieceTokenizer | None:
    """The tokenizer whose tokens' starts boundaries are compared with."""
    if edges and Path(edges).is_file():
        return SentencePieceTokenizer(Path(edges))
    names = [edges] if edges else list(data_summary(folder)) if (folder / MANIFEST).exists() else []
    for name in names:
        found = load_tokenizer(name, folder)
        if isinstance(found, SentencePieceTokenizer):
            return found
    if edges:
        raise BytegolfError(
            f"the tokenizer {edges} is made of bytes, so every byte is an edge: name a SentencePiece one"
        )
    return next((one for one in tokenizers if isinstance(one, SentencePieceTokenizer)), None)


def text_tokens(
    opened: LoadedModel, data: Path | None, files: Sequence[Path], limit: int
) -> Iterator[NDArray[np.int64]]:
    """The tokens of each text, a BOS first."""
    tokenizer = opened.tokenizer
    for file in files:
        with disk_errors(file, "read"):
            content = file.read_bytes()
        content = content[:limit] if limit else content
        if limit and not isinstance(tokenizer, ByteTokenizer):  # the cut may have gone through a character
            content = content.decode("utf-8", "ignore").encode() if _cut(content) else content
        if not content:
            raise BytegolfError(f"{file} is empty: give some text")
        yield np.concatenate(([tokenizer.BOS], encode(tokenizer, content, str(file)))).astype(np.int64)
    if not files:
        stream = open_split(data or Path(opened.config.data.path), tokenizer.name, "val", tokenizer.vocab_size)
        yield stream.slice(0, min(limit or len(stream), len(stream))).astype(np.int64)


def _cut(content: bytes) -> bool:
    """Whether nothing is wrong with the UTF-8 of ``content`` but its end."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


@dataclass(frozen=True)
class Teller:
    """Reads with a model, and tells how far it is."""

    name: str
    """the model's"""
    threshold: float
    reporter: Reporter

    def read(self, opened: LoadedModel, ids: NDArray[np.int64], what: str) -> Reading:
        """The tokens as the opened weights read them."""

        def show(share: float) -> None:
            self.reporter.progress(f"{self.name}: {what} · {share:.0%}")

        length = opened.config.train.seq_len
        return read(opened.model, opened.tokenizer, ids, length, show, threshold=self.threshold)

    def standard(self, opened: LoadedModel) -> Segmentation:
        """The standard text in chunks."""
        length, threshold = opened.config.train.seq_len, self.threshold
        return segment(opened.model, opened.tokenizer, STANDARD_TEXT, length, threshold=threshold)
