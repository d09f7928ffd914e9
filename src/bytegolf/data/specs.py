"""Which tokenizers to prepare data for, by short names or a file of specs; and each of them taken over, or trained.

``{"tokenizers": [{"name": "sp_bpe_1024", "dataset_suffix": "sp1024", "vocab_size": 1024}]}``; a byte
tokenizer is ``"kind": "byte"`` or ``"dataset_suffix": "byte260"``. The short names are ``byte260``, ``byte256`` and
``sp<vocabulary size>``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bytegolf.data.sources import Source
from bytegolf.data.split import Split
from bytegolf.data.tokenizer import BYTE_TOKENIZERS, SentencePieceTokenizer, Tokenizer, TokenizerKind, byte_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, read_json, sha256, write_bytes, write_json
from bytegolf.progress import ProgressBar

# ---------------------------------------------------------------------------------------------------------------- specs


_KINDS: dict[str, TokenizerKind] = {
    "byte": "byte",
    "pure_byte": "byte",
    "sentencepiece": "sentencepiece",
    "sentencepiece_bpe": "sentencepiece",
}
_TYPES: dict[str, type] = {
    "name": str,
    "kind": str,
    "dataset_suffix": str,
    "vocab_size": int,
    "model_prefix": str,
    "filename": str,
    "reuse_model_path": str,
    "tokenizer_train_docs": int,
    "trainer_overrides": dict,
    "recommended_bigram_vocab_size": int,  # in public specs; a hint for models that are not made here
}
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # these become parts of file names


@dataclass(frozen=True)
class TokenizerSpec:
    """One tokenizer to prepare data for.

    Attributes:
        name: its name in the manifest, for instance ``sp_bpe_1024``.
        suffix: the end of its data set's name, and the name by which runs refer to it: ``sp1024``.
        kind: ``byte`` or ``sentencepiece``.
        vocab_size: pieces to train; what comes out may be fewer (hard_vocab_limit is off).
        model_prefix: the model's file name in ``tokenizers/``, without its ending.
        reuse_model_path: an existing model to use instead of training one.
        tokenizer_train_docs: train on at most so many documents.
        trainer_overrides: SentencePiece training options that replace the published ones.
    """

    name: str
    suffix: str
    kind: TokenizerKind
    vocab_size: int
    model_prefix: str
    reuse_model_path: str | None = None
    tokenizer_train_docs: int | None = None
    trainer_overrides: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The spec in the shape of the public file."""
        spec = {"name": self.name, "kind": self.kind, "dataset_suffix": self.suffix, "vocab_size": self.vocab_size}
        if self.kind == "sentencepiece":
            spec["model_prefix"] = self.model_prefix
        optional = ("reuse_model_path", "tokenizer_train_docs", "trainer_overrides")
        return spec | {key: getattr(self, key) for key in optional if getattr(self, key)}


def parse_tokenizer(name: str) -> TokenizerSpec:
    """The spec of a short name: ``byte260``, ``byte256`` or ``sp1024``, with ``-identity`` if nothing is normalised."""
    if size := BYTE_TOKENIZERS.get(name):
        return _parse({"kind": "byte", "dataset_suffix": name, "vocab_size": size}, name)
    match = re.fullmatch(r"sp([1-9][0-9]*)(-identity)?", name)
    if match is None:
        raise BytegolfError(
            f"{name!r} is no tokenizer: give byte260, byte256, sp1024 (or another vocabulary size), "
            "sp1024-identity, or a .json file of specs"
        )
    size, tail = int(match[1]), match[2] or ""
    raw = {
        "name": f"sp_bpe_{size}{tail}",
        "dataset_suffix": name,
        "vocab_size": size,
        "model_prefix": f"fineweb_{size}_bpe{tail}",
    }
    if tail:  # text stays as it is, so that piece bytes equal original bytes
        raw["trainer_overrides"] = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return _parse(raw, name)


def parse_tokenizers(names: Iterable[str | TokenizerSpec]) -> list[TokenizerSpec]:
    """The specs of short names and of ``.json`` files, in order; no two share a name, a data set or a model file."""
    specs: list[TokenizerSpec] = []
    for name in names:
        if isinstance(name, TokenizerSpec):
            specs.append(name)
        elif name.endswith(".json"):
            specs.extend(read_specs(name))
        else:
            specs.append(parse_tokenizer(name))
    unique = {
        "name": [spec.name for spec in specs],
        "dataset_suffix": [spec.suffix for spec in specs],
        "model_prefix": [spec.model_prefix for spec in specs if spec.kind == "sentencepiece"],
    }
    for what, values in unique.items():
        for value in values:
            if values.count(value) > 1:
                raise BytegolfError(f"two tokenizers have the {what} {value!r}: give each its own")
    if not specs:
        raise BytegolfError("no tokenizer was named: give byte260, sp1024 or a .json file of specs")
    return specs


def read_specs(path: str | Path) -> list[TokenizerSpec]:
    """The specs in a JSON file: ``{"tokenizers": [...]}``, ``{"tokenizer_specs": [...]}`` or the list alone.

    A relative ``reuse_model_path`` is looked for in the current folder, then beside the file.
    """
    path = Path(path)
    value = read_json(path, "tokenizer specs")
    if isinstance(value, dict):
        value = value.get("tokenizer_specs", value.get("tokenizers"))
    if not isinstance(value, list) or not value:
        raise BytegolfError(f'{path} holds no list of tokenizer specs: write {{"tokenizers": [{{…}}]}}')
    specs = [_parse(raw, f"{path}, tokenizer {number}") for number, raw in enumerate(value, start=1)]
    for number, spec in enumerate(specs):
        if spec.reuse_model_path is not None:
            model = Path(spec.reuse_model_path)
            with contextlib.suppress(RuntimeError):  # "~nobody": then a file may be called so
                model = model.expanduser()
            with disk_errors(model, "read"):
                model = model if model.exists() else path.parent / model
            specs[number] = dataclasses.replace(spec, reuse_model_path=str(model))
    return specs


def _parse(raw: Any, where: str) -> TokenizerSpec:
    if not isinstance(raw, dict):
        raise BytegolfError(f"{where}: a tokenizer spec is an object of keys, not {raw!r}")
    for key, value in raw.items():
        if key not in _TYPES:
            close = difflib.get_close_matches(key, _TYPES, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(_TYPES)}"
            raise BytegolfError(f"{where}: unknown key {key!r}: {hint}")
        if value is not None and type(value) is not _TYPES[key]:
            raise BytegolfError(f"{where}: {key} is {value!r}: give a value of type {_TYPES[key].__name__}")
    named = raw.get("kind")
    if named is None:
        named = "byte" if raw.get("dataset_suffix") in BYTE_TOKENIZERS else "sentencepiece"
    if named not in _KINDS:
        raise BytegolfError(f"{where}: kind is {named!r}: give byte or sentencepiece")
    kind = _KINDS[named]
    if kind == "sentencepiece" and raw.get("vocab_size") is None:
        raise BytegolfError(f"{where}: vocab_size is missing: say how many pieces the tokenizer has")
    size = int(raw.get("vocab_size") or BYTE_TOKENIZERS.get(raw.get("dataset_suffix", ""), 260))
    if kind == "byte" and byte_tokenizer(size) is None:
        raise BytegolfError(f"{where}: a byte tokenizer has vocab_size 260, or 256 for raw bytes, not {size}")
    suffix = raw.get("dataset_suffix") or (f"byte{size}" if kind == "byte" else f"sp{size}")
    name = raw.get("name") or (f"pure_byte_{size}" if kind == "byte" else f"sp_bpe_{size}")
    prefix = raw.get("model_prefix") or f"fineweb_{size}_bpe"
    for value in (suffix, name, prefix):
        if not _SAFE_NAME.fullmatch(value):
            raise BytegolfError(f"{where}: {value!r} becomes part of a file name: use letters, digits, '.', '_', '-'")
    if kind == "sentencepiece" and not 260 < size <= 1 << 16:
        raise BytegolfError(f"{where}: vocab_size is {size}: give 261 to 65536 (4 special tokens, 256 bytes, pieces)")
    if (docs := raw.get("tokenizer_train_docs")) is not None and docs < 1:
        raise BytegolfError(f"{where}: tokenizer_train_docs is {docs}: give 1 or more")
    overrides = raw.get("trainer_overrides") or {}
    return TokenizerSpec(name, suffix, kind, size, prefix, raw.get("reuse_model_path"), docs, overrides)


# ------------------------------------------------------------------------------------ tokenizers, taken over or trained


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
