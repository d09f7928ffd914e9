"""Products of bf16 weights with wider activations: the kernel is the plain form, and no matrix becomes fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bytegolf.model.layers import Linear
from bytegolf.ops import native
from bytegolf.ops.half_product import FEW_ROWS, half_product, half_product_reference


@pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")
@settings(derandomize=True)
@given(rows=st.integers(1, 20), inputs=st.integers(1, 100), outputs=st.integers(1, 80))
def test_the_kernel_is_the_plain_form_for_any_shape(rows: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(rows * 101 + inputs)
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs).bfloat16()
    found, wanted = half_product(x, weight), half_product_reference(x.double(), weight)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6 * inputs**0.5 * 10)
    for row in range(rows):  # whatever is beside it
        assert torch.equal(half_product(x[row : row + 1], weight)[0], found[row])


@pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")
def test_threads_share_a_large_matrix() -> None:
    x, weight = torch.randn(3, 1500), torch.randn(1501, 1500).bfloat16()
    alone = half_product(x, weight)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(half_product(x, weight), alone)
    finally:
        torch.set_num_threads(before)


class Largest(TorchDispatchMode):
    """The most elements of an fp32 tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.dtype == torch.float32:
            self.elements = max(self.elements, found.numel())
        return found


@pytest.mark.parametrize("rows", [1, FEW_ROWS + 1])
@pytest.mark.parametrize("plain", [False, True])
def test_no_matrix_becomes_fp32(rows: int, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytegolf.ops.half_product.PIECE", 1 << 14)
    linear = Linear(512, 700, bias=True)
    linear.weight.data = linear.weight.data.bfloat16()
    torch.nn.init.normal_(linear.bias)  # type: ignore[arg-type]
    x = torch.randn(rows, 512)
    wanted = F.linear(x, linear.weight.float(), linear.bias)
    with native.disabled() if plain else torch.inference_mode(), torch.no_grad(), Largest() as seen:
        found = linear(x)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-4)
    assert seen.elements < linear.weight.numel() / 4


def test_gradients_flow_where_they_are_asked_for() -> None:
    linear = Linear(8, 6)
    linear.weight.data = linear.weight.data.bfloat16()
    x = torch.randn(3, 8, requires_grad=True)
    linear(x).sum().backward()
    assert linear.weight.grad is not None
    torch.testing.assert_close(x.grad, linear.weight.detach().float().sum(0).expand(3, -1))
