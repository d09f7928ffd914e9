"""What a submission's folder consists of, and whether its papers agree with it: files, fields, sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, parse_json
from bytegolf.tools.bundle.ledger import LIMIT
from bytegolf.tools.submission.folder import CLAIMS, README
from bytegolf.tools.submission.verdict import Finding

FIELDS: dict[str, type] = {
    **dict.fromkeys(("author", "github_id", "name", "blurb", "date", "track"), str),
    **dict.fromkeys(("val_loss", "val_bpb", "pre_quant_val_bpb", "wallclock_seconds"), float),
    **dict.fromkeys(("step_stop", "bytes_total", "bytes_model_int8_zlib", "bytes_code"), int),
}
"""formats.md's; a float may be written as an integer."""

CODE = frozenset({".py", ".cpp", ".cc", ".c", ".h", ".hpp", ".cu", ".cuh", ".sh", ".so", ".toml", ".yaml", ".triton"})
TEXTS = frozenset({".md", ".json", ".log", ".txt", ".jsonl", ".tsv", ".csv", ".png"})
TOKENIZER = frozenset({".model", ".vocab"})
MOST_FILES = 1000


@dataclass(frozen=True)
class Papers:
    """A submission's folder, sorted."""

    folder: Path
    scripts: tuple[Path, ...]
    code: tuple[Path, ...]
    """what is written by hand or generated: it counts as code, the scripts among it"""
    models: tuple[Path, ...]
    """what is neither code nor papers nor a tokenizer"""
    logs: tuple[Path, ...]
    claims: dict[str, Any] | None
    """submission.json; None where it is missing or no JSON object"""

    @property
    def script(self) -> Path | None:
        """The one that trains and scores: train_gpt.py, or the largest."""
        named = [path for path in self.scripts if path.name == "train_gpt.py"]
        return next(iter(named or sorted(self.scripts, key=lambda path: -path.stat().st_size)), None)


def read_papers(folder: Path) -> Papers:
    """What lies in ``folder``; links are not followed. Raises BytegolfError if it is no folder of a submission."""
    if not folder.is_dir():
        raise BytegolfError(f"{folder} is no folder: name the folder of a submission")
    with disk_errors(folder, "read"):
        files = []
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts:
                files.append(path)
            if len(files) > MOST_FILES:
                raise BytegolfError(f"{folder} holds more than {MOST_FILES} files: name the folder of one submission")
    if not files:
        raise BytegolfError(f"{folder} is empty: name the folder of a submission")
    files.sort()
    code = tuple(path for path in files if path.suffix in CODE)
    others = [path for path in files if path.suffix not in CODE | TEXTS | TOKENIZER and path.name != "LICENSE"]
    logs = [path for path in files if path.suffix in {".log", ".txt", ".jsonl"} and path.name != "requirements.txt"]
    scripts = tuple(path for path in code if path.suffix == ".py")
    return Papers(folder, scripts, code, tuple(others), tuple(logs), _claims(folder / CLAIMS))


def _claims(path: Path) -> dict[str, Any] | None:
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def check_papers(papers: Papers) -> Iterator[Finding]:
    """Files, fields and sizes."""
    yield _files(papers)
    if papers.claims is None:
        yield Finding("fields", "BROKEN", f"{CLAIMS} is missing, or no JSON object")
    else:
        yield _fields(papers.claims)
    yield from _sizes(papers)


def _files(papers: Papers) -> Finding:
    missing = [name for name in (README, CLAIMS) if not (papers.folder / name).is_file()]
    missing += ["a training log (.log, .txt or .jsonl)"] * (not papers.logs) + ["a script (.py)"] * (not papers.scripts)
    if missing:
        return Finding("files", "BROKEN", f"missing: {', '.join(missing)}")
    assert papers.script
    return Finding("files", "pass", f"{README}, {CLAIMS}, {papers.logs[0].name}, {papers.script.name}")


def _fields(claims: dict[str, Any]) -> Finding:
    wrong = [f"{key} is missing" for key in FIELDS if key not in claims]
    for key, kind in FIELDS.items():
        value = claims.get(key)
        if key not in claims:
            continue
        if kind is str and not isinstance(value, str):
            wrong.append(f"{key} is {value!r}, no text")
        elif kind is not str and (isinstance(value, bool) or not isinstance(value, (kind, int))):
            wrong.append(f"{key} is {value!r}, no number")
        elif kind is not str and not (math.isfinite(float(value or 0)) and float(value or 0) >= 0):
            wrong.append(f"{key} is {value!r}")
    if wrong:
        return Finding("fields", "BROKEN", "; ".join(wrong)[:500])
    empty = [key for key, kind in FIELDS.items() if kind is str and not claims[key]]
    if empty:
        return Finding("fields", "doubt", f"empty: {', '.join(empty)}")
    return Finding("fields", "pass", f"all {len(FIELDS)} are there")


def _sizes(papers: Papers) -> Iterator[Finding]:
    claims = papers.claims or {}
    code, model = (sum(path.stat().st_size for path in paths) for paths in (papers.code, papers.models))
    claimed = {key: claims.get(f"bytes_{key}") for key in ("code", "model_int8_zlib", "total")}
    if not papers.models:
        stated = claimed["model_int8_zlib"]
        if not isinstance(stated, int):
            yield Finding("size", "not checked", f"{code:,} bytes of code; the model is neither here nor claimed")
            return
        model = stated
    total = code + model
    said = f"{model:,} model{'' if papers.models else ' (claimed: it is not here)'} + {code:,} code = {total:,} bytes"
    yield Finding("size", "pass" if total <= LIMIT else "BROKEN", f"{said} of {LIMIT:,}")
    for key, found in (("code", code), ("model_int8_zlib", model), ("total", total)):
        value = claimed[key]
        if isinstance(value, int) and value < found:
            yield Finding("size", "BROKEN", f"bytes_{key} is claimed to be {value:,}, and it is {found:,}")
