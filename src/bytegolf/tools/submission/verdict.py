"""The rules, and what an audit says of each and of the whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

Outcome = Literal["shown", "not proved", "broken"]
Whole = Literal["passed", "unproved", "broken"]

RULES = {
    "files": "README.md, submission.json, a training log and a script that runs from the folder",
    "fields": "submission.json names author, name, date and val_bpb; its fields are of the right kind and agree",
    "size": "code and compressed model together take at most 16,000,000 bytes, and what is claimed",
    "self-contained": "nothing of our own is imported, and no file read, from outside the folder and the data",
    "no network": "training and evaluation use no network",
    "validation unseen": "no validation token reaches training or calibration",
    "score, then update": "what adapts on a token does so after its score is booked, and rescores nothing",
    "causal": "a score depends on the artifact and the tokens before it alone",
    "normalised": "probabilities are a distribution over the alphabet, fixed before the token is seen",
    "counted once": "every target is scored once, over the bytes of the text, and the whole split is",
    "as claimed": "the score is the one claimed",
}
"""By name, in the order of the table: docs/rules.md in short."""

TEXTUAL = ("self-contained", "no network", "validation unseen", "score, then update", "normalised", "counted once")
"""Rules that code which was not read could break."""

EXITS: dict[Whole, int] = {"passed": 0, "broken": 1, "unproved": 3}
"""The exit codes of `bytegolf audit`; 2 is a command line that is not understood."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at or tried.

    ``nothing found`` is what a search says that found no breach: it shows nothing by itself.
    """

    rule: str
    outcome: Outcome | Literal["nothing found"]
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """What all findings about a rule come to."""

    rule: str
    """the rule's name"""
    about: str
    """the rule"""
    outcome: Outcome
    """shown (and how), not proved (and why), or broken (and where)"""
    evidence: tuple[str, ...]
    """what was found, the decisive first"""


@dataclass(frozen=True)
class Audit:
    """What `bytegolf audit` says of a submission."""

    verdict: Whole
    """passed (every rule is shown), unproved (none is broken, some are not proved), or broken"""
    passed: bool
    """whether every rule is shown"""
    unproved: int
    """how many rules are not proved"""
    script: str
    """the script that was audited; empty if there is none"""
    verdicts: tuple[Verdict, ...]
    """a verdict per rule: rule, about, outcome, evidence"""

    @property
    def summary(self) -> str:
        """The whole in a sentence."""
        if self.verdict == "passed":
            return f"passed: all {len(self.verdicts)} rules are shown"
        unproved = f"{self.unproved} of {len(self.verdicts)} rules not proved"
        if self.verdict == "unproved":
            return f"nothing broken, but {unproved}: not passed"
        broken = [row.rule for row in self.verdicts if row.outcome == "broken"]
        return f"broken: {', '.join(broken)}; {unproved}"


def conclude(findings: Iterable[Finding], script: str) -> Audit:
    """The audit of all findings: a rule is broken if one says so, else not proved or shown if one does."""
    found = list(findings)
    rows = []
    for rule, about in RULES.items():
        mine = [finding for finding in found if finding.rule == rule]
        outcomes = {finding.outcome for finding in mine}
        order: tuple[Outcome, ...] = ("broken", "not proved", "shown")
        outcome: Outcome = next((one for one in order if one in outcomes), "not proved")
        told = sorted(mine, key=lambda finding: finding.outcome != outcome)
        evidence = tuple(dict.fromkeys(finding.evidence for finding in told)) or ("nothing tells",)
        rows.append(Verdict(rule, about, outcome, evidence))
    unproved = sum(row.outcome == "not proved" for row in rows)
    whole: Whole = "broken" if any(row.outcome == "broken" for row in rows) else "unproved" if unproved else "passed"
    return Audit(whole, whole == "passed", unproved, script, tuple(rows))


_STYLE: dict[Outcome, str] = {"shown": "green", "broken": "bold red", "not proved": "yellow"}
_MOST_EVIDENCE = 6


def table(audit: Audit) -> Table:
    """The verdicts for people: a row a rule, a line a piece of evidence."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("rule", no_wrap=True)
    drawn.add_column("outcome", no_wrap=True)
    drawn.add_column("evidence")
    for row in audit.verdicts:
        more = len(row.evidence) - _MOST_EVIDENCE
        lines = [*row.evidence[:_MOST_EVIDENCE], *([f"and {more} more (--json)"] if more > 0 else [])]
        drawn.add_row(row.rule, Text(row.outcome, style=_STYLE[row.outcome]), Text("\n".join(lines)))
    return drawn


def markdown(audit: Audit) -> str:
    """A summary to paste under a pull request."""
    script = audit.script.replace("`", "'") or "none"
    lines = [f"**`bytegolf audit`: {audit.summary}.** Script: `{_printable(script)}`.", ""]
    lines += ["| rule | outcome | evidence |", "|---|---|---|"]
    for row in audit.verdicts:
        evidence = _plain("; ".join(row.evidence[:2]))
        lines.append(f"| {row.rule} | {_MARKS[row.outcome]} {row.outcome} | {evidence} |")
    lines += ["", "*Shown* by a run or by the papers; *not proved* is no accusation: nobody has shown it yet."]
    return "\n".join(lines)


_MARKS: dict[Outcome, str] = {"shown": "✅", "not proved": "❔", "broken": "❌"}


def _printable(text: str) -> str:
    """A name with what cannot be printed, or would end a line, as Python writes it."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _plain(text: str) -> str:
    """Evidence in a cell of a table: no markup of its own, no line breaks, not too long."""
    short = _printable(" ".join(text.split()))
    short = short if len(short) <= 240 else f"{short[:240]}…"
    return "".join(f"\\{one}" if one in "\\|`*_<>[]#@!" else one for one in short)
