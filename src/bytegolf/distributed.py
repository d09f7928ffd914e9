"""One process or many: rank, world size and the few collectives that the loop needs.

``torchrun`` sets RANK, WORLD_SIZE and LOCAL_RANK; without them there is one process and every call here is free.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bytegolf.device import choose_device
from bytegolf.errors import BytegolfError

T = TypeVar("T")
_NONE: Any = object()


@dataclass(frozen=True)
class DistributedContext:
    """This process's place among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def agree(self, value: float) -> float:
        """The leader's ``value`` on every rank: what they see may differ, what they decide must not."""
        return self.total(value if self.leads else 0.0)[0]

    def total(self, *values: float) -> list[float]:
        """Sums of ``values`` over the ranks, on the CPU: no rank waits for its accelerator's queue."""
        if self.size == 1:
            return list(values)
        box = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(box)
        return box.tolist()

    def gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Send ``tensor`` to every rank; what is returned waits for theirs, of the same shape and dtype, and gives all
        of them, (ranks, …).

        They travel as bytes, as not every backend knows every dtype.
        """
        found = tensor.new_empty((self.size, *tensor.shape))
        work = dist.all_gather_into_tensor(
            found.view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8), async_op=True
        )

        def arrive() -> Tensor:
            work.wait()
            return found

        return arrive

    def collect(self, mine: list[T]) -> list[T]:
        """What the ranks have, put together by turns: each one's first, each one's second, …; all of them get it."""
        if self.size == 1:
            return mine
        found: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(found, mine)
        return [one for turn in itertools.zip_longest(*found, fillvalue=_NONE) for one in turn if one is not _NONE]

    def wait(self) -> None:
        """Until every rank is here."""
        self.total(0.0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with gradients averaged over the ranks during backward."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


SINGLE_PROCESS = DistributedContext(0, 1, torch.device("cpu"))
"""One process."""


_LEFT: list[object] = []
"""Process groups of this process, kept to its end. What DDP holds is else the last that knows of a group: when a model
is forgotten, the group's destructor waits for its threads with the interpreter locked, and a thread that still lets go
of a tensor of the last collective waits for the interpreter (torch 2.13: a process that never ends, once in some dozens
of runs)."""


@contextlib.contextmanager
def join(device: str) -> Iterator[DistributedContext]:
    """Join the other processes that ``torchrun`` started, if it did; leave them at the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    place = choose_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield DistributedContext(0, 1, place)
        return
    # gradients travel by nccl between GPUs; what the ranks tell one another is on the CPU in any case
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size)
    _LEFT.append(dist.group.WORLD)
    try:
        yield DistributedContext(rank, size, place)
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise BytegolfError(
            f"process {rank} of {size} lost the connection to another one, which has failed or was killed (its own "
            "output says why): start all of them again with --resume"
        ) from error
    finally:
        dist.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone; only nccl's errors have a class of their own."""
    return isinstance(error, dist.DistError) or any(words in str(error) for words in _GLOO_SAYS)


_GLOO_SAYS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Timed out")
