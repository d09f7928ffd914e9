"""Blocks through an encoder, in order and with few of them in memory: here, in processes, or on a Ray cluster."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from bytegolf.data.blocks import Block
from bytegolf.data.encoding import Encoded, Encoder
from bytegolf.errors import BytegolfError

AHEAD = 2
"""Blocks begun for each worker before the oldest of them is waited for."""

Handle = TypeVar("Handle")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_all(encoder: Encoder, blocks: Iterable[Block], workers: int) -> Generator[Encoded]:
    """The blocks, encoded, in their order, by ``workers`` processes; by this one if that is 1."""
    if workers == 1:
        yield from map(encoder, blocks)
        return
    # a forked child would inherit the locks of threads that it has not; a spawned one starts clean
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (encoder,))
    try:
        yield from _in_order(blocks, lambda block: pool.submit(_encode, block), Future.result, AHEAD * workers)
    except BrokenProcessPool as error:
        raise BytegolfError(
            "a worker of prepare was ended from outside, by lack of memory perhaps: run the same command again, which "
            "goes on from there, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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


def _begin(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that will end this one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent says no goodbye, and the pool's own pipes stay open."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(block: Block) -> Encoded:
    return _encoder(block)


def encode_all_on_ray(encoder: Encoder, blocks: Iterable[Block]) -> Generator[Encoded]:
    """The same by tasks of a Ray cluster, or of this machine where there is none; as many at once as it has cores.

    Its machines must see the sources under the same paths.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise BytegolfError("--ray needs the package ray: `pip install ray`, or leave --ray out") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="error")
    task = ray.remote(num_cpus=1)(lambda encoder, block: encoder(block))
    shared = ray.put(encoder)
    at_once = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    yield from _in_order(blocks, lambda block: task.remote(shared, block), ray.get, at_once)
