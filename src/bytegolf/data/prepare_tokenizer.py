"""The tokenizer of a spec, made where `prepare` wants it."""

from __future__ import annotations

from pathlib import Path

from bytegolf.data.progress import ProgressBar
from bytegolf.data.sources import Source
from bytegolf.data.specs import TokenizerSpec
from bytegolf.data.split import Split
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from bytegolf.data.train_tokenizer import train_sentencepiece
from bytegolf.errors import BytegolfError
from bytegolf.files import make_folder, sha256, write_bytes, write_json


def make_tokenizer(
    spec: TokenizerSpec, out: Path, source: Source, split: Split, trained: str | None, bar: ProgressBar
) -> Tokenizer:
    """Make the spec's tokenizer in ``out``: train it on the training documents, or take over an existing model.

    ``trained`` is the hash of the model that the same `prepare`, interrupted since, has left there.
    """
    folder = make_folder(out / "tokenizers")
    if spec.kind == "byte":
        tokenizer = ByteTokenizer(spec.suffix)
        layout = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_offset": ByteTokenizer.OFFSET}
        write_json(folder / f"fineweb_{spec.name}.json", {"tokenizer_type": "pure_byte", "vocab_size": 260, **layout})
        return tokenizer
    prefix = folder / spec.model_prefix
    if spec.reuse_model_path is not None:
        reused = SentencePieceTokenizer(spec.reuse_model_path, spec.suffix)
        if reused.vocab_size != spec.vocab_size:
            raise BytegolfError(
                f"{spec.reuse_model_path} has {reused.vocab_size} pieces, but its spec {spec.name} says "
                f"{spec.vocab_size}: correct vocab_size"
            )
        for ending in (".vocab", ".model"):
            old, new = reused.path.with_suffix(ending), prefix.with_name(prefix.name + ending)
            if old.exists():
                write_bytes(new, old.read_bytes())
            else:  # an earlier model's
                new.unlink(missing_ok=True)
        return SentencePieceTokenizer(new, spec.suffix)
    model = prefix.with_name(prefix.name + ".model")
    if trained is not None and model.exists() and sha256(model) == trained:
        return SentencePieceTokenizer(model, spec.suffix)
    with bar.task(f"training {spec.suffix}", source.size) as advance:
        texts = (
            document.text
            for number, document in enumerate(source.documents(advance))
            if not split.holds_out(number, document)
        )
        return train_sentencepiece(texts, spec, prefix)
