"""What lies in a folder: a run, a data folder, a submission, a study's results, or several of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bytegolf.data.dataset_writer import SIDECAR
from bytegolf.data.manifest import FETCHING, MANIFEST, UNFINISHED, path_in, read_manifest, unfinished
from bytegolf.errors import BytegolfError, counted
from bytegolf.files import disk_errors, matching, read_json
from bytegolf.folders import Tally, ending_of, in_words, walk
from bytegolf.tools.check.files import Found, any_file, hashed, judged, plain, shard
from bytegolf.tools.check.results import Verdict
from bytegolf.tools.check.runs import reader

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
