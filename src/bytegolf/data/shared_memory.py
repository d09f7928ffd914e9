"""Memory that this process shares with those that it spawns, for arrays too large to send through pipes."""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SharedMemory:
    """Slots of bytes; pickled for a process that is being spawned, it is the same memory there.

    It has no name and so nothing to clean up: it goes with the last process that maps it. (``/dev/shm``, where Python's
    own shared memory lies, is often too small in containers, which shows only when a page is touched.)
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self.slots, self.slot_bytes = slots, slot_bytes
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("bytegolf")
        else:
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())
        os.ftruncate(self._descriptor, slots * slot_bytes)
        self._bytes = mmap.mmap(self._descriptor, slots * slot_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {"slots": self.slots, "slot_bytes": self.slot_bytes, "copy": reduction.DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.slots, self.slot_bytes = state["slots"], state["slot_bytes"]
        self._descriptor = state["copy"].detach()
        self._bytes = mmap.mmap(self._descriptor, self.slots * self.slot_bytes)

    def array(self, slot: int, start: int, count: int) -> NDArray[np.uint16]:
        """The ``count`` numbers behind the first ``start`` of a slot, uint16, as they are now and will be."""
        return np.frombuffer(self._bytes, np.uint16, count, slot * self.slot_bytes + 2 * start)

    def close(self) -> None:
        """Let go of it; arrays that still look at it keep it."""
        os.close(self._descriptor)
