"""Where a training run stands."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from bytegolf.artifact.checkpoint import Checkpoint, described


@dataclass
class Progress:
    """Where a run stands; it is saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    """training time on the configured clock: validation, checkpoints and the warm-up do not count"""
    tokens: int = 0
    bytes: int = 0
    validation_bpb: float | None = None
    """of the last validation, on its sample"""

    @staticmethod
    def of(saved: Checkpoint, path: Path) -> Progress:
        """What the checkpoint ``path`` says of these fields; its progress holds more besides.

        Raises BytegolfError if it says something else than their types.
        """
        told = saved.progress
        return described(Progress, {f.name: told[f.name] for f in fields(Progress) if f.name in told}, path)
