"""What a model's name stands for: a run, an artifact, weights, a public model, or a repository on the hub.

runs/demo                   a run's folder: its artifact
model.bgolf                 an artifact
imported/ or X.safetensors  what `bytegolf import` wrote
hnet_2stage_XL.pt           a public H-Net, with its configuration beside it or known by name; also in a folder
hf:owner/name@revision      a repository that holds one of these
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bytegolf import hub
from bytegolf.artifact.loading import LoadedModel, load_artifact
from bytegolf.artifact.pack import Artifact, read_artifact
from bytegolf.artifact.public.opening import PICKLED, SAFE, PublicModel, open_public, weights_among
from bytegolf.artifact.public.safetensors_file import read_safetensors
from bytegolf.artifact.run_folder import ARTIFACT_FILE, RunFolder
from bytegolf.artifact.weights_file import WEIGHTS_FILE, is_noted, opened, read_weights
from bytegolf.data.tokenizer import RawByteTokenizer
from bytegolf.errors import BytegolfError

BESIDE = ("tokenizer.model", "config.toml")
"""What comes with an artifact or weights from the hub."""


@dataclass(frozen=True)
class Opened:
    """A model's file, read or mapped."""

    artifact: Artifact
    path: Path
    """the file; a folder of several"""
    origin: str = ""
    """hf:owner/name@COMMIT, of what came from the hub"""
    public: PublicModel | None = None
    """of a public model: what was opened"""


@dataclass(frozen=True)
class Place:
    """Where a model's files lie on this machine."""

    path: Path
    name: str = ""
    """its repository's"""
    origin: str = ""


def locate(source: str | Path) -> Place:
    """The files that ``source`` names, fetched if they are on the hub."""
    at = hub.address(source)
    if at is None:
        return Place(Path(source))
    snapshot = hub.fetch(at, functools.partial(wanted_files, where=str(at)))
    return Place(snapshot.folder, at.repository.partition("/")[2], f"hf:{at.repository}@{snapshot.commit}")


def open_model(source: str | Path) -> Opened:
    """Open whatever ``source`` names. Raises BytegolfError if that is no model."""
    place = locate(source)
    return dataclasses.replace(_local(place.path, place.name), origin=place.origin)


def load_model(
    source: str | Path, data: Path | None = None, device: str = "auto", precision: str = "auto"
) -> LoadedModel:
    """Load the model that ``source`` names, ready to use; see ``loading.load_artifact``."""
    opened = open_model(source)
    loaded = load_artifact(opened.artifact, opened.path, data, device, precision)
    return dataclasses.replace(loaded, origin=opened.origin)


def is_ours(path: Path) -> bool:
    """Whether a file or folder holds a model as bytegolf writes them."""
    if path.is_dir():
        return RunFolder(path).artifact.exists() or is_ours(path / WEIGHTS_FILE)
    return path.suffix in SAFE and path.exists() and is_noted(path)


def is_weights(path: Path) -> bool:
    """Whether a file or folder holds weights that are not quantised, ours or public ones."""
    if not path.is_dir():
        return path.suffix in (*SAFE, *PICKLED)
    return not RunFolder(path).artifact.exists() and any(is_weights(each) for each in path.iterdir() if each.is_file())


def stored(opened: Opened) -> dict[str, Tensor]:
    """The weights in the dtypes in which they lie in the file."""
    if opened.public is not None:
        return opened.public.state
    if opened.path.suffix in SAFE:
        return read_safetensors(opened.path)[0]
    return opened.artifact.state


def wanted_files(names: Sequence[str], where: str) -> list[str]:
    """Which of a repository's files a model is made of: an artifact before weights, weights before pickled ones."""
    if ARTIFACT_FILE in names:
        return [ARTIFACT_FILE, *(name for name in BESIDE if name in names)]
    found = weights_among(names, where)
    described = [name for name in names if name.endswith(".json") and "/" not in name]
    return [*found, *described, *(name for name in BESIDE if name in names)]


def _local(source: Path, name: str = "") -> Opened:
    """``name`` is that of the repository that a folder is of."""
    if source.is_dir():
        run = RunFolder(source)
        if run.artifact.exists():
            return Opened(read_artifact(run.artifact), run.artifact)
        if (source / WEIGHTS_FILE).exists() and is_noted(source / WEIGHTS_FILE):
            return Opened(read_weights(source / WEIGHTS_FILE), source / WEIGHTS_FILE)
        if is_weights(source):
            return _public(source, name)
        run.read_config()
        raise BytegolfError(f"the run {source} has no artifact yet: make one with `bytegolf export {source}`")
    if source.suffix in SAFE and is_noted(source):
        return Opened(read_weights(source), source)
    if source.suffix in (*SAFE, *PICKLED):
        return _public(source, name)
    return Opened(read_artifact(source), source)


def _public(source: Path, name: str) -> Opened:
    found = open_public(source, name=name)
    about = {"imported_from": str(source)}
    path = found.files[0] if len(found.files) == 1 else source
    artifact = opened(found.files, found.state, found.config, RawByteTokenizer().identity(), about)
    return Opened(artifact, path, public=found)
