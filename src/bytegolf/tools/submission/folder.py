"""A submission's folder: the script, the artifact, the training log, and what is claimed for them.

What is claimed is what the script itself says of the artifact in the folder, in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from bytegolf.api import evaluation as scoring
from bytegolf.artifact import export as exporting
from bytegolf.artifact import loading as opening
from bytegolf.artifact.loading import LoadedModel
from bytegolf.artifact.results import LIMIT
from bytegolf.artifact.run_folder import RunFolder, data_folder
from bytegolf.data.shards import open_split
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, lines_of, make_folder, write_bytes, write_json
from bytegolf.progress import Reporter
from bytegolf.results import to_json
from bytegolf.tools.bundle import entry, script
from bytegolf.tools.submission.claims import CLAIMS, LOG, README, Claims, Submission
from bytegolf.tools.submission.readme import readme

TRACK = "non-record-unlimited-compute-16mb"


@dataclass(frozen=True)
class By:
    """What a submission says of itself besides figures."""

    author: str = ""
    github_id: str = ""
    name: str = ""
    """by default the configuration's"""
    blurb: str = ""
    """by default what the configuration is about"""
    track: str = TRACK


def submit(
    run: Path,
    out: Path,
    data: Path | None,
    by: By,
    reporter: Reporter | None = None,
    *,
    overrides: Sequence[str] = (),
    pack: bool = False,
) -> Submission:
    """Write the submission of the run ``run`` to the folder ``out``, which must not be there yet.

    The artifact is scored over the whole validation split in ``data`` (by default the run's own) by the script, and
    its weights before quantisation here. With ``overrides`` (of ``export.…`` and ``eval.…``) it is the artifact that
    `export` makes with them, and the run's own stays as it is. ``pack`` compresses the script, as its size counts.

    Raises BytegolfError if it is too large, was made by other means than the script has, or the script fails.
    """
    tell = reporter.progress if reporter else (lambda text: None)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BytegolfError(f"{out} exists already: name a new folder for the submission")
    folder = RunFolder(run)
    data = data or data_folder(run, folder.read_config(overrides))
    with contextlib.ExitStack() as stack:
        source = opening.artifact_path(run)
        if overrides:
            made = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            tell("quantising")
            source = exporting.export(run, made / entry.ARTIFACT, overrides, data).artifact
            if folder.tokenizer.exists():
                shutil.copyfile(folder.tokenizer, made / folder.tokenizer.name)
        opened = opening.load_model(source, data, precision="fp32")  # as the script does
        data = opening.data_of(opened, data)
        code = script.script(opened.config)
        code = script.packed(code) if pack else code
        _check(opened, run, len(code.encode()))
        open_split(data, opened.tokenizer.name, "val", opened.tokenizer.vocab_size)  # raises if there is none
        tell("scoring the weights before quantisation")
        whole = scoring.evaluate(opening.with_weights(opened, exporting.latest(run).state), data, reporter=reporter)
        make_folder(out.absolute().parent)
        stack.enter_context(disk_errors(out))
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix=".submission.", dir=out.absolute().parent))
        home = Path(name) / out.name
        home.mkdir()
        write_bytes(home / script.NAME, code.encode())
        shutil.copyfile(opened.path, home / entry.ARTIFACT)
        if folder.tokenizer.exists():
            shutil.copyfile(folder.tokenizer, home / folder.tokenizer.name)
        tell("scoring with the submission's own script")
        found = scored(home / script.NAME, data)
        write_bytes(home / LOG, _log(folder, found).encode())
        claims = _claims(opened, by, found, whole.bpb, (home / script.NAME).stat().st_size)
        write_json(home / CLAIMS, to_json(claims))
        write_bytes(home / README, readme(opened, claims, found, _versions(), pack).encode())
        home.chmod(0o755)
        if out.exists():
            out.rmdir()
        home.rename(out)
    return Submission(**vars(claims), folder=str(out))


def _check(opened: LoadedModel, run: Path, code: int) -> None:
    """Raise if the artifact cannot be submitted with so many bytes of code."""
    model = opened.artifact.file_bytes
    if code + model > LIMIT:
        raise BytegolfError(
            f"{model:,} bytes of model and {code:,} of code are {code + model - LIMIT:,} more than the {LIMIT:,} of a "
            f"submission: export with fewer bits (`bytegolf export {run} export.bits=6`), or train a smaller model"
        )
    if "fit_bytes" in opened.artifact.info:
        raise BytegolfError(
            f"{opened.path} was chosen by `export --fit`, which a submission's script does not do: export as "
            f"configured (`bytegolf export {run}`, with export.bits=… if need be)"
        )


def scored(path: Path, data: Path) -> entry.Scored:
    """The score of the artifact beside a submission's script, as that says in a new process that starts in its folder.

    Raises BytegolfError if it fails.
    """
    ran = subprocess.run(
        [sys.executable, path.name, "eval", "--data", str(data.absolute())],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        said = ran.stderr.strip().splitlines() or ["no words"]
        raise BytegolfError(f"the submission's script fails with eval --data {data.absolute()}: {said[-1][:300]}")
    return entry.Scored(**json.loads(lines_of(ran.stdout)[-1]))


def _claims(opened: LoadedModel, by: By, found: entry.Scored, whole: float, code: int) -> Claims:
    info = opened.artifact.info
    return Claims(
        author=by.author,
        github_id=by.github_id,
        name=by.name or opened.config.name,
        blurb=by.blurb or opened.config.about,
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        track=by.track,
        val_loss=found.val_loss,
        val_bpb=found.val_bpb,
        pre_quant_val_bpb=whole,
        step_stop=info.get("steps"),
        wallclock_seconds=info.get("train_seconds"),
        bytes_total=found.bytes_model + code,
        bytes_model_int8_zlib=found.bytes_model,
        bytes_code=code,
    )


def _log(folder: RunFolder, found: entry.Scored) -> str:
    """The training log: what it ran on, the rows of metrics.jsonl, the summary, and what the script ``found``, whose
    score is in fp32 (the summary's is in the precision of training); one JSON object a line.
    """
    lines = []
    for path, kind in ((folder.path / "environment.json", "environment"), (folder.summary, "summary")):
        if path.exists():
            with disk_errors(path, "read"):
                lines.append(json.dumps({"kind": kind, **json.loads(path.read_text(encoding="utf-8"))}))
    metrics = folder.path / "metrics.jsonl"
    with disk_errors(metrics, "read"):
        rows = lines_of(metrics.read_text(encoding="utf-8"))
    return "\n".join([*lines[:1], *rows, *lines[1:], json.dumps({"kind": "script", **to_json(found)})]) + "\n"


def _versions() -> dict[str, str]:
    """The script's libraries that are installed here, and their versions."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in script.requirements():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
