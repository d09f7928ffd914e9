"""Blocks of documents to the tokens of every tokenizer, in order and with few of them in memory: here, in processes, or
on a Ray cluster.

Tokens come back from processes in memory that is shared with them: through pipes, byte260's would cost a sixth more of
the processors' time (benchmarks/prepare.py with two workers).
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import importlib
import itertools
import mmap
import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import reduction
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.blocks import BLOCK_BYTES, Block
from bytegolf.data.split import Split
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError, install
from bytegolf.folders import LeftOut, Tally

DIGEST_BYTES = hashlib.sha256().digest_size

AHEAD = 2
"""Blocks begun for each worker before the oldest of them is waited for."""

SLOT_TOKENS = BLOCK_BYTES + (1 << 20)
"""Room for a block's tokens of one tokenizer: a token per byte, and a long last document."""

Handle = TypeVar("Handle")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The documents of a block as one tokenizer's tokens."""

    ids: NDArray[np.uint16]
    """(tokens,): each document behind its BOS"""
    lengths: NDArray[np.int64]
    """(documents,): tokens of each, its BOS included"""
    piece_bytes: NDArray[np.int64]
    """(documents,): bytes that the tokens of each stand for"""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A block, encoded. Where the split's rule looks at the documents, those for validation come first."""

    size: int
    """bytes of the sources, for the progress bar"""
    digests: bytes
    """the SHA-256 of each document's UTF-8 text, in the order of the sources"""
    held_out: int | None
    """how many documents at the front are for validation; None where their numbers decide"""
    groups: frozenset[str]
    """which of the groups that the split names were met"""
    left_out: list[LeftOut]
    """documents without text"""
    original_bytes: NDArray[np.int64]
    """(documents,): bytes of each text"""
    tokens: list[Tokens]
    """one per tokenizer"""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A function of blocks, which other processes and machines can be sent."""

    split: Split
    tokenizers: Sequence[Tokenizer]

    def __call__(self, block: Block) -> Encoded:
        """Encode ``block``: the same bytes wherever this runs."""
        documents, left_out = [], Tally()
        for document in block.documents():
            if document.has_text():
                documents.append(document)
            elif document.null:
                left_out.add("null text", document.null)
            else:
                example = "a row whose group is null" if document.group is None else document.group
                left_out.add("blank", example, size=len(document.data))
        texts = [document.data for document in documents]
        held_out = None
        digests = b"".join(hashlib.sha256(text).digest() for text in texts)
        if self.split.kind != "first":
            sides = [self.split.holds_out(0, document) for document in documents]
            held_out = sum(sides)
            texts = [text for side in (True, False) for text, its in zip(texts, sides, strict=True) if its is side]
        return Encoded(
            block.size,
            digests,
            held_out,
            frozenset(group for document in documents if (group := document.group) in self.split.groups),
            left_out.all(),
            np.array([len(text) for text in texts], dtype=np.int64),
            [_tokens(tokenizer, texts) for tokenizer in self.tokenizers],
        )


def _tokens(tokenizer: Tokenizer, texts: Sequence[bytes]) -> Tokens:
    ids, lengths = tokenizer.encode_documents(texts)
    if tokenizer.kind == "byte":
        return Tokens(ids, lengths, lengths - 1)
    if not len(ids):
        return Tokens(ids, lengths, lengths)
    # a BOS counts 0 bytes, whatever it follows
    counts = tokenizer.byte_counts(ids, np.concatenate([[Tokenizer.BOS], ids[:-1]]))
    return Tokens(ids, lengths, np.add.reduceat(counts, np.cumsum(lengths) - lengths))


# ------------------------------------------------------------------------------------------------ workers


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
    memory = SharedMemory(AHEAD * workers, len(encoder.tokenizers) * SLOT_TOKENS)
    pool = ProcessPoolExecutor(workers, context, _begin, (encoder, memory))

    def begin(block: Block) -> tuple[int, Future[Encoded]]:
        slot = next(slots)
        return slot, pool.submit(_encode, block, slot)

    def wait(begun: tuple[int, Future[Encoded]]) -> Encoded:
        slot, future = begun
        encoded, left = future.result(), memory[slot]
        found = []
        for tokens in encoded.tokens:
            if not len(tokens.ids):
                count = int(tokens.lengths.sum())
                tokens, left = dataclasses.replace(tokens, ids=left[:count]), left[count:]
            found.append(tokens)
        return dataclasses.replace(encoded, tokens=found)

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


class SharedMemory:
    """Slots of uint16; pickled for a process that is being spawned, it is the same memory there.

    It has no name and so nothing to clean up: it goes with the last process that maps it. (``/dev/shm``, where Python's
    own shared memory lies, is often too small in containers, which shows only when a page is touched.)
    """

    def __init__(self, slots: int, slot_tokens: int, copy: Any = None) -> None:
        self._shape = slots, slot_tokens
        if copy is not None:
            self._descriptor: int = copy.detach()
        elif hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("bytegolf")
        else:
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())
        os.ftruncate(self._descriptor, 2 * slots * slot_tokens)
        self._bytes = mmap.mmap(self._descriptor, 0)

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedMemory, (*self._shape, reduction.DupFd(self._descriptor))

    def __getitem__(self, slot: int) -> NDArray[np.uint16]:
        found: NDArray[np.uint16] = np.frombuffer(self._bytes, np.uint16).reshape(self._shape)[slot]
        return found

    def close(self) -> None:
        """Let go of it; arrays that still look at it keep it."""
        os.close(self._descriptor)


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


def _encode(block: Block, slot: int) -> Encoded:
    """A block whose tokens wait in a slot, one tokenizer's behind the other's, as far as they have room."""
    encoded, left, found = _encoder(block), _memory[slot], []
    for tokens in encoded.tokens:
        count = len(tokens.ids)
        if count <= len(left):
            left[:count], left = tokens.ids, left[count:]
            tokens = dataclasses.replace(tokens, ids=tokens.ids[:0])
        found.append(tokens)
    return dataclasses.replace(encoded, tokens=found)


def encode_all_on_ray(encoder: Encoder, blocks: Iterable[Block]) -> Generator[Encoded]:
    """The same by tasks of a Ray cluster, or of this machine where there is none; as many at once as it has cores.

    Its machines need this package, and must see the sources under the same paths. Ray begins again what a machine that
    fails has not finished.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise BytegolfError(f"--ray needs the package ray: `{install('ray')}`, or leave --ray out") from error
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
