"""Products with weights as they are stored, bf16 or codes: the kernel is the plain form, no matrix becomes fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bytegolf.artifact.quantize import dequantize_rows, quantize_rows
from bytegolf.model.layers import Linear, float_state, widen
from bytegolf.ops import native
from bytegolf.ops.stored_product import FEW_ROWS, linear, stored_product, stored_product_reference, widened

KINDS = ("bf16", "codes")


def stored(weight: Tensor, kind: str) -> tuple[Tensor, Tensor | None]:
    """The matrix in bf16, or as codes with a scale for each row."""
    if kind == "bf16":
        return weight.bfloat16(), None
    codes, scale = quantize_rows(weight, 8)
    return codes, scale.float()


@pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")
@settings(derandomize=True)
@given(rows=st.integers(1, 20), inputs=st.integers(1, 100), outputs=st.integers(1, 80), kind=st.sampled_from(KINDS))
def test_the_kernel_is_the_plain_form_for_any_shape(rows: int, inputs: int, outputs: int, kind: str) -> None:
    torch.manual_seed(rows * 101 + inputs)
    x, (weight, scale) = torch.randn(rows, inputs), stored(torch.randn(outputs, inputs), kind)
    found, wanted = stored_product(x, weight, scale), stored_product_reference(x.double(), weight, scale)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6 * inputs**0.5 * 10)
    for row in range(rows):  # whatever is beside it
        assert torch.equal(stored_product(x[row : row + 1], weight, scale)[0], found[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_codes_stand_for_the_weights_that_dequantising_gives(dtype: torch.dtype) -> None:
    codes, scale = quantize_rows(torch.randn(60, 40), 8)
    weight = dequantize_rows(codes, scale)
    assert torch.equal(widened(codes, scale.float(), dtype), weight.to(dtype))
    x = torch.randn(FEW_ROWS + 2, 40, dtype=dtype)
    assert torch.equal(linear(x, codes, None, scale.float()), F.linear(x, weight.to(dtype)))


@pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")
@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_a_large_matrix(kind: str) -> None:
    x, (weight, scale) = torch.randn(3, 1500), stored(torch.randn(1501, 1500), kind)
    alone = stored_product(x, weight, scale)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(stored_product(x, weight, scale), alone)
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


def layer(kind: str, inputs: int, outputs: int, bias: bool = False) -> Linear:
    """A linear map with weights as they are stored."""
    made = Linear(inputs, outputs, bias=bias)
    if kind == "codes":
        made.take_codes(*quantize_rows(made.weight.detach(), 8))
    else:
        made.weight.data = made.weight.data.bfloat16()
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, FEW_ROWS + 1])
@pytest.mark.parametrize("plain", [False, True])
def test_no_matrix_becomes_fp32(rows: int, plain: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bytegolf.ops.stored_product.PIECE", 1 << 14)
    made = layer(kind, 512, 700, bias=True)
    torch.nn.init.normal_(made.bias)  # type: ignore[arg-type]
    x = torch.randn(rows, 512)
    wanted = F.linear(x, float_state(made)["weight"].float(), made.bias)
    with native.disabled() if plain else torch.inference_mode(), torch.no_grad(), Largest() as seen:
        found = made(x)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-4)
    assert seen.elements < made.weight.numel() / 4


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_where_they_are_asked_for(kind: str) -> None:
    made = layer(kind, 8, 6)
    x = torch.randn(3, 8, requires_grad=True)
    made(x).sum().backward()
    assert (made.weight.grad is not None) == (kind == "bf16"), "codes ask for none"
    weight = float_state(made)["weight"].detach().float()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, -1))
    widen(made)
    made(x).sum().backward()
    assert made.weight.grad is not None
    assert torch.equal(made.weight.detach().float(), weight)
