"""Published shards, tokenizers and documents into a data folder, from a mirror: what `bytegolf fetch` does.

The manifest comes first and says what there is (`offer`); what is wanted is compared with what lies there (`plan`), so
that the need of disk space is known before anything is fetched; the rest is fetched, several files at once
(`fetch_files`). A file appears under its name only once its size, its hash where one is published, its header and its
token ids are right. The folder's own ``manifest.json`` is written last (`finish`) and lists what is there; until then a
marker keeps half a data set from being trained on.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bytegolf.data.manifest import FETCHING, MANIFEST, mark_unfinished, read_manifest, unfinished
from bytegolf.data.progress import ProgressBar
from bytegolf.data.published import (
    DOCUMENTS,
    DOCUMENTS_SIDECAR,
    Documents,
    File,
    Published,
    find,
    offered,
    parse_manifest,
    parse_sidecar,
)
from bytegolf.data.specs import parse_tokenizers
from bytegolf.errors import BytegolfError
from bytegolf.files import make_folder, write_bytes
from bytegolf.tools.fetch.download import Attempts, Part, Wanted, download, part_path
from bytegolf.tools.fetch.mirrors import PIECE, Mirror, PassingError, Remote
from bytegolf.tools.fetch.record import Record, check, write_manifest

TRAIN_SHARDS = 80
"""Fetched of a data set unless another number is asked for: 8 billion tokens, as the public scripts do."""

LOOKS = 8
"""Questions to a mirror at once."""

_SMALL_FILE = 64 << 20
"""Bytes of the longest manifest that is read."""


@dataclass(frozen=True)
class Offer:
    """What a mirror has of what is wanted."""

    mirror: Mirror
    variants: dict[str, Published | None]
    """the data sets by their short names; None for those that are not published as shards"""
    train_shards: int | None
    documents: Documents | None
    """what the documents' sidecar says; None if they are not wanted"""
    sidecar: bytes = field(default=b"", repr=False)

    @property
    def published(self) -> list[Published]:
        """The data sets that are published."""
        return [one for one in self.variants.values() if one is not None]

    @property
    def missing(self) -> list[str]:
        """The names of those that are not."""
        return [name for name, one in self.variants.items() if one is None]

    def wanted_shards(self, one: Published) -> int:
        """How many training shards of a data set are wanted."""
        return min(TRAIN_SHARDS, one.train_shards) if self.train_shards is None else self.train_shards

    def files(self, out: Path) -> list[File]:
        """All files to have in ``out``: tokenizers and validation first, then training, then documents."""
        found = [
            file for one in self.published for file in (*one.tokenizer_files(), *one.shards("val", one.val_shards))
        ]
        for one in self.published:
            shards = one.shards("train", one.train_shards)
            found += shards[: self.wanted_shards(one)]
            # further ones that lie there would be read as well, so they must be right too
            there = {path.name for path in (out / one.folder).glob("fineweb_*.bin")}
            found += [file for file in shards[self.wanted_shards(one) :] if Path(file.path).name in there]
            if foreign := there - {Path(file.path).name for file in found}:
                raise BytegolfError(
                    f"{out / one.folder} holds {min(foreign)}, which {self.mirror.name} does not publish and training "
                    "would read too: move it away"
                )
        if self.documents is not None:
            found.append(File(DOCUMENTS, self.documents.sha256))
        return list({file.path: file for file in found}.values())


def offer(
    mirror: Mirror, variants: Sequence[str], train_shards: int | None, documents: bool, export: bool, attempts: Attempts
) -> Offer:
    """Read a mirror's manifest, and the documents' sidecar if they are wanted.

    Args:
        train_shards: of each variant; None: TRAIN_SHARDS, or all where there are fewer.
        export: whether variants that are not published can be made from the documents, which then are wanted too.
    """
    manifest = parse_manifest(_read(mirror, MANIFEST, attempts), mirror.name)
    found = {variant: find(manifest, variant, mirror.name) for variant in variants}
    for one in found.values():
        if one is not None and train_shards is not None and train_shards > one.train_shards:
            raise BytegolfError(
                f"{mirror.name} has {one.train_shards} training shards of {one.name}: give --train-shards "
                f"{one.train_shards} or fewer, not {train_shards}"
            )
    if missing := [name for name, one in found.items() if one is None]:
        if not export:
            raise BytegolfError(
                f"{mirror.name} publishes no shards of {', '.join(missing)}, only of {', '.join(offered(manifest))}: "
                "add --export to fetch the documents and make them here, and --dry-run to see what room that takes"
            )
        parse_tokenizers(missing)  # a name that cannot be made is refused before gigabytes are fetched
        documents = True
    sidecar = _read(mirror, DOCUMENTS_SIDECAR, attempts) if documents else b""
    described = parse_sidecar(sidecar, f"{mirror.name}/{DOCUMENTS_SIDECAR}") if documents else None
    return Offer(mirror, found, train_shards, described, sidecar)


def _read(mirror: Mirror, path: str, attempts: Attempts) -> bytes:
    """A small file, whole."""

    def once() -> bytes:
        data = bytearray()
        with mirror.open(path) as body:
            while block := body.read(PIECE):
                data += block
                if len(data) > _SMALL_FILE:
                    raise BytegolfError(f"{path} of {mirror.name} does not end: choose another mirror")
            if body.remote.size not in (None, len(data)):
                raise PassingError(f"{path} broke off after {len(data)} of {body.remote.size} bytes")
        return bytes(data)

    return attempts.run(once)


@dataclass
class Plan:
    """What is there, and what is to be fetched."""

    files: list[File]
    parts: list[tuple[Wanted, Part]] = field(default_factory=list)
    """the files to fetch, each with what has been received of it"""
    present_bytes: int = 0
    """of files that are there and right"""
    replaced: list[str] = field(default_factory=list)
    """files that are there but not what is published"""

    @property
    def resumed_bytes(self) -> int:
        """What earlier attempts have left of the files to fetch."""
        return sum(part.received for _, part in self.parts)

    @property
    def to_fetch(self) -> int:
        """Bytes; files of unknown size are not counted."""
        return sum((wanted.remote.size or part.received) - part.received for wanted, part in self.parts)


def plan(found: Offer, out: Path, record: Record, attempts: Attempts, bar: ProgressBar, verify: bool = False) -> Plan:
    """Compare what is offered with what lies in ``out``: by its record, or by reading files that this does not know
    (with ``verify`` all of them).
    """
    result = Plan(found.files(out))
    questions = []
    for file in result.files:
        known = record.sha256(file.path)
        if known is None or verify or file.sha256 not in (None, known):
            questions.append(file)
    remotes = _look(found.mirror, [file.path for file in questions], attempts)
    wanted = [_wanted(file, remotes[file.path]) for file in questions]
    lie = [path for one in wanted for path in (out / one.path, part_path(out / one.path)) if path.is_file()]
    size = sum(path.stat().st_size for path in lie)
    with bar.task("checking what is there", size) if size else contextlib.nullcontext(lambda count: None) as advance:
        for one in wanted:
            if (out / one.path).is_file():
                hashed = check(out / one.path, one, record.noted(one.path), advance)
                if hashed is not None:
                    record.add(one.path, hashed)
                    continue
                result.replaced.append(one.path)
            result.parts.append((one, Part(out / one.path, one.remote, advance)))
    missing = {one.path for one, _ in result.parts}
    result.present_bytes = sum(record.size(file.path) for file in result.files if file.path not in missing)
    return result


def _wanted(file: File, remote: Remote) -> Wanted:
    """A file with all that is published of it."""
    if None not in (file.sha256, remote.sha256) and file.sha256 != remote.sha256:
        raise BytegolfError(
            f"{file.path} is published with two hashes, {file.sha256} and {remote.sha256}: choose another mirror"
        )
    return Wanted(file.path, Remote(remote.size, file.sha256 or remote.sha256, remote.version), file.vocab_size)


def _look(mirror: Mirror, paths: list[str], attempts: Attempts) -> dict[str, Remote]:
    """What the mirror says of files."""
    found: dict[str, Remote] = {}

    def job(group: list[str]) -> Callable[[], dict[str, Remote]]:
        return lambda: attempts.run(lambda: mirror.look(group))

    groups = [paths[at : at + mirror.at_once] for at in range(0, len(paths), mirror.at_once)]
    _in_parallel([job(group) for group in groups], LOOKS, attempts, found.update)
    return found


def fetch_files(
    planned: Plan, found: Offer, out: Path, record: Record, workers: int, attempts: Attempts, bar: ProgressBar
) -> None:
    """Fetch what a plan lacks, ``workers`` files at once; each is noted when it is done."""
    if not planned.parts:
        return
    make_folder(out)
    mark_unfinished(out, [*(one.name for one in found.published), *unfinished(out, FETCHING)], FETCHING)
    lock = threading.Lock()
    with bar.task("fetching", planned.to_fetch) as tell:

        def advance(count: int) -> None:
            with lock:
                tell(count)

        def job(wanted: Wanted, part: Part) -> Callable[[], tuple[str, str]]:
            return lambda: (wanted.path, download(found.mirror, wanted, part, attempts, advance))

        jobs = [job(wanted, part) for wanted, part in planned.parts]
        _in_parallel(jobs, workers, attempts, lambda done: record.add(*done))


def _in_parallel(
    jobs: Sequence[Callable[[], Any]], workers: int, attempts: Attempts, each: Callable[[Any], None]
) -> None:
    """Give the result of each job to ``each`` as it comes; the first failure stops the others and is raised."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(job) for job in jobs]
        try:
            for done in concurrent.futures.as_completed(running):
                each(done.result())
        except BaseException:
            attempts.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def finish(found: Offer, out: Path, record: Record) -> None:
    """Write the manifest and the documents' sidecar, and take the marker away."""
    sidecar = out / DOCUMENTS_SIDECAR
    if found.documents is not None and not (sidecar.is_file() and sidecar.read_bytes() == found.sidecar):
        write_bytes(sidecar, found.sidecar)
    if found.published:
        write_manifest(out, found.mirror.name, found.published, record)
    mark_unfinished(out, set(unfinished(out, FETCHING)) - {one.name for one in found.published}, FETCHING)


def check_own(found: Offer, out: Path) -> None:
    """Raise if ``out`` holds a wanted data set that comes from somewhere else."""
    old = read_manifest(out)["datasets"] if (out / MANIFEST).exists() else []
    for entry in old:
        for one in found.published:
            if entry.get("name") == one.name and "fetched_from" not in entry and entry != one.dataset:
                raise BytegolfError(
                    f"{out} holds {one.name} that was not fetched: choose another --out for the published one"
                )
