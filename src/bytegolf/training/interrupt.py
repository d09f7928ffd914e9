"""Ctrl-C in training."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupt:
    """The first Ctrl-C ends training after the current step; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        """whether training is to end after the current step"""

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Take Ctrl-C for that within the context; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
