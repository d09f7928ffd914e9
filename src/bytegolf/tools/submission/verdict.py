"""The rules, and what an audit says of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["pass", "BROKEN", "doubt", "not checked"]

RULES = {
    "files": "README.md, submission.json, a training log and a script that runs from the folder",
    "fields": "submission.json has every field, of the right kind",
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
"""By name, in the order of the table: rules.md in our words."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at or tried."""

    rule: str
    outcome: Outcome
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """What all findings about a rule come to."""

    rule: str
    outcome: Outcome
    evidence: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: rule, about, outcome, evidence."""
        return {**asdict(self), "about": RULES[self.rule]}


def verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """A verdict a rule: broken if one finding says so, in doubt if one does, checked if any was."""
    found = list(findings)
    rows = []
    for rule in RULES:
        mine = [finding for finding in found if finding.rule == rule]
        outcomes = {finding.outcome for finding in mine}
        order: tuple[Outcome, ...] = ("BROKEN", "doubt", "pass")
        outcome: Outcome = next((one for one in order if one in outcomes), "not checked")
        told = sorted(mine, key=lambda finding: finding.outcome != outcome)
        rows.append(Verdict(rule, outcome, tuple(finding.evidence for finding in told) or ("nothing tells",)))
    return rows
