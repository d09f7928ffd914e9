"""What a pickle may say of tensors, and the few calls that are answered: with values of our own, never by calling.

A global is a ``Name``. What the calls in ``CALLS`` stand for is done here; most of them give an ``Inert``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
"""PyTorch's names of storages, by what they hold."""

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (*STORAGES.values(), torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64)
}
"""PyTorch's names of dtypes."""


class RefusedError(Exception):
    """What is wrong with a pickle, in words."""


@dataclass(frozen=True)
class Name:
    """A global: a module's name and one in it. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:80]


class Inert:
    """In place of an object of a class that is not read: it has nothing and does nothing."""

    def __init__(self, of: Name) -> None:
        self.of = of


@dataclass(frozen=True)
class StorageAt:
    """A run of numbers in the file around the pickle, ``count`` of them, from its element ``first`` on."""

    key: str
    dtype: torch.dtype
    count: int
    first: int = 0


@dataclass(frozen=True)
class TensorAt:
    """A tensor as a pickle describes it: a view of a storage. Nothing here has been compared with the file."""

    storage: StorageAt
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def storage_of(name: Any) -> StorageAt:
    """The storage that a persistent name means: ('storage', type, key, device, count[, view]).

    A view is a part of it, in the older format: (name, first element, count).
    """
    if not isinstance(name, tuple) or len(name) not in (5, 6) or name[0] != "storage":
        raise RefusedError("its pickle names an object outside of it that is no storage")
    _, kind, key, _, count, *more = name
    dtype = STORAGES.get(kind.name) if isinstance(kind, Name) and kind.module.startswith("torch") else None
    if dtype is None:
        raise RefusedError(f"its pickle has numbers of an unknown type ({kind if isinstance(kind, Name) else '?'})")
    if not isinstance(key, str) or not _is_size(count):
        raise RefusedError("its pickle describes a storage without name or size")
    if not more or more[0] is None:
        return StorageAt(key, dtype, count)
    view = more[0]
    if not isinstance(view, tuple) or len(view) != 3 or not _is_size(view[1]) or not _is_size(view[2]):
        raise RefusedError("its pickle describes a view of a storage that is none")
    if view[1] + view[2] > count:
        raise RefusedError("its pickle describes a view beyond its storage")
    return StorageAt(key, dtype, view[2], view[1])


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > 16 or not all(map(_is_size, value)):
        raise RefusedError("its pickle describes a tensor without a valid shape")
    if math.prod(size or 1 for size in value) >= 1 << 48:  # strides are made of it
        raise RefusedError("its pickle describes a tensor without a valid shape")
    return tuple(value)


def _tensor(_: Name, storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> TensorAt:
    if not isinstance(storage, StorageAt) or not _is_size(offset):
        raise RefusedError("its pickle describes a tensor without numbers")
    sizes, strides = _sizes(shape), _sizes(stride)
    if len(sizes) != len(strides):
        raise RefusedError("its pickle describes a tensor without a valid shape")
    return TensorAt(storage, storage.dtype, offset, sizes, strides)


def _typed_tensor(name: Name, storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> TensorAt:
    """_rebuild_tensor_v3 (…, requires_grad, hooks, dtype): the storage is bytes and the dtype a global torch.NAME."""
    kind = more[2] if len(more) > 2 else None
    dtype = DTYPES.get(kind.name) if isinstance(kind, Name) and kind.module == "torch" else None
    if dtype is None:
        raise RefusedError("its pickle describes a tensor of an unknown type")
    found = _tensor(name, storage, offset, shape, stride)
    return TensorAt(found.storage, dtype, found.offset, found.shape, found.stride)


def _parameter(_: Name, data: Any, *more: Any) -> TensorAt:
    """A parameter is its tensor: requires_grad, hooks and attributes (learning-rate multipliers) are not kept."""
    if not isinstance(data, TensorAt):
        raise RefusedError("its pickle has a parameter that is no tensor")
    return data


def _ordered(_: Name) -> dict[Any, Any]:
    return {}


def _inert(name: Name, *arguments: Any) -> Inert:
    return Inert(name)


CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("collections", "OrderedDict"): _ordered,
    **{
        (module, name): _inert  # of classes and functions without effect, not called either
        for module, names in {
            "_codecs": ("encode",),
            "collections": ("defaultdict", "deque", "Counter"),
            "builtins": ("set", "frozenset", "slice", "complex"),
            "__builtin__": ("set", "frozenset", "slice", "complex"),
            "copyreg": ("_reconstructor",),
            "copy_reg": ("_reconstructor",),
            "torch": ("Size", "device", "dtype"),
            "numpy": ("dtype",),
            "numpy.core.multiarray": ("scalar", "_reconstruct"),
            "numpy._core.multiarray": ("scalar", "_reconstruct"),
            "pathlib": ("Path", "PosixPath", "PurePosixPath", "WindowsPath"),
            "datetime": ("datetime", "timedelta", "date"),
            "omegaconf.base": ("ContainerMetadata", "Metadata"),
            "omegaconf.dictconfig": ("DictConfig",),
            "omegaconf.listconfig": ("ListConfig",),
        }.items()
        for name in names
    },
}
"""All that a pickle may call, and what is done instead: it gets the name and the arguments."""
