"""What a check reports, as types: plain Python, so that the verb's help can be made from them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bytegolf.folders import LeftOut

Finding = Literal["whole", "no checksum", "unfinished", "damaged"]
"""``no checksum``: by its structure alone it could be whole, and nothing was recorded to tell for sure."""


@dataclass(frozen=True)
class Verdict:
    """What came of looking at a file or a checkpoint."""

    path: Path
    kind: str
    finding: Finding
    evidence: str
    """what was compared, or what is wrong and what to do about it"""


@dataclass(frozen=True)
class CheckResult:
    """What came of looking at all of them."""

    damaged: int
    """how many are"""
    checked: int
    verdicts: list[Verdict]
    left_out: list[LeftOut]
    """what lies in the folders and is nothing that bytegolf wrote, or no file"""

    @staticmethod
    def of(verdicts: list[Verdict], left_out: list[LeftOut]) -> CheckResult:
        """The result that ``verdicts`` make."""
        return CheckResult(sum(one.finding == "damaged" for one in verdicts), len(verdicts), verdicts, left_out)
