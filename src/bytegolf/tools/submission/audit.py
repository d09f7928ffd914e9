"""An audit: everything that is looked at and tried, rule by rule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bytegolf.artifact.pack import open_payload
from bytegolf.data.shards import open_split
from bytegolf.data.tokenizer import load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.tools.submission.flow import check_flow
from bytegolf.tools.submission.papers import Papers, check_papers, read_papers
from bytegolf.tools.submission.reading import check_text, parse
from bytegolf.tools.submission.trial import LIMITS, Limits, not_run, trial
from bytegolf.tools.submission.verdict import Finding, Outcome, Verdict, verdicts

MOST_CODE = 4_000_000
"""Bytes of a script beyond which nobody reads it."""


def audit(folder: Path, data: Path | None, tokenizer: str | None = None, limits: Limits = LIMITS) -> list[Verdict]:
    """A verdict a rule on the submission in ``folder``; with ``data`` its script runs on the validation split there.

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
    findings = list(check_papers(papers))
    findings += _static(papers)
    if papers.script is None:
        findings += not_run("there is no script")
    elif data is None:
        findings += not_run("no data were given to run it on (--data)")
    else:
        findings += trial(papers.script, data, stream, reader, _claim(papers), limits)
    return verdicts(findings)


def _static(papers: Papers) -> Iterator[Finding]:
    """What the scripts' texts say."""
    trees = {}
    for path in papers.scripts:
        name = str(path.relative_to(papers.folder))
        tree = parse(path) if path.stat().st_size <= MOST_CODE else None
        if tree is None:
            yield Finding("files", "BROKEN", f"{name} cannot be read as Python")
        else:
            trees[name] = tree
    if trees:
        yield from check_text(trees)
        yield from check_flow(trees)


def _claim(papers: Papers) -> float | None:
    claimed = (papers.claims or {}).get("val_bpb")
    return float(claimed) if isinstance(claimed, (int, float)) and math.isfinite(claimed) else None


def _tokenizer(papers: Papers) -> str:
    """The tokens that a bytegolf artifact in the folder reads."""
    for path in papers.models:
        try:
            identity: Any = open_payload(path).box.header.get("tokenizer")
        except BytegolfError:
            continue
        if isinstance(identity, dict) and isinstance(identity.get("name"), str):
            return str(identity["name"])
    return "byte260"


_STYLE: dict[Outcome, str] = {"pass": "green", "BROKEN": "bold red", "doubt": "yellow", "not checked": "dim"}


def table(found: list[Verdict]) -> Table:
    """The verdicts for people: a row a rule, a line a piece of evidence."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("rule", no_wrap=True)
    drawn.add_column("verdict", no_wrap=True)
    drawn.add_column("evidence")
    for verdict in found:
        evidence = Text("\n".join(verdict.evidence))
        drawn.add_row(verdict.rule, Text(verdict.outcome, style=_STYLE[verdict.outcome]), evidence)
    return drawn
