"""Stopping cleanly: what was trained so far is still checkpointed, exported and scored."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C, the end of a job's time (Slurm, a study), a closed terminal; the last one is not known on Windows."""


class Interrupt:
    """The first signal ends training after the current step; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        """whether training is to end after the current step"""

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Take the signals for that within the context, except ignored ones (``nohup``); only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, before[number])

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
