"""An audit: everything that is looked at and tried, rule by rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bytegolf.artifact import container
from bytegolf.artifact.payload import header_of, open_payload
from bytegolf.data.dataset import open_split
from bytegolf.data.tokenizer import load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.ops.compiler import find_compiler
from bytegolf.tools.bundle import script as bundle
from bytegolf.tools.submission.decoders import MOST_BYTES
from bytegolf.tools.submission.papers import CLAIMS, Papers, check_papers, read_papers
from bytegolf.tools.submission.reading import check_text
from bytegolf.tools.submission.sources import Sources, why_not
from bytegolf.tools.submission.trial import LIMITS, Limits, not_run, trial
from bytegolf.tools.submission.unpack import read_sources
from bytegolf.tools.submission.verdict import TEXTUAL, Audit, Finding, conclude


def audit(folder: Path, data: Path | None, tokenizer: str | None = None, limits: Limits = LIMITS) -> Audit:
    """The audit of the submission in ``folder``; with ``data`` its script runs on the validation split there.

    ``tokenizer`` names the split's tokens: by default those of a bytegolf artifact in the folder, else byte260.

    Raises BytegolfError where there is no submission or no data to look at.
    """
    papers = read_papers(folder)
    name = tokenizer or _tokenizer(papers)
    if data is not None:
        reader = load_tokenizer(name, data)
        stream = open_split(data, name, "val", reader.vocab_size)
        if len(stream) < 64:
            raise BytegolfError(f"the validation split in {data} has {len(stream)} tokens, too few for an audit")
    sources = read_sources(folder, papers.script) if papers.script else None
    ours = sources is not None and is_ours(papers)
    if sources is not None and ours:
        sources.obstacles.clear()  # what this bytegolf writes into a script is known
    findings = list(check_papers(papers, sources))
    findings += _static(papers, sources, ours)
    if papers.script is None:
        findings += not_run("there is no script")
    elif data is None:
        findings += not_run("no data were given to run it on (--data)")
    elif sources is not None:
        texts = "\n".join(_strings(sources))
        if "--losses" in texts.split("\n"):
            claim = papers.claim("val_bpb", "mean_val_bpb")
            findings += trial(papers.script, data, stream, reader, claim, limits, ours and bool(find_compiler()))
        else:
            findings += not_run("the script has no `eval --data FOLDER --losses FILE.npy` (docs/rules.md)")
    return conclude(findings, papers.script.relative_to(folder).as_posix() if papers.script else "")


def is_ours(papers: Papers) -> bool:
    """Whether the script is, byte for byte, what `bytegolf submit` writes for the artifact beside it.

    Only in a folder that holds nothing else, since a `torch.py` would be imported by our script as by any other.
    """
    assert papers.script is not None
    names = {path.relative_to(papers.folder).as_posix() for path in papers.files}
    if papers.outside or not names <= {bundle.NAME, "artifact.bgolf", "train.log", "README.md", CLAIMS}:
        return False
    text = papers.script.read_bytes()
    for path in papers.files:
        if path.suffix != ".bgolf":
            continue
        try:
            box = container.read(path)
            code = bundle.script(header_of(box, str(path)).config)
        except BytegolfError:
            continue
        if text in (code.encode(), bundle.packed(code).encode()):
            return True
    return False


def _strings(sources: Sources) -> Iterator[str]:
    """Every string in the code."""
    import ast

    for source in sources.every():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _static(papers: Papers, sources: Sources | None, ours: bool) -> Iterator[Finding]:
    """What the texts say; ``ours`` is whether the script is known byte for byte."""
    if papers.script is None:
        return
    if sources is not None:
        yield from check_text(sources, ours)
        return
    large = papers.script.stat().st_size > MOST_BYTES
    why = f"it is larger than {MOST_BYTES:,} bytes" if large else why_not(papers.script.read_bytes())
    for rule in ("files", *TEXTUAL):
        yield Finding(rule, "not proved", f"{papers.script.name} cannot be read as Python: {why}")


def _tokenizer(papers: Papers) -> str:
    """The tokens that a bytegolf artifact in the folder reads."""
    for path in papers.files:
        if path.suffix != ".bgolf":
            continue
        try:
            identity: Any = open_payload(path).box.header.get("tokenizer")
        except BytegolfError:
            continue
        if isinstance(identity, dict) and isinstance(identity.get("name"), str):
            return str(identity["name"])
    return "byte260"
