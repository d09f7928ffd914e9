"""Repositories of models on the Hugging Face hub: ``hf:owner/name@revision``, through huggingface_hub.

$HF_ENDPOINT (a mirror), $HF_TOKEN, $HF_HOME (the cache) and $HF_HUB_OFFLINE mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, sha256
from bytegolf.network import TransientError, required, translated

PREFIX = "hf:"

_ADDRESS = re.compile(r"([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)(?:@([A-Za-z0-9_./-]+))?")

Choose = Callable[[Sequence[str]], Sequence[str]]
"""Given the names of a repository's files, those that are wanted; raises BytegolfError if there are none."""


@dataclass(frozen=True)
class Address:
    """A repository at a revision: a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True)
class Snapshot:
    """Files of a repository at one commit, in the cache."""

    address: Address
    commit: str
    folder: Path


def address(source: str | Path) -> Address | None:
    """The repository that ``source`` names; None if it names none. Raises BytegolfError for half a name."""
    text = str(source)
    if not text.startswith(PREFIX):
        return None
    found = _ADDRESS.fullmatch(text.removeprefix(PREFIX))
    if found is None or ".." in text:
        raise BytegolfError(f"{text} names no repository: write hf:owner/name, or hf:owner/name@revision")
    return Address(found[1], found[2] or "main")


def fetch(at: Address, choose: Choose) -> Snapshot:
    """The files of a repository that ``choose`` wants, fetched if they are not in the cache yet.

    All are of one commit. Each file is compared, as it arrives, with the hash that the hub tells of it. Offline, or
    where the hub cannot be reached, they are those of the revision as it was last seen.

    Raises BytegolfError: there is no such repository or revision, a file is not what the hub says, or nothing is in the
    cache and the hub cannot be reached.
    """
    hub = _client(f"{at}", "name a local file")
    try:
        with translated(str(at), "its name and revision"):
            return _online(hub, at, choose)
    except TransientError as error:
        return _cached(hub, at, choose, str(error))
    except BytegolfError as error:
        if type(error.__cause__).__name__ != "OfflineModeIsEnabled":
            raise
        return _cached(hub, at, choose, "HF_HUB_OFFLINE is set")


def _client(doing: str, instead: str) -> Any:
    """huggingface_hub, whose progress bars are for people at a terminal."""
    hub = required("huggingface_hub", doing, instead)
    if sys.stderr is None or not sys.stderr.isatty():
        required("huggingface_hub.utils", doing, instead).disable_progress_bars()
    return hub


def _online(hub: Any, at: Address, choose: Choose) -> Snapshot:
    while True:
        info = hub.HfApi().model_info(at.repository, revision=at.revision, files_metadata=True)
        listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
        wanted = choose(sorted(listed))
        fresh = [name for name in wanted if not _is_cached(hub, at, info.sha, name)]
        # by the revision's name, so that it is known offline; what is fetched is of one commit in any case
        folder = Path(hub.snapshot_download(at.repository, revision=at.revision, allow_patterns=list(wanted)))
        if folder.name == info.sha:  # else the branch has moved since it was asked for
            break
    _verify(folder, {name: listed[name] for name in fresh}, at)
    return Snapshot(at, folder.name, folder)


def _is_cached(hub: Any, at: Address, commit: str, name: str) -> bool:
    return isinstance(hub.try_to_load_from_cache(at.repository, name, revision=commit), str)


def _cached(hub: Any, at: Address, choose: Choose, why: str) -> Snapshot:
    """The files of the revision as it was last seen: refs/REVISION names the commit, snapshots/COMMIT holds them."""
    cache = Path(hub.constants.HF_HUB_CACHE) / f"models--{at.repository.replace('/', '--')}"
    ref = cache / "refs" / at.revision
    with disk_errors(ref, "read"):
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else at.revision
    folder = cache / "snapshots" / commit
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not files:
        raise BytegolfError(f"{at} is not in the cache, and the hub cannot be asked ({why}): try again online")
    choose(sorted(files))
    return Snapshot(at, commit, folder)


def _verify(folder: Path, files: Mapping[str, Any], at: Address) -> None:
    """Compare files that have just come with the hub's hashes; one that differs is removed from the cache."""
    for name, told in files.items():
        path = folder / name
        if told.lfs is not None:
            same = sha256(path) == told.lfs.sha256
        else:  # git's own name of a small file
            with disk_errors(path, "read"):
                data = path.read_bytes()
            same = told.blob_id in (None, hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest())
        if not same:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise BytegolfError(f"{name} of {at} came with another hash than the hub tells: run the same command again")


def check_name(repository: str) -> None:
    """Raise BytegolfError unless ``repository`` names one to push to."""
    if (found := _ADDRESS.fullmatch(repository)) is None or found[2] or ".." in repository:
        raise BytegolfError(f"{repository} names no repository to push to: write owner/name")


def push(files: Mapping[str, Path], repository: str, message: str, private: bool) -> tuple[str, str]:
    """Make ``files``, by their names there, one commit in a repository, which is made if it is not there.

    Large files that an interrupted push has brought there are not sent again. Returns the commit and its address.

    Raises BytegolfError: nobody is logged in, the repository is someone else's, or the network broke off.
    """
    check_name(repository)
    at = Address(repository)
    hub = _client("pushing to the hub", "upload the folder by hand")
    try:
        with translated(str(at), "its name"):
            try:
                hub.HfApi().create_repo(repository, private=private or None, exist_ok=True)
                operations = [hub.CommitOperationAdd(name, str(path)) for name, path in files.items()]
                done = hub.HfApi().create_commit(repository, operations, commit_message=message)
            except RuntimeError as error:  # of an upload; its cause is the network's
                cause = error.__cause__ or error
                raise cause from cause.__cause__
    except TransientError as error:
        raise BytegolfError(f"{error}: run the same command again, files that arrived are not sent again") from error
    return str(done.oid), str(done.commit_url)
