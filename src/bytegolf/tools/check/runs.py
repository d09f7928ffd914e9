"""Runs and submissions: what a folder of ours with a model holds."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bytegolf.artifact import checkpoint_folder as store
from bytegolf.artifact.container import read as read_container
from bytegolf.artifact.run_folder import ARTIFACT_FILE, RunFolder
from bytegolf.config import Config
from bytegolf.data.manifest import DataIdentity
from bytegolf.errors import BytegolfError, counted
from bytegolf.files import disk_errors, read_json_object, sha256
from bytegolf.tools.bundle import script
from bytegolf.tools.check.files import Found, artifact, checkpoint, hashed, judged, plain
from bytegolf.tools.check.results import Verdict
from bytegolf.tools.submission import claims as submission
from bytegolf.training.metrics_file import read_metrics


def reader(path: Path) -> Callable[[Path], Iterable[Verdict]] | None:
    """What reads a checkpoint, a submission or a run; None for a folder that is neither."""
    if store.is_name(path.name):
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
    for path in store.checkpoints(run.checkpoints):
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
