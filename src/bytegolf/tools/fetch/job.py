"""From nothing on disk to data that trains: fetch what is published, and make from the documents what is not."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bytegolf.data.manifest import DATASET_PREFIX, LOCK, MANIFEST, data_summary, read_manifest
from bytegolf.data.prepare import prepare
from bytegolf.data.progress import ProgressBar
from bytegolf.data.published import DOCUMENTS
from bytegolf.data.specs import parse_tokenizers
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, make_folder, only_one, write_bytes
from bytegolf.tools.fetch import files as fetch
from bytegolf.tools.fetch import hub
from bytegolf.tools.fetch.download import Attempts
from bytegolf.tools.fetch.mirrors import FolderMirror, Mirror, open_mirror
from bytegolf.tools.fetch.record import Record, merge_manifest

EXPORT = "export.unfinished"
"""The folder in which `prepare` makes what is not published, before it joins the rest."""

Tell = Callable[[str], None]


def run(
    out: Path,
    variants: Sequence[str],
    *,
    mirror: str | None = None,
    repository: str = hub.REPOSITORY,
    root: str | None = None,
    train_shards: int | None = None,
    documents: bool = False,
    export: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    workers: int = 8,
    tell: Tell = lambda said: None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fetch data sets into the data folder ``out``; what was done, as `bytegolf fetch --json` has it.

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
    attempts = Attempts(bar.say)
    source = _source(mirror, repository, root, out, attempts)
    found = fetch.offer(source, variants, train_shards, documents, export, attempts)
    fetch.check_own(found, out)
    busy = f"another `bytegolf fetch` or `prepare` is at work in {out}: wait for it, or choose another --out"
    with contextlib.nullcontext() if dry_run else only_one(out / LOCK, busy):
        record = Record(out)
        planned = fetch.plan(found, out, record, attempts, bar, verify)
        fetched = [wanted.remote.sha256 for wanted, _ in planned.parts if wanted.path == DOCUMENTS]
        documents_are = fetched[0] if fetched else record.sha256(DOCUMENTS)
        to_make = [name for name in found.missing if not _made(out, name, documents_are)]
        _announce(found, planned, to_make, out, tell)
        result = {
            "out": str(out),
            "source": source.name,
            "files": len(planned.files),
            "files_fetched": len(planned.parts),
            "bytes_present": planned.present_bytes,
            "bytes_resumed": planned.resumed_bytes,
            "bytes_fetched": planned.to_fetch,
            "replaced": planned.replaced,
            "exported": to_make,
            "dry_run": dry_run,
        }
        if not dry_run:
            fetch.fetch_files(planned, found, out, record, workers, attempts, bar)
            fetch.finish(found, out, record)
            if to_make:
                _make(found, to_make, out, record, quiet)
            if found.documents is not None:
                _add_original_bytes(out)
    seconds = time.monotonic() - started
    there = data_summary(out) if (out / MANIFEST).exists() else {}
    return {**result, "seconds": round(seconds, 3), "datasets": there}


def _source(mirror: str | None, repository: str, root: str | None, out: Path, attempts: Attempts) -> Mirror:
    if mirror is None:
        return attempts.run(lambda: hub.open_hub(repository, hub.ROOT if root is None else root))
    found = open_mirror(mirror, root or "")
    if isinstance(found, FolderMirror) and found.folder.resolve() == out.resolve():
        raise BytegolfError(f"--mirror and --out are the same folder {out}: choose another --out")
    return found


# ---------------------------------------------------------------------------------------------- what it takes


def _announce(found: fetch.Offer, planned: fetch.Plan, to_make: list[str], out: Path, tell: Tell) -> None:
    """Tell what will be fetched and made, and what room that needs; raise where there is too little."""
    for one in found.published:
        tell(f"{one.name}: validation and {found.wanted_shards(one)} of {one.train_shards} training shards")
    here = len(planned.files) - len(planned.parts)
    tell(f"{found.mirror.name}: {here} of {len(planned.files)} files are here ({size(planned.present_bytes)})")
    for path in planned.replaced:
        tell(f"{out / path} is not what is published and will be replaced")
    unhashed = sum(wanted.remote.sha256 is None for wanted, _ in planned.parts)
    if unhashed:
        tell(f"no hash is published for {unhashed} of them: there, lengths, headers and token ids are checked")
    needed, making = planned.to_fetch, 0
    if to_make:
        making = _export_bytes(found, planned, to_make, out)
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


def _export_bytes(found: fetch.Offer, planned: fetch.Plan, to_make: list[str], out: Path) -> int:
    """About what the shards of tokenizers over the documents will need: a token has two bytes."""
    sizes = [wanted.remote.size or 0 for wanted, _ in planned.parts if wanted.path == DOCUMENTS]
    documents = sizes[0] if sizes else (out / DOCUMENTS).stat().st_size
    # a SentencePiece token stands for about two bytes and more
    return sum(documents * (2 if spec.kind == "byte" else 1) for spec in parse_tokenizers(to_make))


def _fewer(planned: fetch.Plan, excess: int) -> str:
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


# ---------------------------------------------------------------------------------------------- what is made here


def _made(out: Path, name: str, documents: str | None) -> bool:
    """Whether ``out`` has a data set that was made from the documents of that hash; an error if it was from others."""
    entries = read_manifest(out)["datasets"] if (out / MANIFEST).exists() else []
    for entry in entries:
        if entry.get("name") == DATASET_PREFIX + name:
            if "documents" not in entry:
                raise BytegolfError(f"{out} holds {entry['name']} of other documents: choose another --out")
            files = [out / entry["path"] / file for file in entry["sha256"]]
            return documents == entry["documents"] and all(file.is_file() for file in files)
    return False


def _make(found: fetch.Offer, names: list[str], out: Path, record: Record, quiet: bool) -> None:
    """`prepare` data sets from the documents, in a folder of their own, and move them into ``out`` when they are whole.

    A kill at any point leaves something to go on with: `prepare`'s own state, then what is not moved yet.
    """
    assert found.documents is not None
    documents, work = record.sha256(DOCUMENTS), out / EXPORT
    made_from = work / "documents.sha256"
    if work.exists() and not (made_from.is_file() and made_from.read_text() == documents):
        _remove(work)  # of documents that have been replaced
    write_bytes(made_from, str(documents).encode())
    prepare([str(out / DOCUMENTS)], work, names, f"first:{found.documents.validation}", quiet=quiet)
    made = read_manifest(work)
    for entry in made["datasets"]:
        entry["documents"] = documents
        _move(work / entry["path"], out / entry["path"])
    for path in sorted((work / "tokenizers").iterdir()):
        _move(path, out / "tokenizers" / path.name)
    merge_manifest(out, made)
    _remove(work)


def _move(source: Path, target: Path) -> None:
    if not source.exists():  # before a kill
        return
    make_folder(target.parent)
    if target.is_dir():
        _remove(target)
    with disk_errors(target):
        source.replace(target)


def _remove(folder: Path) -> None:
    with disk_errors(folder, "remove"):
        shutil.rmtree(folder)


def _add_original_bytes(out: Path) -> None:
    """What was made from the documents knows their bytes; published shards of the same documents need them for scores
    over the original text.
    """
    manifest = read_manifest(out) if (out / MANIFEST).exists() else {"datasets": []}
    made = [entry["stats"] for entry in manifest["datasets"] if "documents" in entry]
    for entry in manifest["datasets"]:
        published = entry.get("published_stats") or {}
        for stats in made:
            for split in ("val", "train"):
                same = all(published.get(key) == stats[key] for key in (f"docs_{split}", "docs_total"))
                if same and entry["stats"]["files_" + split] == published.get("files_" + split):
                    entry["stats"]["original_bytes_" + split] = stats["original_bytes_" + split]
    if made:
        merge_manifest(out, manifest)
