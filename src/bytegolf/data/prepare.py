"""From documents to a data folder: token shards, tokenizers, manifest (formats.md's layout), in one pass.

``datasets/fineweb10B_<suffix>/fineweb_{train,val}_%06d.bin``, ``tokenizers/``, ``manifest.json``. The manifest is
written last; until then a marker names the data sets that are unfinished, and a checkpoint says how far they are. Data
sets of other tokenizers over the same documents stay as they are.

The sources alone decide what a block is (``blocks``). Workers encode blocks (``encoding``), and this process writes
them in order (``export``): the files do not depend on the number of workers, and a checkpoint is a number of blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bytegolf.data import from_shards
from bytegolf.data.blocks import Block
from bytegolf.data.checkpoint import PROGRESS, Progress, job_of
from bytegolf.data.document import Advance, Reading
from bytegolf.data.encoding import DIGEST_BYTES, Encoded, Encoder
from bytegolf.data.export import Export
from bytegolf.data.manifest import UNFINISHED
from bytegolf.data.prepare_folder import begin, write_manifest
from bytegolf.data.prepare_tokenizer import make_tokenizer
from bytegolf.data.progress import ProgressBar
from bytegolf.data.shards import SHARD_TOKENS
from bytegolf.data.sources import Source, checked, open_source
from bytegolf.data.specs import TokenizerSpec, parse_tokenizers
from bytegolf.data.split import Split
from bytegolf.data.tokenizer import Tokenizer, TokenizerKind
from bytegolf.data.workers import cores, encode_all, encode_all_on_ray
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors

CHECKPOINT_SECONDS = 2.0
"""What a kill can cost, besides the training of a tokenizer."""

SINGLE_PROCESS: dict[TokenizerKind, int] = {"byte": 64 << 20, "sentencepiece": 4 << 20}
"""Up to so many bytes of documents this process needs less time than others need to start (half a second)."""


def prepare(
    sources: Sequence[str],
    out: Path,
    tokenizers: str | Sequence[str | TokenizerSpec] = "byte260",
    val: str | None = None,
    *,
    text_field: str = "text",
    group_field: str | None = None,
    cut: int = 0,
    workers: int = 0,
    ray: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    quiet: bool = False,
) -> dict[str, Any]:
    """Export ``sources`` (none: the default corpus) to the data folder ``out``; the manifest that was written.

    The same call again goes on where one that was killed has stopped.

    Args:
        tokenizers: short names, spec files or specs (``data.specs``); a string may name several with commas.
        val: the validation split (``data.split``); by default the sources' own (``sources``), or ``hash:0.05``.
        text_field: where JSON lines and Parquet hold the text.
        group_field: where they hold the group.
        cut: cut plain texts into documents of about so many bytes; 0 = a file is a document.
        workers: processes that encode; 0 = one for each core that this process may use, or none for what is soon done.
            The files do not depend on it.
        ray: encode on a Ray cluster instead.
        shard_tokens: tokens a shard.

    Raises:
        BytegolfError: there is no text, a split is left empty, ``out`` holds other data, or reading or writing failed.
    """
    specs = parse_tokenizers(tokenizers.split(",") if isinstance(tokenizers, str) else tokenizers)
    rule = Split.parse(val) if val else None
    shards = from_shards.named(sources)
    source = from_shards.open_shards(shards) if shards else open_source(sources, Reading(text_field, group_field, cut))
    split = rule or Split.parse(source.validation)
    for spec in specs:
        if source.once and spec.kind != "byte" and spec.reuse_model_path is None:
            raise BytegolfError(
                f"training {spec.suffix} reads the documents twice, but stdin and pipes come once: save them to a file"
            )
    kept = begin(out, source, split, specs)
    job = job_of(source, split, specs, shard_tokens)
    progress = Progress(job) if source.once else Progress.load(out, job)
    if not workers:
        alone = source.size is not None and source.size <= min(SINGLE_PROCESS[spec.kind] for spec in specs)
        workers = 1 if alone else cores()
    bar = ProgressBar(quiet)
    made = []
    for spec in specs:
        tokenizer = make_tokenizer(spec, out, source, split, progress.models.get(spec.suffix), bar)
        made.append((spec, tokenizer))
        if spec.kind != "byte":
            progress.models[spec.suffix] = tokenizer.identity()["sha256"]
            progress.save(out)
    with contextlib.ExitStack() as stack:
        exports, progress = _open(made, out, shard_tokens, progress, stack)
        check = stack.enter_context(checked(source))
        with bar.task("writing shards", source.size) as advance:
            blocks = _skip(source.blocks(), progress.blocks, advance)
            encoder = Encoder(split, [tokenizer for _, tokenizer in made])
            encoded = encode_all_on_ray(encoder, blocks) if ray else encode_all(encoder, blocks, workers)
            stack.enter_context(contextlib.closing(encoded))
            _write(encoded, split, exports, progress, None if source.once else out, advance)
            _check(source, split, exports[0], progress)
            check()
        for export in exports:
            export.close()
        manifest = write_manifest(out, source, split, kept, exports, progress.digest)
        for export in exports:
            export.done()
    for name in (UNFINISHED, PROGRESS):
        with disk_errors(out / name, "remove"):
            (out / name).unlink(missing_ok=True)
    return manifest


def _open(
    made: Sequence[tuple[TokenizerSpec, Tokenizer]],
    out: Path,
    shard_tokens: int,
    progress: Progress,
    stack: contextlib.ExitStack,
) -> tuple[list[Export], Progress]:
    """The exports where ``progress`` left them; new ones, and no progress but the models', if that cannot be."""

    def new() -> list[Export]:
        return [Export(spec, tokenizer, out, shard_tokens) for spec, tokenizer in made]

    if progress.blocks:
        exports = new()
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if all(export.resume(saved) for export, saved in zip(exports, progress.exports, strict=True)):
                return [stack.enter_context(export) for export in exports], progress
        for export in exports:
            export.__exit__()
    return [stack.enter_context(export) for export in new()], Progress(progress.job, progress.models)


def _skip(blocks: Iterator[Block], count: int, advance: Advance) -> Iterator[Block]:
    for number, block in enumerate(blocks):
        if number < count:
            advance(block.size)
        else:
            yield block


def _write(
    encoded: Iterable[Encoded],
    split: Split,
    exports: Sequence[Export],
    progress: Progress,
    out: Path | None,
    advance: Advance,
) -> None:
    """Write every block to every export; with ``out``, leave checkpoints there."""
    saved = time.monotonic()
    for block in encoded:
        held_out = block.held_out
        if held_out is None:
            held_out = min(max(0, split.first - sum(exports[0].documents)), block.documents)
        for export, tokens in zip(exports, block.tokens, strict=True):
            export.add(tokens, block.original_bytes, held_out)
        progress.digest = _chained(progress.digest, block.digests)
        progress.groups = sorted({*progress.groups, *block.groups})
        progress.blocks += 1
        advance(block.size)
        if out is not None and time.monotonic() - saved >= CHECKPOINT_SECONDS:
            progress.exports = [export.checkpoint() for export in exports]
            progress.save(out)
            saved = time.monotonic()


def _chained(digest: str, digests: bytes) -> str:
    chain = bytes.fromhex(digest)
    for start in range(0, len(digests), DIGEST_BYTES):
        chain = hashlib.sha256(chain + digests[start : start + DIGEST_BYTES]).digest()
    return chain.hex()


def _check(source: Source, split: Split, export: Export, progress: Progress) -> None:
    """Raise unless the documents are as many as they should be, on both sides."""
    training, validation = export.documents
    if not training + validation:
        raise BytegolfError("the sources hold no text at all: give documents with text in them")
    if source.count not in (None, training + validation):
        raise BytegolfError(
            f"{source.files[0]} holds {training + validation} documents with text, but its sidecar says "
            f"{source.count}: get both again"
        )
    split.check(training, validation, split.groups - set(progress.groups))
    if source.digest not in (None, progress.digest) or any(
        size not in (None, found) for size, found in zip(source.sizes, export.original_bytes, strict=True)
    ):
        raise BytegolfError(
            f"the tokens in {Path(source.files[0]).parent} do not give back the documents that they were made of (a ▁ "
            "in a text comes back as a space): prepare from the documents"
        )
