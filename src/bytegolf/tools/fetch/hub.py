"""The Hugging Face hub as a mirror: what it knows of files through huggingface_hub, their bytes over HTTP as from any
other, so that they lie on the disk once and partial files go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bytegolf.errors import BytegolfError
from bytegolf.tools.fetch.mirrors import Body, HttpMirror, PassingError, Remote

REPOSITORY, ROOT = "willdepueoai/parameter-golf", "datasets"
"""Where the data of the competition is published."""

_REFUSED = {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError", "HFValidationError"}
"""Errors of huggingface_hub that trying again does not cure, with those that derive from them."""


@dataclass(frozen=True)
class HubMirror:
    """A folder of a dataset repository, at one commit."""

    repository: str
    root: str
    commit: str
    http: HttpMirror
    at_once: int = 500

    @property
    def name(self) -> str:
        """The repository, the commit and the folder."""
        return f"hf://datasets/{self.repository}@{self.commit[:12]}/{self.root}".rstrip("/")

    def look(self, paths: Sequence[str]) -> dict[str, Remote]:
        """Sizes and hashes; of small files, which are kept in git itself, only sizes."""
        api = _hub().HfApi()
        prefix = f"{self.root}/" if self.root else ""
        full = {f"{prefix}{path}": path for path in paths}
        with _errors(self.repository):
            infos = api.get_paths_info(self.repository, list(full), repo_type="dataset", revision=self.commit)
        found = {}
        for info in infos:
            lfs = getattr(info, "lfs", None)
            if info.path in full and hasattr(info, "size"):
                found[full[info.path]] = Remote(lfs.size if lfs else info.size, lfs.sha256 if lfs else None)
        for path in paths:
            if path not in found:
                raise BytegolfError(f"{self.name} has no file {path}: check --repo and --root")
        return found

    def open(self, path: str, start: int = 0, version: str | None = None) -> contextlib.AbstractContextManager[Body]:
        """A file from a byte on; at one commit it has one version only."""
        return self.http.open(path, start, None)


def open_hub(repository: str, root: str) -> HubMirror:
    """The folder ``root`` of a dataset repository as it is now; later commits do not mix in."""
    hub = _hub()
    root = root.strip("/")
    with _errors(repository):
        commit = hub.HfApi().repo_info(repository, repo_type="dataset").sha
        headers = hub.utils.build_hf_headers()
        address = hub.hf_hub_url(repository, f"{root}/x" if root else "x", repo_type="dataset", revision=commit)
    return HubMirror(repository, root, commit, HttpMirror(address.removesuffix("/x"), headers))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise BytegolfError(
            "fetching from the hub needs huggingface_hub: run `pip install 'bytegolf[hub]'`, or give a --mirror, a "
            "folder or an address with the same layout"
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _errors(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its HTTP client's own classes, which change with its version
        said = " ".join(str(error).split())[:160]
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & _REFUSED:
            raise BytegolfError(
                f"the hub gives no dataset {repository} ({said}): check --repo, or log in with `hf auth login`"
            ) from error
        raise PassingError(f"the hub does not answer for {repository} ({said})") from error
