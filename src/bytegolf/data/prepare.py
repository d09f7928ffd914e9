"""From documents to a data folder: token shards, tokenizers, manifest (the layout of docs/formats), in one pass.

``datasets/fineweb10B_<suffix>/fineweb_{train,val}_%06d.bin``, ``tokenizers/``, ``manifest.json``. The manifest is
written last; until then a marker names the data sets that are unfinished, and a checkpoint says how far they are. Data
sets of other tokenizers over the same documents stay as they are.

The sources alone decide what a block is (``blocks``). Workers encode blocks (``encoding``), and this process writes
them in order (``dataset_writer``): the files do not depend on the number of workers, and a checkpoint is a number of
blocks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from bytegolf.data import blocks, from_shards
from bytegolf.data.dataset import (
    DATASET_PREFIX,
    DIGEST,
    LOCK,
    MANIFEST,
    SHARD_TOKENS,
    UNFINISHED,
    mark_unfinished,
    read_manifest,
    tokenizer_of,
    unfinished,
)
from bytegolf.data.dataset_writer import DatasetWriter, WriterState
from bytegolf.data.document import Advance, Reading
from bytegolf.data.encoding import DIGEST_BYTES, Encoded, Encoder, cores, encode_all, encode_all_on_ray
from bytegolf.data.sources import Source, checked, open_source
from bytegolf.data.specs import TokenizerSpec, make_tokenizer, parse_tokenizers
from bytegolf.data.split import Split
from bytegolf.data.tokenizer import Tokenizer, TokenizerKind
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, matching, read_json, write_json
from bytegolf.folders import LeftOut, Tally, in_words
from bytegolf.progress import ProgressBar

# ----------------------------------------------------------------------------------------------------- how far a run is


CHECKPOINT = "prepare.progress.json"


class Job(TypedDict):
    """All that the files of an export depend on: a checkpoint is for the same job only."""

    version: int
    corpus: dict[str, Any]
    """``Source.description``"""
    files: list[tuple[str, int, int]]
    """name, size and time of change in ns"""
    split: str
    tokenizers: list[dict[str, Any]]
    """as in a manifest"""
    shard_tokens: int
    block_bytes: int


def job_of(source: Source, split: Split, specs: Sequence[TokenizerSpec], shard_tokens: int) -> Job:
    """The job of a `prepare`, with its files as they are now."""
    status = {file: Path(file).stat() for file in source.files if Path(file).is_file()}
    return {
        "version": 2,
        "corpus": source.description,
        "files": [(file, its.st_size, its.st_mtime_ns) for file, its in status.items()],
        "split": str(split),
        "tokenizers": [spec.to_json() for spec in specs],
        "shard_tokens": shard_tokens,
        "block_bytes": blocks.BLOCK_BYTES,
    }


@dataclasses.dataclass
class Checkpoint:
    """What is finished of a job."""

    job: Job
    models: dict[str, str] = dataclasses.field(default_factory=dict)
    """the hashes of the SentencePiece models that are trained, by the suffix of their data sets"""
    blocks: int = 0
    """how many blocks are written"""
    digest: str = bytes(32).hex()
    """the hash of their documents (`dataset.DIGEST`)"""
    groups: list[str] = dataclasses.field(default_factory=list)
    """which of the groups that the split names were met"""
    left_out: list[LeftOut] = dataclasses.field(default_factory=list)
    """their documents without text"""
    writers: list[WriterState] = dataclasses.field(default_factory=list)
    """one per tokenizer"""

    def save(self, out: Path) -> None:
        """Write it to the folder ``out``."""
        write_json(out / CHECKPOINT, dataclasses.asdict(self))

    @staticmethod
    def load(out: Path, job: Job) -> Checkpoint:
        """What ``out`` holds of ``job``; nothing finished where it holds none of it, or what cannot be read."""
        with contextlib.suppress(BytegolfError, TypeError, KeyError):
            if (out / CHECKPOINT).exists():
                value = read_json(out / CHECKPOINT, "checkpoint")
                writers = [WriterState(**one) for one in value["writers"]]
                left_out = [LeftOut(**one) for one in value["left_out"]]
                found = Checkpoint(**{**value, "writers": writers, "left_out": left_out})
                if found.job == json.loads(json.dumps(job)):
                    return found
        return Checkpoint(job)


# -------------------------------------------------------------------------------------------------------------- the job


CHECKPOINT_SECONDS = 2.0
"""What a kill can cost, besides the training of a tokenizer."""

SINGLE_PROCESS: dict[TokenizerKind, int] = {"byte": 64 << 20, "sentencepiece": 4 << 20}
"""Up to so many bytes of documents this process needs less time than others need to start (half a second)."""


def prepare(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
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
    """Export ``sources`` (one or several; [] = the default corpus) to the folder ``out``; the manifest written there.

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
        shard_tokens: tokens per shard.

    Raises:
        BytegolfError: there is no text, a split is left empty, ``out`` holds other data, or reading or writing failed.
    """
    named = [sources] if isinstance(sources, str | os.PathLike) else sources
    names, folder = [os.fspath(source) for source in named], Path(out)
    bar = ProgressBar(quiet)
    specs = parse_tokenizers(tokenizers.split(",") if isinstance(tokenizers, str) else tokenizers)
    rule = Split.parse(val) if val else None
    shards = from_shards.named(names)
    reading = Reading(text_field, group_field, cut)
    source = from_shards.open_shards(shards) if shards else open_source(names, reading, bar.warn)
    split = rule or Split.parse(source.validation)
    for spec in specs:
        if source.once and spec.kind != "byte" and spec.reuse_model_path is None:
            raise BytegolfError(
                f"training {spec.suffix} reads the documents twice, but stdin and pipes come once: save them to a file"
            )
    with _empty_again(folder):
        return _export(folder, source, split, specs, shard_tokens, workers, ray, bar)


@contextlib.contextmanager
def _empty_again(folder: Path) -> Iterator[None]:
    """If the work in a folder that was empty fails before a shard or model is whole, leave nothing in it."""
    fresh = not folder.is_dir() or not {path.name for path in folder.iterdir()} - {LOCK}
    try:
        yield
    except BaseException:
        kept = (CHECKPOINT, "datasets/*/*.bin", "tokenizers/*.model")
        if fresh and not any(found for name in kept for found in folder.glob(name)):
            for name in ("datasets", "tokenizers"):
                shutil.rmtree(folder / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                (folder / UNFINISHED).unlink(missing_ok=True)
                folder.rmdir()
        raise


def _export(
    folder: Path,
    source: Source,
    split: Split,
    specs: list[TokenizerSpec],
    shard_tokens: int,
    workers: int,
    ray: bool,
    bar: ProgressBar,
) -> dict[str, Any]:
    """Make tokenizers, shards and manifest, or go on where an earlier process was stopped; the manifest."""
    kept = _begin(folder, source, split, specs)
    job = job_of(source, split, specs, shard_tokens)
    checkpoint = Checkpoint(job) if source.once else Checkpoint.load(folder, job)
    if not workers:
        alone = source.size is not None and source.size <= min(SINGLE_PROCESS[spec.kind] for spec in specs)
        workers = 1 if alone else cores()
        if source.left_out and not alone:  # what comes of it is told at the end, and that may be hours away
            bar.say(in_words(source.left_out))
    made = []
    for spec in specs:
        tokenizer = make_tokenizer(spec, folder, source, split, checkpoint.models.get(spec.suffix), bar)
        made.append((spec, tokenizer))
        if spec.kind != "byte":
            checkpoint.models[spec.suffix] = str(tokenizer.sha256)
            checkpoint.save(folder)
    with contextlib.ExitStack() as stack:
        writers, checkpoint = _open(made, folder, shard_tokens, checkpoint, stack)
        check = stack.enter_context(checked(source))
        with bar.task("writing shards", source.size) as advance:
            blocks = source.blocks()
            for done in itertools.islice(blocks, checkpoint.blocks):
                advance(done.size)
            encoder = Encoder(split, [tokenizer for _, tokenizer in made])
            encoded = encode_all_on_ray(encoder, blocks) if ray else encode_all(encoder, blocks, workers)
            stack.enter_context(contextlib.closing(encoded))
            _write(encoded, split, writers, checkpoint, None if source.once else folder, advance)
            _check(source, split, writers[0], checkpoint)
            check()
        for writer in writers:
            writer.close()
        manifest = _write_manifest(folder, source, split, kept, writers, checkpoint)
        for writer in writers:
            writer.keep = False
    for name in (UNFINISHED, CHECKPOINT):
        with disk_errors(folder / name, "remove"):
            (folder / name).unlink(missing_ok=True)
    return manifest


def _open(
    made: Sequence[tuple[TokenizerSpec, Tokenizer]],
    out: Path,
    shard_tokens: int,
    checkpoint: Checkpoint,
    stack: contextlib.ExitStack,
) -> tuple[list[DatasetWriter], Checkpoint]:
    """The writers as ``checkpoint`` has them; new ones, and nothing finished but the models, if that cannot be."""

    def new() -> list[DatasetWriter]:
        return [DatasetWriter(spec, tokenizer, out, shard_tokens) for spec, tokenizer in made]

    if checkpoint.blocks:
        writers = new()
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if all(writer.resume(saved) for writer, saved in zip(writers, checkpoint.writers, strict=True)):
                return [stack.enter_context(writer) for writer in writers], checkpoint
        for writer in writers:
            writer.__exit__()
    return [stack.enter_context(writer) for writer in new()], Checkpoint(checkpoint.job, checkpoint.models)


def _write(
    encoded: Iterable[Encoded],
    split: Split,
    writers: Sequence[DatasetWriter],
    checkpoint: Checkpoint,
    out: Path | None,
    advance: Advance,
) -> None:
    """Write every block to every data set; with ``out``, leave checkpoints there."""
    saved = time.monotonic()
    for block in encoded:
        held_out = block.held_out
        if held_out is None:
            held_out = min(max(0, split.first - sum(writers[0].documents)), len(block.original_bytes))
        for writer, tokens in zip(writers, block.tokens, strict=True):
            writer.add(tokens, block.original_bytes, held_out)
        chain = bytes.fromhex(checkpoint.digest)
        for start in range(0, len(block.digests), DIGEST_BYTES):
            chain = hashlib.sha256(chain + block.digests[start : start + DIGEST_BYTES]).digest()
        checkpoint.digest = chain.hex()
        checkpoint.groups = sorted({*checkpoint.groups, *block.groups})
        checkpoint.left_out = Tally([*checkpoint.left_out, *block.left_out]).all()
        checkpoint.blocks += 1
        advance(block.size)
        if out is not None and time.monotonic() - saved >= CHECKPOINT_SECONDS:
            checkpoint.writers = [writer.checkpoint() for writer in writers]
            checkpoint.save(out)
            saved = time.monotonic()


def _check(source: Source, split: Split, writer: DatasetWriter, checkpoint: Checkpoint) -> None:
    """Raise unless the documents are as many as they should be, on both sides."""
    training, validation = writer.documents
    if not training + validation:
        said = in_words([*source.left_out, *checkpoint.left_out])
        raise BytegolfError(
            f"the sources hold no text at all{f' ({said})' if said else ''}: give documents with text in them"
        )
    if source.count not in (None, training + validation):
        raise BytegolfError(
            f"{source.files[0]} holds {training + validation} documents with text, but its sidecar says "
            f"{source.count}: get both again"
        )
    split.check(training, validation, split.groups - set(checkpoint.groups))
    if source.digest not in (None, checkpoint.digest) or any(
        size not in (None, found) for size, found in zip(source.sizes, writer.original_bytes, strict=True)
    ):
        raise BytegolfError(
            f"the tokens in {Path(source.files[0]).parent} do not give back the documents that they were made of (a ▁ "
            "in a text comes back as a space): prepare from the documents"
        )


# ---------------------------------------------------------------------------------------------- the folder


def _begin(out: Path, source: Source, split: Split, specs: list[TokenizerSpec]) -> dict[str, Any]:
    """Mark the data sets of ``specs`` in ``out`` as unfinished; raise rather than touch what is not theirs.

    Returns what stays of the folder's manifest: other tokenizers over the same documents.
    """
    make_folder(out)
    names, half = [DATASET_PREFIX + spec.suffix for spec in specs], unfinished(out)
    old: dict[str, Any] = {}
    if (out / MANIFEST).exists():
        old = read_manifest(out)
        published = "corpus" not in old  # fetched: its statistics are compared in the end
        if not published and (old["corpus"], old.get("split")) != (source.description, str(split)):
            raise BytegolfError(f"{out} holds data from other documents or with another split: choose another --out")
        remade = {spec.name for spec in specs}
        datasets = [d for d in old["datasets"] if tokenizer_of(d) not in remade and d.get("name") not in half]
        stay = {tokenizer_of(entry) for entry in datasets}
        tokenizers = [entry for entry in old["tokenizers"] if entry.get("name") in stay]
        old |= {"datasets": datasets, "tokenizers": tokenizers}
        files = {entry.get("name") for entry in datasets} | {entry.get("model_path") for entry in tokenizers}
        for spec, name in zip(specs, names, strict=True):
            if taken := files & {name, f"tokenizers/{spec.model_prefix}.model"}:
                raise BytegolfError(
                    f"{out} holds {', '.join(map(str, taken))} of another tokenizer than {spec.name}: give the spec "
                    "its own dataset_suffix and model_prefix, or choose another --out"
                )
    elif not half and (foreign := [name for name in names if matching(out / "datasets" / name, "*.bin")]):
        raise BytegolfError(
            f"{out} has shards but no {MANIFEST} ({', '.join(foreign)}), so they may be another's: delete them, or "
            "choose another --out"
        )
    mark_unfinished(out, [*names, *half])
    return old


def _write_manifest(
    out: Path, source: Source, split: Split, kept: dict[str, Any], made: Sequence[DatasetWriter], done: Checkpoint
) -> dict[str, Any]:
    """Write the manifest of ``out``, and return it; raise if what stays there came from other documents."""
    training, validation = made[0].documents
    datasets, tokenizers = kept.get("datasets", []), kept.get("tokenizers", [])
    counts = {"docs_val": validation, "docs_total": training + validation}
    stats = [entry.get("stats") or {} for entry in datasets]
    same = all(one.get(key, count) == count for one in stats for key, count in counts.items())
    if stats and not (same and kept.get(DIGEST, done.digest) == done.digest):
        raise BytegolfError(f"the documents are not those that {out} was made from: choose another --out")
    manifest = {
        **kept,
        "version": 1,
        "corpus": source.description,
        "split": str(split),
        "docs_total": training + validation,
        DIGEST: done.digest,
        "left_out": [dataclasses.asdict(one) for one in Tally([*source.left_out, *done.left_out]).all()],
        "datasets": datasets + [dataclasses.asdict(writer.dataset_entry()) for writer in made],
        "tokenizers": tokenizers + [writer.tokenizer_entry().to_json() for writer in made],
    }
    manifest.pop("documents_sha256", None)  # what earlier versions wrote instead
    write_json(out / MANIFEST, manifest)
    return manifest
