"""The clock that a training budget is counted on."""

from __future__ import annotations

import time
from typing import Literal

import torch

from bytegolf.errors import BytegolfError


class Clock:
    """Seconds of training, lap by lap: wall-clock time, or what the processors of this process spent."""

    def __init__(self, kind: Literal["wall", "processor"], device: torch.device) -> None:
        """Raises BytegolfError for the processor's time where another device trains."""
        if kind == "processor" and device.type != "cpu":
            raise BytegolfError(
                f"train.clock is 'processor', but the CPU's seconds say nothing about training on {device.type}: "
                "set train.clock to 'wall'"
            )
        self._kind = kind
        self._mark = 0.0

    def restart(self) -> None:
        """Begin a lap: what passed since the last one is not training time."""
        self._mark = self._now()

    def lap(self) -> float:
        """The seconds of the lap that ends now; the next one begins."""
        now = self._now()
        spent, self._mark = now - self._mark, now
        return spent

    def _now(self) -> float:
        """In seconds since some moment."""
        return time.process_time() if self._kind == "processor" else time.perf_counter()
