"""`bytegolf check`: whether a file is what was written, and what lies in a folder (a run, data, a submission, a study).

What needs torch is imported where it is needed: shards, results and manifests are checked without.
"""

from __future__ import annotations

import ast
import functools
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec

from bytegolf.artifact import checkpoint_folder, container, payload
from bytegolf.artifact.container import read as read_container
from bytegolf.artifact.run_folder import ARTIFACT_FILE, RunFolder
from bytegolf.config import Config
from bytegolf.data.dataset import (
    FETCHING,
    MANIFEST,
    UNFINISHED,
    DataIdentity,
    path_in,
    read_manifest,
    read_shard,
    unfinished,
)
from bytegolf.data.dataset_writer import SIDECAR
from bytegolf.errors import BytegolfError, counted
from bytegolf.files import disk_errors, lines_of, matching, read_json, read_json_object, sha256
from bytegolf.folders import LeftOut, Tally, check_file, ending_of, in_words, walk
from bytegolf.tools.bundle import script
from bytegolf.tools.study.results import CHECKSUM, row_of
from bytegolf.tools.submission import papers as submission
from bytegolf.training.metrics_file import read_metrics

# ------------------------------------------------------------------------------------------------------------- verdicts


Finding = Literal["whole", "no checksum", "unfinished", "damaged"]
"""``no checksum``: by its structure alone it could be whole, and nothing was recorded to tell for sure."""


@dataclass(frozen=True)
class Verdict:
    """What came of looking at a file or a checkpoint."""

    path: Path
    kind: str
    finding: Finding
    evidence: str
    """what was compared, or what is wrong and what to do about it"""


@dataclass(frozen=True)
class CheckResult:
    """What came of looking at all of them."""

    damaged: int
    """how many are"""
    checked: int
    verdicts: list[Verdict]
    left_out: list[LeftOut]
    """what lies in the folders and is nothing that bytegolf wrote, or no file"""

    @staticmethod
    def of(verdicts: list[Verdict], left_out: list[LeftOut]) -> CheckResult:
        """The result that ``verdicts`` make."""
        return CheckResult(sum(one.finding == "damaged" for one in verdicts), len(verdicts), verdicts, left_out)


# ------------------------------------------------------------------------------------------------------------- one file


RESULTS = "results.jsonl"
ARTIFACT, COMPRESSED = ".bgolf", ".bgz"
"""By which a file is known whose first bytes are damaged."""

Found = tuple[Finding, str]
"""What looking at a file came to, and the evidence."""
P = ParamSpec("P")
Look = Callable[Concatenate[Path, P], Found]


def judged(kind: str) -> Callable[[Look[P]], Callable[Concatenate[Path, P], Verdict]]:
    """Have a function that says what it found at a path give a verdict; if it raises BytegolfError, on damage."""

    def decorate(look: Look[P]) -> Callable[Concatenate[Path, P], Verdict]:
        @functools.wraps(look)
        def judge(path: Path, /, *args: P.args, **options: P.kwargs) -> Verdict:
            try:
                if path.exists():  # what is missing is each reader's to say
                    check_file(path, "put back what bytegolf wrote")
                return Verdict(path, kind, *look(path, *args, **options))
            except BytegolfError as error:
                return Verdict(path, kind, "damaged", str(error))

        return judge

    return decorate


@judged("artifact")
def artifact(path: Path) -> Found:
    """An artifact, by the hash at its end, and every tensor in it."""
    found = payload.verify(path)
    return "whole", f"its hash matches; {counted(len(found.entries), 'tensor')}, SHA-256 {found.box.sha256[:16]}…"


@judged("weights")
def weights(path: Path) -> Found:
    """Weights that are not quantised: a file that holds no hash of its own."""
    from bytegolf.artifact.weights_file import read_weights

    found = read_weights(path)
    return "no checksum", f"{counted(len(found.state), 'tensor')} of {found.config.name}; SHA-256 {found.sha256[:16]}…"


@judged("compressed file")
def compressed_file(path: Path) -> Found:
    """What `compress` wrote, by the checksums of its blocks; the model that it needs is not asked.

    A file of a single block, which needs none, has a checksum of the original only: it is decompressed.
    """
    from bytegolf.infer import format as compressed

    with disk_errors(path, "read"), path.open("rb") as file:
        header = compressed.Header.read(file, str(path))
        if header.single:
            from bytegolf.infer.codec import Codec

            file.seek(0)
            size = Codec().decompress(file, io.BytesIO(), str(path))
            return "whole", f"decompressed, its checksum matches; {counted(size, 'byte')}"
        size = blocks = 0
        crc = zlib.crc32(header.pack())
        stored = True
        while isinstance(part := compressed.read_part(file, header, str(path)), compressed.Block):
            size, blocks, stored = size + part.size, blocks + 1, stored and not part.streams
            crc = zlib.crc32(part.payload, crc)
    if header.size not in (None, size):
        raise compressed.damaged(str(path), f"its blocks hold {counted(size, 'byte')}, and it declares another number")
    if stored and crc != part.crc:  # of blocks that are stored, the original's checksum is that of their payloads
        raise compressed.damaged(str(path), "a checksum does not match")
    of = f", of artifact {header.model.artifact.hex()}…" if header.model else ""
    return "whole", f"{counted(blocks, 'block')}, whose checksums match; {counted(size, 'byte')}{of}"


@judged("shard")
def shard(path: Path, known: str | None = None, ids: int | None = None, remedy: str = "make it again") -> Found:
    """A token shard: its hash, where ``known``, its header, and that its tokens are below ``ids``, where given."""
    tokens = len(read_shard(path, ids))
    if known is None:
        return "no checksum", f"{counted(tokens, 'token')}, header and length agree"
    return hashed(path, known, remedy, counted(tokens, "token"))


def hashed(path: Path, known: str, remedy: str, more: str = "") -> Found:
    """Compare the hash of a file with the ``known`` one; ``remedy`` says what to do if it is another."""
    if (found := sha256(path)) != known:
        raise BytegolfError(f"{path} has the SHA-256 {found[:16]}… and not {known[:16]}…: {remedy}")
    return "whole", f"SHA-256 {found[:16]}… as recorded" + (f"; {more}" if more else "")


@judged("checkpoint")
def checkpoint(path: Path) -> Found:
    """A checkpoint's folder: every file against its checksums, and each can be read."""
    hashes, count = checkpoint_folder.verify(path)
    if hashes is None:
        return "no checksum", f"{counted(count, 'tensor')} can be read"
    if missing := [name for name in hashes if not (path / name).is_file()]:
        raise BytegolfError(f"{path} lacks {missing[0]}: delete the folder to go on from the one before")
    return "whole", f"{counted(len(hashes), 'checksum')} match; {counted(count, 'tensor')}"


@judged("study results")
def results(path: Path) -> Found:
    """A study's rows, each by its own checksum."""
    with disk_errors(path, "read the results"):
        lines = lines_of(path.read_text(encoding="utf-8", errors="replace"))
    without = 0
    for number, line in enumerate(lines, start=1):
        if row_of(line, f"{path}, line {number},") is None:
            raise BytegolfError(
                f"{path}, line {number}, is no row (cut short or damaged): delete it, and `bytegolf study run` does "
                "that run again"
            )
        without += f'"{CHECKSUM}"' not in line
    if without:
        return "no checksum", f"{without} of {counted(len(lines), 'row')} have none; all can be read"
    return "whole", f"{counted(len(lines), 'row')}, each with its checksum"


def plain(path: Path, kind: str, read: Callable[[Path], Any]) -> Verdict:
    """A file without a checksum that ``read`` understands or refuses."""

    @judged(kind)
    def look(path: Path) -> Found:
        with disk_errors(path, "read"):
            read(path)
            return "no checksum", f"it can be read; {counted(path.stat().st_size, 'byte')}"

    return look(path)


def any_file(path: Path) -> Verdict | None:
    """The verdict on a file by how it begins, or by its name; None if it is nothing that bytegolf writes."""
    check_file(path, "name files")
    with disk_errors(path, "read"), path.open("rb") as file:
        start = file.read(len(container.MAGIC))
    if start == container.MAGIC or path.suffix == ARTIFACT:
        return artifact(path)
    if path.suffix == ".safetensors":
        return weights(path)
    if path.suffix == ".bin":
        return shard(path)
    if path.name == RESULTS:
        return results(path)
    if not start.startswith(b"BGOLF") and path.suffix != COMPRESSED:
        return None
    from bytegolf.infer import format as compressed

    return compressed_file(path) if start == compressed.MAGIC or path.suffix == COMPRESSED else None


# -------------------------------------------------------------------------------------------------------------- folders


_FETCHED = "run the same `bytegolf fetch --verify` again"
_PREPARED = "run the same `bytegolf prepare` again"


def check(path: Path, tally: Tally | None = None) -> list[Verdict]:
    """The verdicts on whatever ``path`` is; what was passed over in folders is counted in ``tally``.

    Raises:
        BytegolfError: there is nothing in it that bytegolf wrote, or it may not be read.
    """
    with disk_errors(path, "read"):
        there, is_folder = path.exists(), path.is_dir()
    if not there:
        raise BytegolfError(f"there is no file or folder {path}: name what is to be checked")
    inside = Tally()
    found = list(_folder(path, inside)) if is_folder else [one for one in [any_file(path)] if one]
    if tally is not None:
        tally.include(inside.all())
    if not found:
        said = in_words(inside.all())
        raise BytegolfError(
            f"{path} is nothing that bytegolf wrote{f' ({said})' if said else ''}: name a run, a data folder, a "
            "checkpoint, a shard, an artifact, a compressed file, a study's results or a submission"
        )
    return found


def _folder(path: Path, tally: Tally) -> Iterator[Verdict]:
    """The verdicts on all that lies in a folder, however deep; each real folder once."""
    for folder, files in walk(path, tally, whole=lambda inner: _reader(inner) is not None):
        reader = _reader(folder)
        if reader is not None:
            yield from reader(folder)
        for file in files:
            if (verdict := any_file(file)) is not None:
                yield verdict
            else:
                tally.add("ending", str(file), ending_of(file.name))


def _reader(path: Path) -> Callable[[Path], Iterable[Verdict]] | None:
    """What reads a folder of a known kind as a whole; None for any other folder."""
    if (path / MANIFEST).exists() or unfinished(path) or unfinished(path, FETCHING):
        return _data
    return reader(path)


# ---------------------------------------------------------------------------------------------- data


def _data(path: Path) -> Iterator[Verdict]:
    half = set()
    for marker, verb in ((UNFINISHED, "prepare"), (FETCHING, "fetch")):
        for name in unfinished(path, marker):
            half.add(name)
            said = f"a `bytegolf {verb}` has begun {name} and not finished: run the same again"
            yield Verdict(path / marker, "data set", "unfinished", said)
    if not (path / MANIFEST).exists():
        return
    yield plain(path / MANIFEST, "manifest", lambda file: read_manifest(file.parent))
    try:
        manifest = read_manifest(path)
    except BytegolfError:  # which the verdict says
        return
    for dataset in manifest["datasets"]:
        if dataset.get("name") not in half:
            yield from _dataset(path, dataset)
    for tokenizer in manifest["tokenizers"]:
        known, file = tokenizer.get("sha256"), path_in(path, tokenizer.get("model_path"))
        if file is not None:
            yield _recorded_tokenizer(file, known, _remedy(tokenizer))
        elif (file := path_in(path, tokenizer.get("path"))) is not None and file.exists():
            yield plain(file, "tokenizer", lambda at: read_json(at, "tokenizer"))


def _remedy(entry_of: dict[str, Any]) -> str:
    return _FETCHED if "published_stats" in entry_of else _PREPARED


def _dataset(path: Path, dataset: dict[str, Any]) -> Iterator[Verdict]:
    """The shards of a data set and what lies beside them; those that the manifest names must be there."""
    folder, known = path_in(path, dataset.get("path")), dataset.get("sha256")
    if folder is None:
        return
    hashes = known if isinstance(known, dict) else {}
    size = dataset.get("vocab_size")
    there = {file.name for file in matching(folder, "fineweb_*.bin")} | hashes.keys()
    for name in sorted(there):
        hash_of = hashes.get(name)
        known_hash = hash_of if isinstance(hash_of, str) else None
        yield shard(folder / name, known_hash, size if isinstance(size, int) else None, _remedy(dataset))
    counts = dataset.get("stats") or {}
    for split in ("train", "val"):
        wanted, found = counts.get(f"files_{split}"), len(matching(folder, f"fineweb_{split}_*.bin"))
        if wanted is not None and wanted != found:
            said = f"the manifest counts {wanted} shards of {split}, and {found} are there: {_remedy(dataset)}"
            yield Verdict(folder, "data set", "damaged", said)
    if (folder / SIDECAR).exists():
        yield plain(folder / SIDECAR, "documents", _load_array)


def _load_array(file: Path) -> None:
    try:
        import numpy as np

        np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BytegolfError(f"{file} is no array ({' '.join(str(error).split())[:120]}): {_PREPARED}") from error


@judged("tokenizer")
def _recorded_tokenizer(file: Path, known: Any, remedy: str) -> Found:
    """A SentencePiece model of a data folder, whose manifest may know its hash."""
    if isinstance(known, str):
        return hashed(file, known, remedy)
    with disk_errors(file, "read"):
        return "no checksum", f"{counted(file.stat().st_size, 'byte')}"


# ------------------------------------------------------------------------------------------------- runs and submissions


def reader(path: Path) -> Callable[[Path], Iterable[Verdict]] | None:
    """What reads a checkpoint, a submission or a run; None for a folder that is neither."""
    if checkpoint_folder.is_name(path.name):
        return lambda folder: [checkpoint(folder)]
    if (path / submission.CLAIMS).exists():
        return _submission
    if RunFolder(path).config.exists():
        return lambda folder: _run(RunFolder(folder))
    return None


def _run(run: RunFolder) -> Iterator[Verdict]:
    yield plain(run.config, "configuration", Config.load)
    for file, kind, read in (
        (run.environment, "environment", lambda path: read_json_object(path, "environment")),
        (run.data, "record of the data", DataIdentity.read),
        (run.path / "metrics.jsonl", "metrics", read_metrics),
        (run.summary, "summary", lambda path: read_json_object(path, "summary")),
    ):
        if file.exists():
            yield plain(file, kind, read)
    for path in checkpoint_folder.checkpoints(run.checkpoints):
        found = checkpoint(path)
        if path.exists():  # a run at work deletes old ones
            yield found
    if run.artifact.exists():
        yield artifact(run.artifact)
    if run.tokenizer.exists():
        yield _tokenizer(run.tokenizer, run.artifact)


@judged("tokenizer")
def _tokenizer(path: Path, model: Path) -> Found:
    """A SentencePiece model beside an artifact, which knows its hash."""
    known = None
    if model.exists():
        identity = read_container(model).header.get("tokenizer")
        known = identity.get("sha256") if isinstance(identity, dict) else None
    if not isinstance(known, str):
        return "no checksum", f"{counted(path.stat().st_size, 'byte')}, and no artifact that knows it"
    return hashed(path, known, "copy it from the data folder's tokenizers")


# ---------------------------------------------------------------------------------------------- submissions


def _submission(path: Path) -> Iterator[Verdict]:
    """What a submission claims of its sizes, and its artifact; whether it obeys the rules is `audit`'s question."""
    code, model = path / script.NAME, path / ARTIFACT_FILE
    yield _script(code)
    yield artifact(model)
    if (path / "tokenizer.model").exists():
        yield _tokenizer(path / "tokenizer.model", model)
    yield _claims(path / submission.CLAIMS, {"bytes_code": code, "bytes_model_int8_zlib": model})
    for name in (submission.README, submission.LOG):
        yield plain(path / name, "text", lambda file: file.read_text(encoding="utf-8"))


@judged("claims")
def _claims(path: Path, sizes: dict[str, Path]) -> Found:
    told = read_json_object(path, "submission's claims")
    for key, file in sizes.items():
        found = file.stat().st_size if file.exists() else 0
        if told.get(key) != found:
            raise BytegolfError(
                f"{path} says {key} = {told.get(key)}, but {file} has {found} bytes: make the submission again with "
                "`bytegolf submit`"
            )
    return "no checksum", "its sizes are those of the files"


@judged("script")
def _script(path: Path) -> Found:
    with disk_errors(path, "read"):
        source = path.read_bytes()
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BytegolfError(f"{path} is no Python ({error}): make the submission again") from error
    return "no checksum", f"it is Python; SHA-256 {sha256(path)[:16]}…"
