"""Every operation under FakeTensorMode: shapes and dtypes without values, and no kernel is called.

Devices are for ``tests/pretend_cuda``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode

from bytegolf.ops import native
from bytegolf.ops.add_norm import add_norm
from bytegolf.ops.attention import AttentionShape, attention, few_queries
from bytegolf.ops.boundary import boundary_probability
from bytegolf.ops.causal_conv import causal_conv
from bytegolf.ops.chunking import dechunk, select, smooth_on
from bytegolf.ops.cross_entropy import softcap_cross_entropy
from bytegolf.ops.embedding import normed_embedding
from bytegolf.ops.fused_add_rmsnorm import fused_add_rmsnorm
from bytegolf.ops.gated_norm import gated_norm
from bytegolf.ops.relu_squared import relu_squared
from bytegolf.ops.rms_norm import rms_norm
from bytegolf.ops.rotary import rotary, rotary_angles
from bytegolf.ops.scale_gradient import scale_gradient
from bytegolf.ops.ssd import SsdShape, ssd, ssd_on
from bytegolf.ops.swiglu import swiglu

B, L, C, D, V = 2, 40, 12, 16, 30
HEADS, GROUPS, WIDTH = 4, 2, 8
BF16 = torch.bfloat16

Make = Callable[..., Tensor]
"""shape, dtype → a tensor"""


def layout(make: Make) -> tuple[Tensor, Tensor, Tensor]:
    """starts, chunk_of, boundary."""
    return make(B, C, dtype=torch.long), make(B, L, dtype=torch.long), make(B, L, dtype=torch.bool)


def attended(window: int, documents: bool) -> Callable[[Make], Tensor]:
    shape = AttentionShape(HEADS, GROUPS, WIDTH, window, 10_000.0)

    def run(make: Make) -> Tensor:
        packed = make(B, L, (HEADS + 2 * GROUPS) * WIDTH, dtype=BF16)
        return attention(packed, make(HEADS), make(B, L, dtype=torch.long) if documents else None, shape)

    return run


def joined(make: Make) -> Tensor:
    x, y, z, x0 = (make(B, L, D, dtype=BF16) for _ in range(4))
    total, normed = fused_add_rmsnorm(x, ((y, make(D)), (z, make(D))), x0, make(2, D))
    assert total is not None
    assert (total.shape, total.dtype, total.device) == (normed.shape, normed.dtype, normed.device)
    return normed


def rotated(make: Make) -> Tensor:
    cos, sin = rotary_angles(make(L, dtype=torch.long), WIDTH, 10_000.0)
    return rotary(make(B, L, HEADS, WIDTH, dtype=BF16), cos.unsqueeze(-2), sin.unsqueeze(-2))


SSD = SsdShape(HEADS, WIDTH, 6, 16)


def scanned(make: Make) -> Tensor:
    channels = make(B, L, SSD.inner + 2 * SSD.state, dtype=BF16)
    return ssd(channels, make(B, L, HEADS), make(B, L, HEADS), make(HEADS), make(B, L, dtype=torch.bool), SSD)


def scanned_on(make: Make, length: int) -> Tensor:
    channels = make(B, length, SSD.inner + 2 * SSD.state, dtype=BF16)
    steps, decay = make(B, length, HEADS), make(B, length, HEADS)
    return ssd_on(channels, steps, decay, make(HEADS), make(B, HEADS, SSD.state, WIDTH), SSD)[0]


# name → (operation, the shape and dtype of its result)
CASES: dict[str, tuple[Callable[[Make], Tensor], tuple[int, ...], torch.dtype]] = {
    "rms_norm": (lambda make: rms_norm(make(B, L, D, dtype=BF16)), (B, L, D), BF16),
    "fused_add_rmsnorm": (joined, (B, L, D), BF16),
    "relu_squared": (lambda make: relu_squared(make(B, L, D, dtype=BF16)), (B, L, D), BF16),
    "rotary": (rotated, (B, L, HEADS, WIDTH), BF16),
    "attention": (attended(0, False), (B, L, HEADS * WIDTH), BF16),
    "attention, documents": (attended(0, True), (B, L, HEADS * WIDTH), BF16),
    "attention, window": (attended(8, False), (B, L, HEADS * WIDTH), BF16),
    "attention, window, documents": (attended(8, True), (B, L, HEADS * WIDTH), BF16),
    "attention, few queries": (
        lambda make: few_queries(make(B, 3, HEADS, WIDTH), make(B, GROUPS, L, WIDTH), make(B, GROUPS, L, WIDTH), None),
        (B, 3, HEADS, WIDTH),
        torch.float32,
    ),
    "normed_embedding": (
        lambda make: normed_embedding(make(B, L, dtype=torch.long), make(V, D), BF16),
        (B, L, D),
        BF16,
    ),
    "boundary_probability": (
        lambda make: boundary_probability(make(B, L, D, dtype=BF16), make(B, L, D, dtype=BF16)),
        (B, L),
        torch.float32,
    ),
    "select": (lambda make: select(make(B, L, D, dtype=BF16), *layout(make)), (B, C, D), BF16),
    "dechunk": (
        lambda make: dechunk(make(B, C, D, dtype=BF16), make(B, L), make(B, L, D, dtype=BF16), *layout(make)),
        (B, L, D),
        BF16,
    ),
    "dechunk, documents": (
        lambda make: dechunk(
            make(B, C, D, dtype=BF16),
            make(B, L),
            make(B, L, D, dtype=BF16),
            *layout(make),
            make(B, L, dtype=torch.bool),
        ),
        (B, L, D),
        BF16,
    ),
    "smooth_on": (
        lambda make: smooth_on(make(B, C, D), make(B, C), make(B, D), make(B, dtype=torch.bool)),
        (B, C, D),
        torch.float32,
    ),
    "softcap_cross_entropy": (
        lambda make: softcap_cross_entropy(make(L, V, dtype=BF16), make(L, dtype=torch.long), 30.0),
        (L,),
        torch.float32,
    ),
    "causal_conv": (
        lambda make: causal_conv(make(B, L, D, dtype=BF16), make(4, D), make(D), make(B, L, dtype=torch.bool)),
        (B, L, D),
        BF16,
    ),
    "ssd": (scanned, (B, L, SSD.inner), BF16),
    "ssd_on, one position": (lambda make: scanned_on(make, 1), (B, 1, SSD.inner), BF16),
    "ssd_on": (lambda make: scanned_on(make, 9), (B, 9, SSD.inner), BF16),
    "gated_norm": (
        lambda make: gated_norm(make(B, L, D, dtype=BF16), make(B, L, D, dtype=BF16), make(D), 1e-5),
        (B, L, D),
        BF16,
    ),
    "swiglu": (lambda make: swiglu(make(B, L, D, dtype=BF16)), (B, L, D // 2), BF16),
    "add_norm": (
        lambda make: add_norm(make(B, L, D), make(B, L, D, dtype=BF16), make(D), 1e-5, BF16)[1],
        (B, L, D),
        BF16,
    ),
    "scale_gradient": (lambda make: scale_gradient(make(B, L, D), 0.5), (B, L, D), torch.float32),
}


@pytest.fixture(autouse=True)
def no_kernel_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *_: object) -> None:
        raise AssertionError(f"the kernel {name} was called")

    monkeypatch.setattr(native, "call", refuse)


@pytest.mark.parametrize("name", CASES)
def test_a_result_has_shape_and_dtype(name: str) -> None:
    operation, shape, dtype = CASES[name]
    with FakeTensorMode(), torch.no_grad():
        out = operation(lambda *size, dtype=torch.float32: torch.zeros(size, dtype=dtype))
    assert isinstance(out, FakeTensor)
    assert (out.shape, out.dtype) == (shape, dtype)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_fake_too(name: str) -> None:
    operation, _, _ = CASES[name]
    inputs: list[Tensor] = []

    def make(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        x = torch.zeros(size, dtype=dtype)
        if dtype.is_floating_point:
            inputs.append(x.requires_grad_())
        return x

    with FakeTensorMode():
        gradients = torch.autograd.grad(operation(make).sum(), inputs, allow_unused=True)
    assert any(gradient is not None for gradient in gradients)
    for gradient, x in zip(gradients, inputs, strict=True):
        if gradient is not None:
            assert isinstance(gradient, FakeTensor)
            assert (gradient.shape, gradient.dtype) == (x.shape, x.dtype)
