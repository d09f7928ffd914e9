"""What publishing comes to; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PushResult:
    """A model that was published."""

    repository: str
    commit: str
    url: str
    """of the commit"""
    files: list[str]
    bytes: int
    """of all of them"""
    sha256: str
    """of the artifact, or of the weights where there is none"""
