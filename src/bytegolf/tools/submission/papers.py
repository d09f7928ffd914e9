"""What a submission's folder consists of, and whether its papers agree with it: files, fields, sizes, claims."""

from __future__ import annotations

import codecs
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytegolf.artifact.results import LIMIT
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, parse_json
from bytegolf.folders import check_file
from bytegolf.tools.submission.sources import Sources
from bytegolf.tools.submission.verdict import Finding

# --------------------------------------------------------------------------------------------------------------- claims


CLAIMS = "submission.json"
LOG = "train.log"
README = "README.md"


@dataclass(frozen=True)
class Claims:
    """submission.json: the fields that the public ones have."""

    author: str
    github_id: str
    name: str
    blurb: str
    date: str
    """in UTC"""
    track: str
    val_loss: float
    """nats per token, as the script scores the artifact"""
    val_bpb: float
    pre_quant_val_bpb: float
    """of the weights before quantisation"""
    step_stop: int | None
    wallclock_seconds: float | None
    """of training"""
    bytes_total: int
    bytes_model_int8_zlib: int
    """the model's, whatever it is coded with"""
    bytes_code: int


@dataclass(frozen=True)
class Submission(Claims):
    """A submission that was made, and what it claims."""

    folder: str


# --------------------------------------------------------------------------------------------------------------- papers


REQUIRED = {"author": (), "name": ("run_name",), "date": (), "val_bpb": ("mean_val_bpb",)}
"""What submission.json must say, and under which other names public submissions say it."""

TEXT_FIELDS = frozenset(["author", "github_id", "name", "run_name", "blurb", "date", "track"])
NUMBERS = re.compile(r"(^|_)(bpb|loss|bytes|seconds|bits)(_|$)|^step_stop$")
TOTALS = (
    "bytes_total",
    "artifact_bytes",
    "artifact_bytes_max",
    "artifact_bytes_mean",
    "artifact_size_bytes",
    "total_bytes",
)
CODES = ("bytes_code", "code_bytes")
_POSITIVE = frozenset({"val_bpb", "val_loss", "bytes_total", "bytes_code"})
MODELS = ("bytes_model_int8_zlib", "bytes_model", "model_bytes")

CODE = frozenset({".py", ".pyx", ".cpp", ".cc", ".c", ".h", ".hpp", ".cu", ".cuh", ".so", ".triton", ".ptx", ".cubin"})
LOGS = frozenset({".log", ".txt", ".jsonl", ".out", ""})
NOTES = frozenset({".md", ".json", ".tsv", ".csv", ".sh", ".toml", ".yaml", ".yml", ".ipynb", ".html"})
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".svg", ".gif", ".pdf", ".webp"})
MOST_FILES = 1000
_CLAIMED = re.compile(r"submission.*\.json$")
_MOST_LOOKED_AT = 1 << 26
"""Bytes of a text that are read to tell what it is."""
_LONGEST_WORD = 65_536
"""Bytes without a space: beyond, a text is no prose and no log, but something packed."""


@dataclass(frozen=True)
class Papers:
    """A submission's folder, sorted."""

    folder: Path
    script: Path | None
    """the one that trains and scores: train_gpt.py, or the one that README.md or a shell script runs, or the largest"""
    files: tuple[Path, ...]
    """everything but links that lead out of the folder"""
    outside: tuple[Path, ...]
    """links that lead out of it, or nowhere"""
    logs: tuple[Path, ...]
    claims: dict[str, Any] | None
    """submission.json; None where it is missing or no JSON object"""

    def claim(self, *names: str) -> float | None:
        """The first number under one of these names."""
        for name in names:
            value = (self.claims or {}).get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        return None


def read_papers(folder: Path) -> Papers:
    """What lies in ``folder``, links resolved. Raises BytegolfError if it is no folder of a submission."""
    if not folder.is_dir():
        raise BytegolfError(f"{folder} is no folder: name the folder of a submission")
    root = folder.resolve()
    found: dict[Path, Path] = {}
    outside = []
    with disk_errors(folder, "read"):
        for home, folders, names in os.walk(folder, onerror=_raise):
            for name in [*names, *(one for one in folders if (Path(home) / one).is_symlink())]:
                path = Path(home) / name
                real = Path(os.path.realpath(path))  # `resolve` fails at a link to itself
                if path.is_symlink() and not (real.is_relative_to(root) and real.exists()):
                    outside.append(path)
                elif not real.is_dir():
                    check_file(path, "a submission holds files")
                    with path.open("rb"):  # all of it is looked at
                        pass
                    found.setdefault(real, path)  # each file once, by whichever name
            if len(found) > MOST_FILES:
                raise BytegolfError(f"{folder} holds more than {MOST_FILES} files: name the folder of one submission")
    if not found and not outside:
        raise BytegolfError(f"{folder} is empty: name the folder of a submission")
    files = tuple(sorted(found.values()))
    texts = [path for path in files if path.suffix in LOGS and not path.name.startswith(("LICENSE", "requirements"))]
    logs = tuple(path for path in texts if _is_paper(path))
    named = sorted(path for path in folder.glob("submission*.json") if path.is_file())
    claims = next((_claims(path) for path in [folder / CLAIMS, *named] if path.is_file()), None)
    return Papers(folder, _script(folder, files), files, tuple(sorted(outside)), logs, claims)


def _raise(error: OSError) -> None:
    raise error


def _script(folder: Path, files: tuple[Path, ...]) -> Path | None:
    scripts = [path for path in files if path.suffix == ".py" and path.stat().st_size]
    texts = " ".join(path.read_text(encoding="utf-8", errors="replace") for path in files
                     if path.suffix in (".md", ".sh") and path.stat().st_size < 10**6)  # fmt: skip

    def order(path: Path) -> tuple[bool, bool, bool, int]:
        named = re.compile(rf"\s(\./)?{re.escape(path.name)}")
        started = any(("python" in line or "torchrun" in line) and named.search(line) for line in texts.split("\n"))
        return path.name != "train_gpt.py", path.parent != folder, not started, -path.stat().st_size

    return min(scripts, key=order, default=None)


def _claims(path: Path) -> dict[str, Any] | None:
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_paper(path: Path) -> bool:
    """Whether a file is text for people."""
    if path.suffix in PICTURES:
        return True
    with path.open("rb") as file:
        contents = file.read(_MOST_LOOKED_AT)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(contents)  # the end may cut a character in two
    except UnicodeDecodeError:
        return False
    return b"\0" not in contents and max(map(len, contents.split()), default=0) <= _LONGEST_WORD


def check_papers(papers: Papers, sources: Sources | None) -> Iterator[Finding]:
    """Files, fields, sizes and what is claimed."""
    yield _files(papers)
    for path in papers.outside:
        place = path.relative_to(papers.folder)
        yield Finding("self-contained", "broken", f"{place} is a link that leads out of the folder, or nowhere")
    if papers.claims is None:
        yield Finding("fields", "broken", f"{CLAIMS} is missing, or no JSON object")
    else:
        yield from _fields(papers)
    yield from _sizes(papers, sources)
    yield _claimed(papers)


def _files(papers: Papers) -> Finding:
    readme = [path for path in papers.files if path.name.lower().startswith("readme")]
    names = [path.name for path in papers.files]
    missing = ["README.md"] * (not readme) + [CLAIMS] * (not any(map(_CLAIMED.match, names)))
    missing += ["a training log (.log, .txt or .jsonl)"] * (not papers.logs) + ["a script (.py)"] * (not papers.script)
    if missing:
        return Finding("files", "broken", f"missing: {', '.join(missing)}")
    assert papers.script
    return Finding("files", "shown", f"{readme[0].name}, {CLAIMS}, {papers.logs[0].name}, {papers.script.name}")


def _fields(papers: Papers) -> Iterator[Finding]:
    claims = papers.claims or {}
    wrong = [f"{key} is missing" for key, others in REQUIRED.items() if not {key, *others} & claims.keys()]
    empty = [key for key in REQUIRED if claims.get(key) in ("", None) and key in claims]
    for key, value in claims.items():
        if value is None:
            continue
        if key in TEXT_FIELDS and not isinstance(value, (str, int)):
            wrong.append(f"{key} is {value!r:.60}, no text")
        elif NUMBERS.search(key) and not isinstance(value, (dict, list)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number and key in _POSITIVE:
                wrong.append(f"{key} is {value!r:.60}, no number")
            elif number and not (math.isfinite(value) and (value >= 0 or key not in _POSITIVE)):
                wrong.append(f"{key} is {value!r}")
    if wrong:
        yield Finding("fields", "broken", "; ".join(wrong)[:500])
    elif empty:
        yield Finding("fields", "not proved", f"empty: {', '.join(empty)}")
    else:
        yield Finding(
            "fields", "shown", f"{', '.join(REQUIRED)} and {len(claims) - len(REQUIRED)} more, of the right kind"
        )
    scores = _seeds(claims)
    bpb = papers.claim("val_bpb", "mean_val_bpb")
    if scores and bpb is not None:
        mean = sum(scores) / len(scores)
        close = abs(mean - bpb) <= 5e-4 or any(abs(one - bpb) <= 5e-5 for one in scores)
        said = f"the mean of {len(scores)} seeds is {mean:.5f}, val_bpb {bpb:.5f}"
        yield Finding("fields", "shown" if close else "not proved", said)


def _seeds(claims: dict[str, Any]) -> list[float]:
    found = claims.get("seed_results")
    rows = list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else []
    values = [row.get("val_bpb") if isinstance(row, dict) else row for row in rows]
    return [float(one) for one in values if isinstance(one, (int, float)) and 0 < one < 10]


def _sizes(papers: Papers, sources: Sources | None) -> Iterator[Finding]:
    """Count everything that is no paper; a paper that the script opens is none."""
    opened = {path.resolve() for path in sources.opened} if sources else set()
    code = weights = texts = 0
    others, counted = [], []
    for path in papers.files:
        size, place = path.stat().st_size, path.relative_to(papers.folder).as_posix()
        used = path == papers.script or path.resolve() in opened
        if path.suffix == ".py" and not used:
            others.append(place)
        elif path.suffix in CODE:
            code += size
        elif path.suffix == ".model" and not weights and size < 10**6 and not _holds_more(path):
            continue  # a tokenizer of SentencePiece: public convention counts it not
        elif (
            used
            or not (path.suffix in LOGS | NOTES | PICTURES | {".vocab"} or path.name.startswith("LICENSE"))
            or not _is_paper(path)
        ):
            weights += size
            counted.append(place)
        else:
            texts += size
    if sources and sources.unseen and weights + code + texts > LIMIT >= weights + code:
        said = f"{texts:,} bytes of texts are not counted, and which files {sources.unseen[0]} opens is not seen"
        yield Finding("size", "not proved", said)
    if others:
        yield Finding("size", "nothing found", f"not counted, as the script does not use them: {', '.join(others)}")
    yield from _against(papers, code, weights, counted)


def _holds_more(path: Path) -> bool:
    """Whether a tokenizer file holds much more than its pieces."""
    try:
        import sentencepiece

        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        known = sum(len(pieces.IdToPiece(number).encode()) + 16 for number in range(pieces.vocab_size()))
    except (ImportError, OSError, RuntimeError):
        return True
    return path.stat().st_size > known + 400_000  # NFKC's rules take some 240 kB


def _against(papers: Papers, code: int, weights: int, counted: list[str]) -> Iterator[Finding]:
    total, stated_code, stated_model = papers.claim(*TOTALS), papers.claim(*CODES), papers.claim(*MODELS)
    here = code + weights
    names = f" ({', '.join(counted[:4])}{', …' if len(counted) > 4 else ''})" if counted else ""
    if here > LIMIT:
        yield Finding("size", "broken", f"{weights:,} model{names} + {code:,} code = {here:,} bytes of {LIMIT:,}")
        return
    claimed = total if total is not None else stated_code + stated_model if stated_code and stated_model else None
    if claimed is not None and claimed > LIMIT:
        yield Finding("size", "broken", f"{int(claimed):,} bytes are claimed, and the limit is {LIMIT:,}")
    model_is_here = weights >= 1000 and (claimed is None or here >= 0.5 * claimed)
    if model_is_here:
        yield Finding("size", "shown", f"{weights:,} model{names} + {code:,} code = {here:,} bytes of {LIMIT:,}")
    elif claimed is not None:
        said = f"{int(claimed):,} bytes are claimed; the model is not here, {code:,} bytes of code are{names}"
        yield Finding("size", "not proved", said)
    else:
        yield Finding(
            "size", "not proved", f"{here:,} bytes are here; the model is neither here nor is a total claimed"
        )
    if stated_code is not None and stated_code < code:
        yield Finding("size", "not proved", f"bytes_code is claimed to be {int(stated_code):,}, and it is {code:,}")
        if claimed is not None and claimed + code - stated_code > LIMIT:
            yield Finding(
                "size", "broken", f"with all {code:,} bytes of code, {claimed + code - stated_code:,.0f} are too many"
            )
    if model_is_here and claimed is not None and claimed < here:
        yield Finding("size", "not proved", f"{int(claimed):,} bytes are claimed in all, and they are {here:,}")
    if total is not None and stated_code is not None and stated_model is not None:
        difference = stated_code + stated_model - total
        if abs(difference) > 0.001 * total:
            yield Finding(
                "size",
                "not proved",
                f"claims disagree: code and model come to {total + difference:,.0f}, not {total:,.0f}",
            )


_NUMBER = re.compile(r"\d\.\d{3,}")


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_LOOKED_AT).decode(errors="replace")


def _claimed(papers: Papers) -> Finding:
    """Whether a log says what is claimed; a run says more."""
    bpb = papers.claim("val_bpb", "mean_val_bpb")
    if bpb is None:
        return Finding("as claimed", "not proved", f"{CLAIMS} claims no val_bpb")
    scores = [bpb, *_seeds(papers.claims or {})]
    for path in papers.logs:
        numbers = {float(one) for one in _NUMBER.findall(_beginning(path))}
        if any(abs(number - one) < 6e-5 for number in numbers for one in scores):
            return Finding(
                "as claimed", "nothing found", f"{path.name} has the score that is claimed; no run was made here"
            )
    return Finding("as claimed", "not proved", f"no log has the claimed {bpb:.4f}")
