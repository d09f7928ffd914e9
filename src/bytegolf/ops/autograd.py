"""How an operation gets its hand-written backward pass, and the dtype in which statistics are taken.

Every file of this folder holds one operation, in up to four forms:

- the **reference**: the formula in plain PyTorch. torch.compile traces it, fuses it and derives its backward itself
  (torch 2.13 cannot trace a hand-written one where a length is dynamic or a tensor is passed twice).
- the **eager** form: forward and backward written by hand in PyTorch, with fewer passes over the activations than
  autograd would make. It runs on GPUs, and on a CPU without a C++ compiler. Where the formula is few passes already,
  the reference is the eager form too.
- the **native** form: one C++ kernel each way (``kernels/``), on a CPU. Callers ask ``native.usable`` for it.
- the **fake**: under ``FakeTensorMode`` no kernel may run, as there is no memory behind a tensor. The eager form then
  gives shapes, dtypes and devices, since all it does are PyTorch's own operations. It takes parts of tensors with
  ``narrow``, ``select`` and ``unbind``: ``x[:, 1:]`` and ``~x`` ask for the driver of x's device, even if x is a fake.

The public function has the file's name and picks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

P = ParamSpec("P")
R = TypeVar("R")

Saved = tuple[Tensor | None, ...]
"""Tensors that a backward pass needs."""


def differentiable(
    forward: Callable[P, tuple[R, Saved, tuple[Any, ...]]],
    backward: Callable[..., tuple[Tensor | None, ...]],
    materialize_grads: bool = True,
) -> Callable[P, R]:
    """One operation of a forward pass and its hand-written backward pass.

    ``forward(*arguments)`` gives the result, the tensors and the other values that the backward pass needs.
    ``backward(*gradients of the results, *tensors, *values)`` gives the gradients of the leading arguments; those that
    follow have none. A gradient may have another dtype than its argument: autograd casts it. The gradient of a result
    that nothing used is zeros, or None without ``materialize_grads``.
    """

    class Operation(Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> R:
            result, tensors, ctx.values = forward(*arguments)  # type: ignore[call-arg]
            ctx.save_for_backward(*tensors)
            if not materialize_grads:
                ctx.set_materialize_grads(False)
            return result

        # asking for a second derivative is an error, not silently zero
        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            found = backward(*gradients, *ctx.saved_tensors, *ctx.values)
            return found + (None,) * (len(ctx.needs_input_grad) - len(found))

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # (why) A step of a small model at batch 1 is mostly the cost of starting operations. For relu² of 128 numbers:
        # the kernel through ctypes 2.9 µs; this without gradients 3.1, with them 6.8; ``Function.apply`` 5.2 and 6.0;
        # with ``setup_context`` 12.7 and 14.4; ``torch.library.custom_op`` 9.0 and 13.7 (docs/log/2026-11.md).
        if torch.is_grad_enabled():
            return cast("R", Operation.apply(*args))  # type: ignore[no-untyped-call]
        return forward(*args, **kwargs)[0]

    return run


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype for statistics and sums of ``dtype``: fp32, or fp64 for fp64 (``Wide<T>`` in the kernels)."""
    return torch.promote_types(dtype, torch.float32)


def rows_of(x: Tensor) -> Tensor:
    """(..., D) → (N, D)."""
    return x.reshape(-1, x.shape[-1])
