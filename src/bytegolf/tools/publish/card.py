"""A model card, written from what a run left: nothing in it is typed by hand, nothing claimed that is not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bytegolf.analyze.segment import STANDARD_TEXT, brackets
from bytegolf.api.model import Model
from bytegolf.artifact.run_folder import RunFolder, data_folder
from bytegolf.config import Config
from bytegolf.data.dataset import MANIFEST, read_manifest
from bytegolf.errors import BytegolfError
from bytegolf.files import read_json_object


def card(model: Model, folder: Path, repository: str, licence: str, sizes: Mapping[str, int]) -> str:
    """README.md of ``model``, whose files lie in ``folder``; ``sizes`` are those of the published files, in bytes."""
    run = RunFolder(folder)
    summary = read_json_object(run.summary, "summary") if run.summary.exists() else {}
    made = folder / "environment.json"
    environment = read_json_object(made, "record of the run") if made.exists() else {}
    front = {
        "license": licence,
        "library_name": "bytegolf",
        "pipeline_tag": "text-generation",
        "tags": ["bytegolf", "h-net", "byte-level", "learned-tokenization"],
    }
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    parts = [
        f"---\n{head}\n---",
        f"# {repository.partition('/')[2]}",
        f"{model.config.about or model.name}. {_what(model)}",
        _use(repository),
        _data(model.config, folder, environment),
        _score(model, summary, repository),
        _picture(model),
        _sizes(sizes),
        _made(summary, environment),
        _licence(licence),
        _limits(model),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(model: Model) -> str:
    chunked = f"{model.levels} {'level' if model.levels == 1 else 'levels'} of chunks" if model.levels else "flat"
    return f"A language model over {model.tokenizer.name} tokens with {model.parameters:,} weights, {chunked}."


def _use(repository: str) -> str:
    return f"""## Use

```python
import bytegolf  # pip install bytegolf[hub]

model = bytegolf.load("hf:{repository}")
model.score("a text").bpb  # bits per byte
model.generate("A prompt", max_bytes=200)
model.chunks("a text")
```"""


def _data(config: Config, folder: Path, environment: Mapping[str, Any]) -> str:
    lines = ["## Data", ""]
    found = data_folder(folder, config) if environment else None
    manifest = read_manifest(found) if found is not None and (found / MANIFEST).exists() else {}
    if manifest.get("corpus"):
        corpus = json.dumps(manifest["corpus"], ensure_ascii=False)
        lines.append(f"Corpus: `{corpus}`, split `{manifest.get('split')}`.")
    for entry in manifest.get("datasets", []):
        stats = entry.get("stats", {})
        if str(entry.get("name", "")).endswith(f"_{config.data.tokenizer}") and stats:
            told = (stats.get(key, 0) for key in ("docs_train", "bytes_train", "docs_val", "bytes_val"))
            lines.append("{:,} documents ({:,} bytes) to train on, {:,} ({:,} bytes) to validate.".format(*told))
    if len(lines) == 2:
        lines.append("What it was trained on is not recorded with it.")
    return "\n".join(lines)


def _score(model: Model, summary: Mapping[str, Any], repository: str) -> str:
    if not summary:
        return "## Score\n\nNo score is recorded with it."
    how = f"windows of {summary['seq_len']:,} tokens"
    how += f", each scored on its last {summary['stride']:,}" if summary.get("stride") else " without overlap"
    part = "a part of" if summary.get("subset") else "the whole of"
    return f"""## Score

**{summary["bpb"]:.4f} bits per byte** over {part} the validation split ({summary["tokens"]:,} tokens,
{summary["bytes"]:,} bytes; {how}, computed in {summary["precision"]}), of the published file itself, SHA-256
`{summary["artifact_sha256"]}`:

```sh
bytegolf eval hf:{repository} --data DATA
```"""


def _picture(model: Model) -> str:
    if not model.module.levels():
        return ""
    lines = ["## Chunks", "", "What it makes of two sentences, level by level, outermost first:", "", "```"]
    for level in range(model.levels):
        lines.append(brackets(model.segment(STANDARD_TEXT, level).chunks()))
    return "\n".join([*lines, "```"])


def _sizes(sizes: Mapping[str, int]) -> str:
    rows = [f"| `{name}` | {size:,} |" for name, size in sizes.items()]
    return "\n".join(["## Files", "", "| file | bytes |", "|---|---|", *rows])


def _made(summary: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    if not environment:
        return ""
    lines = ["## How it was made", "", "```sh", " ".join(map(str, environment.get("command", []))), "```", ""]
    if summary:
        pace = f"{summary['steps']:,} steps in {summary['train_seconds']:,.0f} s"
        lines.append(f"{pace} on {environment.get('processor')}")
        lines[-1] += f" ({environment['cuda']})" if environment.get("cuda") else ""
        lines[-1] += f", seed {summary['seed']}."
    packages = ", ".join(f"{name} {version}" for name, version in (environment.get("packages") or {}).items())
    lines.append(f"bytegolf {environment.get('bytegolf')}, Python {environment.get('python')}, {packages}.")
    return "\n".join(lines)


def _licence(licence: str) -> str:
    if licence == "unknown":
        return "## Licence\n\nNone was given."
    return f"## Licence\n\n{licence}"


def _limits(model: Model) -> str:
    return f"""## Limits

A small model that continues text as its training data would. What it writes is not checked, may be wrong or
offensive, and may repeat passages of that data. It reads windows of {model.config.train.seq_len:,} tokens; its score
holds for text of the same kind, and chunks of other languages or of code may look different from those above."""


def check_licence(licence: str) -> None:
    """Raise unless a licence is a name as the hub has them."""
    if not licence or not all(char.isalnum() or char in "-._" for char in licence):
        raise BytegolfError(f"--licence {licence!r} is no licence's name: write it as the hub does, such as mit")
