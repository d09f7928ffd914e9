"""A submission's folder: the script, the artifact, the training log, the README, and what is claimed for them.

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

import tomli_w

from bytegolf.api import evaluation as scoring
from bytegolf.artifact import export as exporting
from bytegolf.artifact import loading as opening
from bytegolf.artifact.loading import LoadedModel
from bytegolf.artifact.results import LIMIT
from bytegolf.artifact.run_folder import RunFolder, data_folder
from bytegolf.config import to_dict
from bytegolf.data.dataset import open_split
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, lines_of, make_folder, write_bytes, write_json
from bytegolf.progress import Reporter
from bytegolf.results import to_json
from bytegolf.tools.bundle import entry, script
from bytegolf.tools.bundle.entry import Scored
from bytegolf.tools.bundle.script import NAME
from bytegolf.tools.submission.papers import CLAIMS, LOG, README, Claims, Submission

# ----------------------------------------------------------------------------------------------------------- the README


_UNPACK = rf"""## Read it

`{NAME}` is compressed; this prints it:

```sh
sed 's/^exec\(.*\)$/print(\1.decode())/' {NAME} | python
```

"""


def readme(opened: LoadedModel, claims: Claims, found: Scored, versions: dict[str, str], packed: bool) -> str:
    """Markdown; ``found`` is what the script's `eval` said; ``packed``: the script is compressed."""
    config = opened.config
    way = f"windows of {config.train.seq_len} tokens"
    way += f", each scored on its last {config.eval.stride}" if config.eval.stride else " without overlap"
    if config.eval.ttt.mode != "off":
        way += f"; test-time training ({config.eval.ttt.mode}) on what has been scored, and on nothing else"
    if config.eval.mix.on:
        way += "; mixed with context models, which learn from what has been scored, and from nothing else"
        if primer := opened.artifact.primer if config.eval.mix.primer else None:
            way += f" but {primer.size:,} bytes of training text, which the model's file carries"
    tail = f" ({found.tokens_dropped:,} behind them fill no window)" if found.tokens_dropped else ""
    size = f"{claims.bytes_model_int8_zlib:,} model + {claims.bytes_code:,} code = {claims.bytes_total:,} of {LIMIT:,}"
    settings = {"model": to_dict(config.model), "train": to_dict(config.train), "export": to_dict(config.export)}
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"""# {claims.name}

{claims.blurb}

| | |
|---|---|
| val_bpb | **{claims.val_bpb:.6f}** over the whole validation split |
| val_loss | {claims.val_loss:.6f} nats per token |
| before quantisation | {claims.pre_quant_val_bpb:.6f} |
| scored | {found.tokens:,} tokens, {found.bytes:,} bytes{tail} |
| how | {way}, computed in {found.precision} |
| training | {claims.step_stop:,} steps in {claims.wallclock_seconds:,} s |
| bytes | {size} |

## Run it

The script needs Python and public libraries alone; it was run with {libraries}. A C++ compiler, if there is one,
makes it faster on a CPU.

```sh
python {NAME} eval --data DATA
python {NAME} train --data DATA --out FOLDER
```

`DATA` is a folder of token shards (`fineweb_val_*.bin`, `fineweb_train_*.bin`) with its tokenizer. `eval --losses
FILE.npy` writes the nats and bytes of every scored target, in the order of the text.

{_UNPACK if packed else ""}## What the score rests on

- Training reads the training split; of the validation split it takes a sample's loss from time to time, to print it.
- Each target is scored once, from the tokens before it; windows are those above.
- The script is made of bytegolf's modules and of nothing else of ours; its size is that of `{NAME}`.
- `bytegolf audit` checks this folder against the rules, by reading the script and by running it.

## Configuration

```toml
{tomli_w.dumps(settings).strip()}
```
"""


# ----------------------------------------------------------------------------------------------------------- the folder


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
        opened = opening.load_own(source, data, precision="fp32")  # as the script does
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
