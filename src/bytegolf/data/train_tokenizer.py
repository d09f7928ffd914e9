"""The tokenizers of a data folder: taken over, or trained with SentencePiece and the published options."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytegolf.data.sources import Source
from bytegolf.data.specs import TokenizerSpec
from bytegolf.data.split import Split
from bytegolf.data.tokenizer import SentencePieceTokenizer, Tokenizer, byte_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import make_folder, sha256, write_bytes, write_json
from bytegolf.progress import ProgressBar

MAX_TRAINING_BYTES = 128_000_000
"""SentencePiece keeps its training text in memory, several times over (half a gigabyte for these); what lies beyond
this is not read."""

SENTENCE_BYTES = 4096
"""SentencePiece leaves out, silently, every "sentence" above max_sentence_length (4,192 bytes)."""

THREADS = 16
"""SentencePiece's own default, on every machine: it changes no piece, but the model records it."""

_PUBLISHED: dict[str, Any] = {
    "model_type": "bpe",
    "character_coverage": 0.999,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "nmt_nfkc",
    "add_dummy_prefix": False,
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "hard_vocab_limit": False,
    "minloglevel": 2,  # quiet; this one is no part of the model
}


def make_tokenizer(
    spec: TokenizerSpec, out: Path, source: Source, split: Split, trained: str | None, bar: ProgressBar
) -> Tokenizer:
    """Make the spec's tokenizer in ``out``: train it on the training documents, or take over an existing model.

    ``trained`` is the hash of the model that the same `prepare`, interrupted since, has left there.
    """
    folder = make_folder(out / "tokenizers")
    if bytewise := byte_tokenizer(spec.vocab_size, spec.suffix) if spec.kind == "byte" else None:
        specials = {"bos_id": bytewise.BOS, "eos_id": bytewise.EOS}
        if bytewise.OFFSET:
            specials = {"pad_id": bytewise.PAD, **specials, "unk_id": bytewise.UNK}
        layout = {"vocab_size": bytewise.vocab_size, **specials, "byte_offset": bytewise.OFFSET}
        write_json(folder / f"fineweb_{spec.name}.json", {"tokenizer_type": "pure_byte", **layout})
        return bytewise
    prefix = folder / spec.model_prefix
    if spec.reuse_model_path is not None:
        reused = SentencePieceTokenizer(spec.reuse_model_path, spec.suffix)
        if reused.vocab_size != spec.vocab_size:
            raise BytegolfError(
                f"{spec.reuse_model_path} has {reused.vocab_size} pieces, but its spec {spec.name} says "
                f"{spec.vocab_size}: correct vocab_size"
            )
        for ending in (".vocab", ".model"):
            old, new = reused.path.with_suffix(ending), Path(f"{prefix}{ending}")
            if old.exists():
                write_bytes(new, old.read_bytes())
            else:  # an earlier model's
                new.unlink(missing_ok=True)
        return SentencePieceTokenizer(new, spec.suffix)
    model = Path(f"{prefix}.model")
    if trained is not None and model.exists() and sha256(model) == trained:
        return SentencePieceTokenizer(model, spec.suffix)
    with bar.task(f"training {spec.suffix}", source.size) as advance:
        documents = enumerate(source.documents(advance))
        texts = (document.text for number, document in documents if not split.holds_out(number, document))
        return train_sentencepiece(texts, spec, prefix)


def train_sentencepiece(
    documents: Iterator[str], spec: TokenizerSpec, out_prefix: str | Path, threads: int = THREADS
) -> SentencePieceTokenizer:
    """Train the tokenizer of ``spec`` on documents; writes ``out_prefix`` + ``.model`` and ``.vocab``.

    The options are the published ones, with ``spec.trainer_overrides`` on top. For training only, texts are
    stripped, NULs become spaces, and documents beyond the trainer's sentence limit are cut at line ends or
    spaces instead of being dropped (the published export lost its long documents there). At most
    ``spec.tokenizer_train_docs`` documents and ``MAX_TRAINING_BYTES`` are used.

    A model contains the options that it was trained with, ``threads`` among them. No path is, so the same documents and
    options give the same file (and hash, by which models know their tokenizer) wherever it is written.
    """
    import sentencepiece

    options = {**_PUBLISHED, "vocab_size": spec.vocab_size, "num_threads": threads, **spec.trainer_overrides}
    limit = options.get("max_sentence_length", SENTENCE_BYTES)
    if type(limit) is not int or limit < 16:
        raise BytegolfError(f"max_sentence_length of {spec.suffix} is {limit!r}: give a number of bytes from 16")
    sentences = _Sentences(documents, spec.tokenizer_train_docs, limit)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=model, **options)
    except (RuntimeError, OSError, ValueError) as error:
        if sentences.error is not None:
            raise sentences.error from None
        if not sentences.bytes:
            raise BytegolfError(f"there is no text to train the tokenizer {spec.suffix} on: give some") from error
        raise BytegolfError(
            f"SentencePiece could not train {spec.suffix} on {sentences.bytes:,} bytes of text "
            f"({_reason(error)}): change vocab_size or trainer_overrides, or give more text"
        ) from error
    write_bytes(Path(f"{out_prefix}.model"), model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    lines = [f"{processor.id_to_piece(id_)}\t{processor.get_score(id_):g}\n" for id_ in range(processor.vocab_size())]
    write_bytes(Path(f"{out_prefix}.vocab"), "".join(lines).encode("utf-8"))
    return SentencePieceTokenizer(f"{out_prefix}.model", spec.suffix)


def _reason(error: Exception) -> str:
    """The readable end of SentencePiece's "INTERNAL: file.cc(12) [condition] message"."""
    return " ".join(str(error).rpartition("] ")[2].split()).rstrip(". ") or "no reason given"


@dataclass
class _Sentences:
    """Documents as the trainer takes them. Keeps an error of theirs, which would not survive the way through C++."""

    documents: Iterator[str]
    max_documents: int | None
    max_bytes: int
    error: BaseException | None = None
    bytes: int = 0

    def __iter__(self) -> Iterator[str]:
        try:
            for number, text in enumerate(self.documents):
                if number == self.max_documents or self.bytes >= MAX_TRAINING_BYTES:
                    return
                for sentence in self._cut(text.replace("\0", " ").strip()):
                    self.bytes += len(sentence.encode("utf-8"))
                    yield sentence
        except BaseException as error:
            self.error = error
            raise

    def _cut(self, text: str) -> Iterator[str]:
        """Pieces of at most ``max_bytes``, cut where the trainer would cut words anyway."""
        if len(text.encode("utf-8")) <= self.max_bytes:
            if text:
                yield text
            return
        characters = self.max_bytes // 4  # a character has at most four bytes
        start = 0
        while start < len(text):
            end = min(len(text), start + characters)
            if end < len(text):
                end = max(text.rfind("\n", start, end), text.rfind(" ", start, end)) + 1 or end
            if sentence := text[start:end].strip():
                yield sentence
            start = end
