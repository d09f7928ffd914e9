"""Safetensors files: their tensors memory-mapped, their notes; and written tensor by tensor."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, write_atomically

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names of dtypes."""


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, memory-mapped, and what else it notes. Raises BytegolfError if it is none."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def read_notes(path: Path) -> dict[str, str]:
    """What a file notes beside its tensors. Raises BytegolfError if it is none."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import safetensors  # a megabyte, which a model in another format has no use for

    with disk_errors(path, "read"), path.open("rb"):
        if not path.is_file():
            raise BytegolfError(f"{path} is no file: name a .pt or .safetensors file")
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise BytegolfError(f"{path} is damaged ({str(error)[:200]}): copy or fetch it again") from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write ``tensors`` with ``notes``, atomically and tensor by tensor: no second copy of them is in memory.

    Equal arguments give equal bytes. Tensors lie in the file by falling width of their numbers, then by name, as the
    format's own library puts them, so that each begins at a multiple of its width.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(sorted(notes.items()))} if notes else {}
    place = 0
    for name in order:
        tensor = tensors[name]
        end = place + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # so that matrices begin where a line of the cache does

    def write(file: IO[bytes]) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().flatten()
            file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")

    write_atomically(path, write)
