"""From nothing on disk to data that trains: fetch what is published, and make from the documents what is not.

The manifest comes first and says what there is (`published.Offer`). What is wanted is compared with what lies there
(`plan`), so that the need of disk space is known before anything is fetched; the rest is fetched, several files at
once. A file appears under its name only once its size, its hash where one is published, its header and its token ids
are right. The folder's own ``manifest.json`` is written last and lists what is there; until then a marker keeps half a
data set from being trained on.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bytegolf.data.dataset import FETCHING, LOCK, MANIFEST, data_summary, mark_unfinished, read_manifest, unfinished
from bytegolf.data.results import FetchResult
from bytegolf.data.specs import parse_tokenizers
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, only_one, write_bytes
from bytegolf.folders import LeftOut
from bytegolf.progress import ProgressBar
from bytegolf.tools.fetch.download import (
    REPOSITORY,
    ROOT,
    Mirror,
    Part,
    Remote,
    Retries,
    Wanted,
    download,
    open_hub,
    open_mirror,
    part_path,
)
from bytegolf.tools.fetch.export import add_original_bytes, is_made, make
from bytegolf.tools.fetch.published import DOCUMENTS, DOCUMENTS_SIDECAR, File, Offer, read_offer
from bytegolf.tools.fetch.record import Record, check, write_manifest

Tell = Callable[[str], None]


def run(
    out: Path,
    variants: Sequence[str],
    *,
    mirror: str | None = None,
    repository: str = REPOSITORY,
    root: str | None = None,
    train_shards: int | None = None,
    documents: bool = False,
    export: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    workers: int = 8,
    tell: Tell = lambda said: None,
    quiet: bool = False,
) -> FetchResult:
    """Fetch data sets into the data folder ``out``.

    Args:
        variants: short names of data sets (``sp1024``).
        mirror: a folder or an address; None: ``repository`` on the hub.
        root: the folder with manifest.json, in the mirror or in the repository.
        export: make variants that are not published from the documents, which are fetched for that.
        verify: read again also what was checked before.
        dry_run: only tell what would be done.
        workers: files fetched at once.
        tell: given sentences on what is there and what will be fetched, before it begins.

    Raises:
        BytegolfError: the mirror cannot be read or is not what it says, something does not fit, or ``out`` holds other
            data. What has been fetched stays, and the same command goes on from there.
    """
    started = time.monotonic()
    bar = ProgressBar(quiet)
    retries = Retries(bar.say)
    source = _source(mirror, repository, root, out, retries)
    offer = read_offer(source, variants, train_shards, documents, export, retries)
    _check_own(offer, out)
    busy = f"another `bytegolf fetch` or `prepare` is at work in {out}: wait for it, or choose another --out"
    left_out: list[LeftOut] = []
    with contextlib.nullcontext() if dry_run else only_one(out / LOCK, busy):
        record = Record(out)
        planned = plan(offer, out, record, retries, bar, verify)
        fetched = [wanted.remote.sha256 for wanted, _ in planned.parts if wanted.path == DOCUMENTS]
        documents_are = fetched[0] if fetched else record.sha256(DOCUMENTS)
        to_make = [name for name in offer.missing if not is_made(out, name, documents_are)]
        _announce(offer, planned, to_make, out, tell)
        if not dry_run:
            _fetch_files(planned, offer, out, record, workers, retries, bar)
            _finish(offer, out, record)
            if to_make:
                assert offer.documents is not None
                left_out = make(offer.documents.validation, to_make, out, str(record.sha256(DOCUMENTS)), quiet)
            if offer.documents is not None:
                add_original_bytes(out)
    return FetchResult(
        out=str(out),
        source=source.name,
        files=len(planned.files),
        files_fetched=len(planned.parts),
        bytes_present=planned.present_bytes,
        bytes_resumed=planned.resumed_bytes,
        bytes_fetched=planned.to_fetch if dry_run else sum(part.came for _, part in planned.parts),
        replaced=planned.replaced,
        exported=to_make,
        left_out=left_out,
        dry_run=dry_run,
        seconds=round(time.monotonic() - started, 3),
        datasets=data_summary(out) if (out / MANIFEST).exists() else {},
    )


def _source(mirror: str | None, repository: str, root: str | None, out: Path, retries: Retries) -> Mirror:
    if mirror is None:
        return retries.run(lambda: open_hub(repository, ROOT if root is None else root))
    found = open_mirror(mirror, root or "")
    if found.root == str(out.resolve()):
        raise BytegolfError(f"--mirror and --out are the same folder {out}: choose another --out")
    return found


def _check_own(offer: Offer, out: Path) -> None:
    """Raise if ``out`` holds a wanted data set that comes from somewhere else."""
    old = read_manifest(out)["datasets"] if (out / MANIFEST).exists() else []
    for entry in old:
        for one in offer.published:
            if entry.get("name") == one.name and "fetched_from" not in entry and entry != one.dataset:
                raise BytegolfError(f"{out} holds {one.name} that was not fetched: choose another --out")


# ---------------------------------------------------------------------------------------------- what is missing


@dataclass
class Plan:
    """What is there, and what is to be fetched."""

    files: list[File]
    parts: list[tuple[Wanted, Part]] = field(default_factory=list)
    """the files to fetch, each with what has been received of it"""
    replaced: list[str] = field(default_factory=list)
    present_bytes: int = 0
    resumed_bytes: int = 0
    """what earlier attempts have left of the files to fetch"""
    to_fetch: int = 0
    """bytes; files of unknown size are not counted"""


def plan(offer: Offer, out: Path, record: Record, retries: Retries, bar: ProgressBar, verify: bool = False) -> Plan:
    """Compare what is offered with ``out``: by its record, or by reading unknown files (with ``verify``, all)."""
    result = Plan(offer.files(out))
    known = {file: record.sha256(file.path) for file in result.files}
    questions = [file for file in known if verify or known[file] is None or file.sha256 not in (None, known[file])]
    remotes: dict[str, Remote] = {}

    def ask(path: str) -> tuple[str, Remote]:
        return path, retries.run(lambda: offer.mirror.info(path))

    asked = [functools.partial(ask, file.path) for file in questions]
    _in_parallel(asked, offer.mirror.questions, retries, lambda found: remotes.update([found]))
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
    result.resumed_bytes = sum(part.received for _, part in result.parts)
    result.to_fetch = sum((one.remote.size or part.received) - part.received for one, part in result.parts)
    result.present_bytes = sum(record.size(file.path) for file in result.files if file.path not in missing)
    return result


def _wanted(file: File, remote: Remote) -> Wanted:
    """A file with all that is published of it."""
    if None not in (file.sha256, remote.sha256) and file.sha256 != remote.sha256:
        raise BytegolfError(
            f"{file.path} is published with two hashes, {file.sha256} and {remote.sha256}: take another mirror"
        )
    return Wanted(file.path, Remote(remote.size, file.sha256 or remote.sha256, remote.version), file.vocab_size)


# ---------------------------------------------------------------------------------------------- what it takes


def _announce(offer: Offer, planned: Plan, to_make: list[str], out: Path, tell: Tell) -> None:
    """Tell what will be fetched and made, and what room that needs; raise where there is too little."""
    for one in offer.published:
        tell(f"{one.name}: validation and {offer.wanted_shards(one)} of {one.train_shards} training shards")
    here = len(planned.files) - len(planned.parts)
    tell(f"{offer.mirror.name}: {here} of {len(planned.files)} files are here ({size(planned.present_bytes)})")
    for path in planned.replaced:
        tell(f"{out / path} is not what is published and will be replaced")
    unhashed = sum(wanted.remote.sha256 is None for wanted, _ in planned.parts)
    if unhashed:
        tell(f"no hash is published for {unhashed} of them: there, lengths, headers and token ids are checked")
    needed, making = planned.to_fetch, 0
    if to_make:
        # a token has two bytes, and one of SentencePiece stands for about two bytes and more
        to_come = {wanted.path: wanted.remote.size or 0 for wanted, _ in planned.parts}
        documents = to_come[DOCUMENTS] if DOCUMENTS in to_come else (out / DOCUMENTS).stat().st_size
        making = sum(documents * (2 if spec.kind == "byte" else 1) for spec in parse_tokenizers(to_make))
        tell(f"{', '.join(to_make)} will be made here from the documents, in about {size(making)}")
    free = _free_space(out)
    unknown = sum(wanted.remote.size is None for wanted, _ in planned.parts)
    more = f" and {unknown} files of unknown size" if unknown else ""
    received = f" (on top of {size(planned.resumed_bytes)} received before)" if planned.resumed_bytes else ""
    tell(f"to fetch: {len(planned.parts)} files, {size(needed)}{more}{received}; {out} has {size(free)} free")
    if needed + making > free:
        raise BytegolfError(
            f"{size(needed + making)} are needed in {out}, but {size(free)} are free: make room, choose another --out"
            f"{_fewer(planned, needed + making - free)}"
        )


def _fewer(planned: Plan, excess: int) -> str:
    """How many training shards would fit, as an end of the sentence."""
    train = [wanted.remote.size or 0 for wanted, _ in planned.parts if "fineweb_train_" in wanted.path]
    all_shards = sum("fineweb_train_" in file.path for file in planned.files)
    while train and excess > 0:
        excess -= train.pop()
        all_shards -= 1
    return f", or give --train-shards {all_shards}" if excess <= 0 and all_shards >= 0 else ""


def _free_space(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with disk_errors(folder, "look for free space in"):
        return shutil.disk_usage(folder).free


def size(count: int) -> str:
    """A number of bytes for people."""
    for unit, word in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {word}"
    return f"{count} bytes"


# ---------------------------------------------------------------------------------------------- fetching


def _fetch_files(
    planned: Plan, offer: Offer, out: Path, record: Record, workers: int, retries: Retries, bar: ProgressBar
) -> None:
    """Fetch what a plan lacks, ``workers`` files at once; each is noted when it is done."""
    if not planned.parts:
        return
    make_folder(out)
    mark_unfinished(out, [*(one.name for one in offer.published), *unfinished(out, FETCHING)], FETCHING)
    lock = threading.Lock()
    known = all(wanted.remote.size is not None for wanted, _ in planned.parts)
    with bar.task("fetching", planned.to_fetch if known else None) as tell:

        def advance(count: int) -> None:
            with lock:
                tell(count)

        def fetch(wanted: Wanted, part: Part) -> tuple[str, str]:
            return wanted.path, download(offer.mirror, wanted, part, retries, advance)

        jobs = [functools.partial(fetch, *one) for one in planned.parts]
        _in_parallel(jobs, workers, retries, lambda done: record.add(*done))


def _in_parallel(
    jobs: Sequence[Callable[[], Any]], workers: int, retries: Retries, each: Callable[[Any], None]
) -> None:
    """Give the result of each job to ``each`` as it comes; the first failure stops the others and is raised."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(job) for job in jobs]
        try:
            for done in concurrent.futures.as_completed(running):
                each(done.result())
        except BaseException:
            retries.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _finish(offer: Offer, out: Path, record: Record) -> None:
    """Write the manifest and the documents' sidecar, and take the marker away."""
    sidecar = out / DOCUMENTS_SIDECAR
    if offer.documents is not None and not (sidecar.is_file() and sidecar.read_bytes() == offer.sidecar):
        write_bytes(sidecar, offer.sidecar)
    if offer.published:
        write_manifest(out, offer.mirror.name, offer.published, record)
    mark_unfinished(out, set(unfinished(out, FETCHING)) - {one.name for one in offer.published}, FETCHING)
