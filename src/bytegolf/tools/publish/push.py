"""A model onto the hub: its files, a card, one commit."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bytegolf import hub
from bytegolf.api.model import Model
from bytegolf.artifact.loading import LoadedModel, load_model
from bytegolf.artifact.run_folder import ARTIFACT_FILE, RunFolder
from bytegolf.artifact.weights_file import WEIGHTS_FILE, write_weights
from bytegolf.errors import BytegolfError
from bytegolf.files import check_replaceable, write_bytes
from bytegolf.tools.publish.card import card, check_licence
from bytegolf.tools.publish.results import PushResult

CARD = "README.md"


def push(source: Path, repository: str, licence: str = "unknown", private: bool = False) -> PushResult:
    """Publish the model of a run, an artifact or imported weights as one commit.

    Raises BytegolfError: there is no such model, ``repository`` is no name, nobody is logged in, or the network broke
    off; then what has arrived is not sent again.
    """
    hub.check_name(repository)
    check_licence(licence)
    loaded = load_model(source, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        files = _files(loaded, Path(scratch))
        text = _card(loaded, repository, licence, files)
        write_bytes(Path(scratch) / CARD, text.encode())
        files[CARD] = Path(scratch) / CARD
        size = sum(path.stat().st_size for path in files.values())
        commit, url = hub.push(files, repository, f"bytegolf: {loaded.config.name}", private)
    return PushResult(repository, commit, url, list(files), size, loaded.artifact.sha256)


def write_card(source: Path, repository: str, licence: str, target: Path) -> None:
    """Write the card that ``push`` would publish; one that is there is made anew."""
    check_replaceable(target, b"---\n")
    hub.check_name(repository)
    check_licence(licence)
    loaded = load_model(source, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        text = _card(loaded, repository, licence, _files(loaded, Path(scratch)))
    write_bytes(target, text.encode())


def _files(loaded: LoadedModel, scratch: Path) -> dict[str, Path]:
    """What is published, by name there; what is made for it lies in ``scratch``."""
    if loaded.origin or loaded.path.is_dir():
        raise BytegolfError(f"{loaded.path} is someone else's model: import it, and push what was written")
    run = RunFolder(loaded.path.parent)
    files = {}
    if loaded.path.suffix == Path(WEIGHTS_FILE).suffix:
        files[WEIGHTS_FILE] = loaded.path
    else:
        files[ARTIFACT_FILE] = loaded.path
        files[WEIGHTS_FILE] = scratch / WEIGHTS_FILE
        artifact = loaded.artifact
        write_weights(files[WEIGHTS_FILE], artifact.state, loaded.config, artifact.tokenizer, artifact.info)
    files[run.config.name] = scratch / run.config.name
    write_bytes(files[run.config.name], loaded.config.to_toml().encode())
    for beside in (run.tokenizer, run.summary if loaded.path == run.artifact else None):
        if beside is not None and beside.exists():
            files[beside.name] = beside
    return files


def _card(loaded: LoadedModel, repository: str, licence: str, files: dict[str, Path]) -> str:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    return card(Model(loaded), loaded.path.parent, repository, licence, sizes)
