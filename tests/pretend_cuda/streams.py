"""What FSDP asks of a device beyond tensors, for the pretended one: streams, a backend, storage that it frees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Stream:
    """As torch.cuda.Stream, of a device whose work is done at once and in order."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: object) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Any = None) -> Any:
        """An event that has passed."""
        return torch.cuda.Event() if event is None else event


ONLY = Stream()


@contextlib.contextmanager
def _stream(chosen: Stream) -> Iterator[None]:
    """Work on any stream is work on the only one."""
    yield


def _move(params: list[nn.Parameter], buffers: list[Tensor], device: torch.device) -> None:
    """As FSDP's, which exchanges a parameter's data: here it is another kind of tensor that takes its place."""
    for each in (*params, *buffers):
        if each.device != device:
            moved = each.detach().to(device)
            torch.utils.swap_tensors(each, nn.Parameter(moved) if isinstance(each, nn.Parameter) else moved)


def answer(rendezvous: Path) -> None:
    """Have ``torch.cuda`` have streams, FSDP leave storage alone, and processes meet at a file and talk by gloo, in
    this process and from now on.
    """
    from torch.distributed.fsdp._fully_shard import _fsdp_init, _fsdp_param, _fsdp_param_group

    begin = dist.init_process_group
    changes: list[tuple[Any, str, Any]] = [
        (torch.cuda, "Stream", Stream),
        (torch.cuda, "stream", _stream),
        (torch.cuda, "current_stream", lambda device=None: ONLY),
        (_fsdp_init, "_move_states_to_device", _move),
        (_fsdp_param, "alloc_storage", lambda tensor: None),
        (_fsdp_param, "free_storage", lambda tensor: None),
        (_fsdp_param_group, "alloc_storage", lambda tensor: None),
        (
            dist,
            "init_process_group",
            lambda backend, **others: begin("cpu:gloo,cuda:gloo", init_method=f"file://{rendezvous}", **others),
        ),
    ]
    for owner, name, does in changes:
        assert hasattr(owner, name), f"another torch: {owner.__name__} has no {name}"
        setattr(owner, name, does)
