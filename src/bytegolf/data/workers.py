"""Blocks through an encoder, in order and with few of them in memory: here, in processes, or on a Ray cluster."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.blocks import BLOCK_BYTES, Block
from bytegolf.data.encoding import Encoded, Encoder
from bytegolf.data.shared_memory import SharedMemory
from bytegolf.data.tokenizer import fresh
from bytegolf.errors import BytegolfError

AHEAD = 2
"""Blocks begun for each worker before the oldest of them is waited for."""

SLOT_BYTES = 2 * (BLOCK_BYTES + (1 << 20))
"""Room for a block's tokens of one tokenizer: a token a byte, and a long last document."""

Handle = TypeVar("Handle")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_all(encoder: Encoder, blocks: Iterable[Block], workers: int) -> Generator[Encoded]:
    """The blocks, encoded, in their order, by ``workers`` processes; by this one if that is 1.

    The tokens of one stay as they are until the next is asked for.
    """
    if workers == 1:
        yield from map(encoder, blocks)
        return
    # a forked child would inherit the locks of threads that it has not; a spawned one starts clean
    context = multiprocessing.get_context("spawn")
    slots = itertools.cycle(range(AHEAD * workers))
    memory = SharedMemory(AHEAD * workers, len(encoder.tokenizers) * SLOT_BYTES)
    pool = ProcessPoolExecutor(workers, context, _begin, (encoder, memory))

    def begin(block: Block) -> Future[_Parked]:
        return pool.submit(_encode, block, next(slots))

    def wait(future: Future[_Parked]) -> Encoded:
        return future.result().fetched(memory)

    try:
        yield from _in_order(blocks, begin, wait, AHEAD * workers)
    except BrokenProcessPool as error:
        raise BytegolfError(
            "a worker of prepare was ended from outside, by lack of memory perhaps: run the same command again, which "
            "goes on from there, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        memory.close()


class _Room:
    """Memory for the tokens of a block: in its slot, where they fit, as a pipe would cost more than encoding."""

    def __init__(self, memory: SharedMemory, slot: int) -> None:
        self._memory, self._slot, self._taken = memory, slot, 0
        self.places: list[tuple[int, int] | None] = []
        """of each array given: how many tokens of the slot are before it, and in it; None if it is not there"""

    def __call__(self, count: int) -> NDArray[np.uint16]:
        if 2 * (self._taken + count) > self._memory.slot_bytes:
            self.places.append(None)
            return fresh(count)
        start = self._taken
        self.places.append((start, count))
        self._taken += count
        return self._memory.array(self._slot, start, count)


@dataclasses.dataclass(frozen=True)
class _Parked:
    """An encoded block without the tokens that wait in shared memory."""

    encoded: Encoded
    slot: int
    places: list[tuple[int, int] | None]
    """as in ``_Room``, of each tokenizer"""

    @staticmethod
    def park(encoded: Encoded, slot: int, room: _Room) -> _Parked:
        left = [
            tokens if place is None else dataclasses.replace(tokens, ids=tokens.ids[:0])
            for tokens, place in zip(encoded.tokens, room.places, strict=True)
        ]
        return _Parked(dataclasses.replace(encoded, tokens=left), slot, room.places)

    def fetched(self, memory: SharedMemory) -> Encoded:
        found = [
            tokens if place is None else dataclasses.replace(tokens, ids=memory.array(self.slot, *place))
            for tokens, place in zip(self.encoded.tokens, self.places, strict=True)
        ]
        return dataclasses.replace(self.encoded, tokens=found)


def _in_order(
    blocks: Iterable[Block], begin: Callable[[Block], Handle], wait: Callable[[Handle], Encoded], ahead: int
) -> Generator[Encoded]:
    begun: deque[Handle] = deque()
    for block in blocks:
        begun.append(begin(block))
        if len(begun) >= ahead:
            yield wait(begun.popleft())
    while begun:
        yield wait(begun.popleft())


_encoder: Encoder
_memory: SharedMemory


def _begin(encoder: Encoder, memory: SharedMemory) -> None:
    global _encoder, _memory
    _encoder, _memory = encoder, memory
    gc.disable()  # blocks hold no cycles, and looking for some costs a fifth of reading a document
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that will end this one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent says no goodbye, and the pool's own pipes stay open."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(block: Block, slot: int) -> _Parked:
    room = _Room(_memory, slot)
    return _Parked.park(_encoder(block, room), slot, room)


def encode_all_on_ray(encoder: Encoder, blocks: Iterable[Block]) -> Generator[Encoded]:
    """The same by tasks of a Ray cluster, or of this machine where there is none; as many at once as it has cores.

    Its machines need this package, and must see the sources under the same paths. Ray begins again what a machine that
    fails has not finished.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise BytegolfError("--ray needs the package ray: `pip install 'bytegolf[ray]'`, or leave --ray out") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="error")
    task = ray.remote(num_cpus=1)(lambda encoder, block: encoder(block))
    shared = ray.put(encoder)
    at_once = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def wait(reference: Any) -> Encoded:
        try:
            encoded: Encoded = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # its words are a traceback's
            raise error.cause if isinstance(error.cause, BytegolfError) else error from None
        return encoded

    yield from _in_order(blocks, lambda block: task.remote(shared, block), wait, at_once)
