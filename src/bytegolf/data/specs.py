"""Which tokenizers to prepare data for: short names, or a file of specs as the public exporter reads it.

``{"tokenizers": [{"name": "sp_bpe_1024", "dataset_suffix": "sp1024", "vocab_size": 1024}]}``; a byte
tokenizer is ``"kind": "byte"`` or ``"dataset_suffix": "byte260"``. The short names are ``byte260``, ``byte256`` and
``sp<vocabulary size>``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bytegolf.data.tokenizer import BYTE_TOKENIZERS, TokenizerKind, byte_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, read_json

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
