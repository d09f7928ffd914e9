"""Tensors that say they are on ``cuda:0``, with values in the CPU's memory, and the rules of a device that is apart.

A pretended tensor holds a CPU tensor. Whatever is done with it is done there, and the result is pretended too; a real
CPU tensor among the operands is the error that a GPU would raise. So code runs through with real values, branches that
depend on them included, and what it gives can be compared with the CPU.

What a GPU lets through is let through here:

- a CPU tensor of no dimensions beside tensors of the device, in operations that go element by element,
- CPU indices into a tensor of the device,
- copies (``to``, ``copy_``), which are what moves data.

Each time the host has to wait for the device (``item``, a copy to the CPU, ``nonzero``) is counted in ``waits``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
aten = torch.ops.aten

COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
FILLED = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
PINNED = {aten._pin_memory.default}
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
"""Operations whose result's shape or value the host needs."""

waits: Counter[str] = Counter()
"""How often the host waited for the device, by operation."""


class PretendTensor(Tensor):
    """A tensor on the pretended device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> PretendTensor:
        """``inner`` on the pretended device."""
        made: PretendTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride() if inner.layout == torch.strided else None,
            storage_offset=inner.storage_offset() if inner.layout == torch.strided else None,
            dtype=inner.dtype,
            layout=inner.layout,
            device=CUDA,
            requires_grad=requires_grad,
        )
        made.held = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """One operation, also outside of the mode."""
        return NotImplemented if _of_others(types) else run(func, args, kwargs or {})

    # torch swaps the tensors of a module's parameters (``module.to("cuda")``) where a subclass has these two
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """The names of the tensors in here."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(tensors: dict[str, Tensor], meta: None, size: Any, stride: Any) -> PretendTensor:
        """The way back."""
        return PretendTensor(tensors["held"])

    def tolist(self) -> Any:
        """As a GPU's: the host waits for the values."""
        waits["tolist"] += 1
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """As a GPU's: refused."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """With its device."""
        return f"{self.held!r} on cuda:0"


class PretendCuda(TorchDispatchMode):
    """Within this mode tensors can be made on, and moved to, the pretended device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        if _of_others(types):
            return NotImplemented
        if _composite(func):  # in inference mode such operations come here whole
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return run(func, args, kwargs or {})


def _of_others(types: Any) -> bool:
    """Whether a tensor that holds others takes part, as a shard (DTensor) does: it works with what it holds, and that
    comes here."""
    return any(each is not PretendTensor and hasattr(each, "__tensor_flatten__") for each in types)


@functools.cache
def _composite(func: Any) -> bool:
    return bool(func._can_decompose())


@functools.cache
def _aliases(func: Any) -> bool:
    """Whether the result is, or shows a part of, an operand."""
    return any(result.alias_info is not None for result in func._schema.returns)


def _changed(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """``value`` with what is of a kind changed, also in lists, tuples and dicts: torch's trees take twice as long."""
    if type(value) in _PLAIN:  # most operands by far
        return value
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([_changed(each, kind, change) for each in value])
    return {key: _changed(each, kind, change) for key, each in value.items()} if isinstance(value, dict) else value


_PLAIN = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout))


def _held(tensor: Any) -> Tensor:
    return tensor.held  # type: ignore[no-any-return]


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do one operation of ATen where its operands are; RuntimeError where they are apart."""
    tensors: list[Tensor] = []
    _changed((args, kwargs), Tensor, tensors.append)
    pretended = [isinstance(tensor, PretendTensor) for tensor in tensors]
    there = any(pretended)
    if there and not all(pretended) and not _let_through(func, args, tensors):
        places = ", ".join(f"{tuple(each.shape)} on {each.device}" for each in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {places}")
    if func in PINNED:
        return args[0].clone()
    wanted = kwargs.get("device")
    if not there and wanted is None:
        return func(*args, **kwargs)
    if there:
        _count(func, args, kwargs)
    if wanted is not None:
        there = torch.device(wanted).type == "cuda"
        kwargs = {**kwargs, "device": CPU} | ({"pin_memory": False} if kwargs.get("pin_memory") else {})
    inner_args, inner_kwargs = _changed((args, kwargs), PretendTensor, _held)
    # what shows a part of an ordinary tensor is an ordinary tensor, in inference mode too
    as_ordinary = _aliases(func) and torch.is_inference_mode_enabled() and not tensors[0].is_inference()
    with _ordinary() if as_ordinary else contextlib.nullcontext():
        out = func(*inner_args, **inner_kwargs)
        if func is aten.copy_.default and not pretended[0]:
            return args[0]
        if not there:
            return out
        out = _changed(out, Tensor, PretendTensor)
    if func is aten._to_copy.default or not _aliases(func):
        return out
    return return_and_correct_aliasing(func, args, kwargs, out)


@contextlib.contextmanager
def _ordinary() -> Iterator[None]:
    """No inference mode, and yet nothing for autograd, which has done its part before an operation comes here."""
    with torch.inference_mode(False), torch._C._AutoDispatchBelowADInplaceOrView():
        yield


def _let_through(func: Any, args: Any, tensors: list[Tensor]) -> bool:
    """Whether a GPU takes these operands, some of which are on the CPU."""
    if func in COPIES:
        return True
    if not isinstance(tensors[0], PretendTensor) and func._schema.is_mutable:
        return False  # what is changed in place is on the CPU
    strangers = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
    if func in INDEXED:
        indices = [index for index in args[1] if index is not None]
        others = [each for each in strangers if not any(each is index for index in indices)]
        return isinstance(args[0], PretendTensor) and all(each.ndim == 0 for each in others)
    by_element = torch.Tag.pointwise in func.tags or func in FILLED
    return by_element and all(each.ndim == 0 for each in strangers)


def _count(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    to_host = func is aten._to_copy.default and kwargs.get("device") is not None
    to_host = to_host and torch.device(kwargs["device"]).type == "cpu" and not kwargs.get("non_blocking")
    to_host |= func is aten.copy_.default and not isinstance(args[0], PretendTensor)
    by_mask = func in INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])
    if to_host or by_mask or func in WAITING:
        waits[str(func)] += 1


class _Event:
    """As torch.cuda.Event, of a device that is always done."""

    def __init__(self, **_: Any) -> None:
        pass

    def record(self, stream: object = None) -> None:
        """Nothing to record."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, other: _Event) -> float:
        """A millisecond."""
        return 1.0


PROPERTIES = types.SimpleNamespace(
    name="Pretended GPU", total_memory=80_000_000_000, major=9, minor=0, multi_processor_count=132
)

ANSWERS: dict[str, Any] = {
    "_lazy_init": lambda: None,
    "pretended": True,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "synchronize": lambda device=None: waits.update(["synchronize"]),
    "get_device_properties": lambda device=None: PROPERTIES,
    "get_device_name": lambda device=None: PROPERTIES.name,
    "get_device_capability": lambda device=None: (9, 0),
    "is_bf16_supported": lambda including_emulation=True: True,
    "manual_seed_all": lambda seed: None,
    "max_memory_allocated": lambda device=None: 0,
    "memory_allocated": lambda device=None: 0,
    "reset_peak_memory_stats": lambda device=None: None,
    "empty_cache": lambda: None,
    "Event": _Event,
}
"""What ``torch.cuda`` says of the device."""


def answer() -> None:
    """Have ``torch.cuda`` speak of the pretended device, in this process and from now on."""
    for name, does in ANSWERS.items():
        setattr(torch.cuda, name, does)
    save = safetensors.torch.save  # it moves tensors to the CPU itself, but looks for shared memory before that
    safetensors.torch.save = lambda tensors, metadata=None: save(
        {name: tensor.cpu() for name, tensor in tensors.items()}, metadata
    )
    # "high" lets a CPU multiply in bf16 as well, where it can: values would differ from the CPU's own
    torch.set_float32_matmul_precision = lambda precision: None


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """Within the context ``cuda:0`` is there, also in threads that are started there."""
    if torch.cuda._lazy_init is not ANSWERS["_lazy_init"]:
        answer()
    lifted, alone = torch._C._only_lift_cpu_tensors(), threading.Thread.run

    def run_pretending(thread: threading.Thread) -> None:
        with PretendCuda():  # type: ignore[no-untyped-call]  # a mode is of one thread
            alone(thread)

    threading.Thread.run = run_pretending  # type: ignore[assignment, method-assign]
    torch._C._set_only_lift_cpu_tensors(True)  # ``torch.tensor(…, device="cuda")`` makes it on the CPU and moves it
    try:
        with PretendCuda():  # type: ignore[no-untyped-call]
            yield
    finally:
        threading.Thread.run = alone  # type: ignore[method-assign]
        torch._C._set_only_lift_cpu_tensors(lifted)
