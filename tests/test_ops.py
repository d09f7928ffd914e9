"""Hand-written primitives: values and gradients (fp64) of the plain formulas, and bf16 near fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bytegolf.model import ops
from bytegolf.model.attention import rotary_angles

B, L, D, V = 2, 5, 6, 7

BOUNDARY = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 0, 0, 1]], dtype=torch.bool)
STARTS = torch.tensor([[0, 2, 4], [0, 4, 0]])  # the second sequence has two chunks: the last entry is padding
CHUNK_OF = BOUNDARY.cumsum(1) - 1
TARGETS = torch.tensor([0, 3, 6, 6, 2])


def plain_rms_norm(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + ops.NORM_EPS).sqrt()


def plain_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    u, v = x.chunk(2, -1)
    return torch.cat((u * cos + v * sin, v * cos - u * sin), -1)


def plain_cross_entropy(z: Tensor, cap: float) -> Tensor:
    return F.cross_entropy(cap * torch.tanh(z / cap) if cap else z, TARGETS, reduction="none")


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


COS, SIN = (t.double() for t in rotary_angles(torch.arange(L), D, 10.0))
COS, SIN = COS.unsqueeze(-2), SIN.unsqueeze(-2)

# name → (ours, plain formula, inputs)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[], tuple[Tensor, ...]]]] = {
    "rms_norm": (ops.rms_norm, plain_rms_norm, lambda: (randn(B, L, D),)),
    "rms_norm, tiny rows": (ops.rms_norm, plain_rms_norm, lambda: (randn(B, L, D) * 1e-4,)),
    "mix": (
        ops.mix,
        lambda x, y, w: w[0] * x + w[1] * y,
        lambda: (randn(B, L, D), randn(B, L, D), randn(2, D)),
    ),
    "add_scaled": (
        ops.add_scaled,
        lambda x, y, w: x + w * y,
        lambda: (randn(B, L, D), randn(B, L, D), randn(D)),
    ),
    "relu_squared": (ops.relu_squared, lambda x: x.clamp(min=0).square(), lambda: (randn(B, L, D),)),
    "rotary": (
        lambda x: ops.rotary(x, COS, SIN),
        lambda x: plain_rotary(x, COS, SIN),
        lambda: (randn(B, L, 3, D),),
    ),
    "select_rows": (
        lambda x: ops.select_rows(x, STARTS, CHUNK_OF, BOUNDARY)[[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]],
        lambda x: x[[0, 0, 0, 1, 1], [0, 2, 4, 0, 4]],
        lambda: (randn(B, L, D),),
    ),
    "cross entropy, capped": (
        lambda z: ops.softcap_cross_entropy(z, TARGETS, 3.0),
        lambda z: plain_cross_entropy(z, 3.0),
        lambda: (randn(5, V) * 4,),
    ),
    "cross entropy, no cap": (
        lambda z: ops.softcap_cross_entropy(z, TARGETS, 0.0),
        lambda z: plain_cross_entropy(z, 0.0),
        lambda: (randn(5, V) * 4,),
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def gradients(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The value, then the gradient of each input under fixed, uneven output gradients."""
    inputs = tuple(t.detach().clone().requires_grad_() for t in inputs)
    out = function(*inputs)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return (out.detach(), *torch.autograd.grad(out, inputs, weights))


@every_case
def test_value_and_gradient_of_the_plain_formula(name: str) -> None:
    ours, plain, inputs = CASES[name]
    given = inputs()
    for got, wanted in zip(gradients(ours, given), gradients(plain, given), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@every_case
def test_gradcheck(name: str) -> None:
    ours, _, inputs = CASES[name]
    scale = 1e-8 if "tiny" in name else 1e-6  # the finite difference must stay small beside the input
    assert torch.autograd.gradcheck(ours, tuple(t.requires_grad_() for t in inputs()), eps=scale, atol=1e-4)


@every_case
def test_bf16_is_near_fp32(name: str) -> None:
    ours, _, inputs = CASES[name]
    given = tuple(t.bfloat16() for t in inputs())
    for got, wanted in zip(gradients(ours, given), gradients(ours, tuple(t.float() for t in given)), strict=True):
        near = 2e-2 * float(wanted.abs().max())
        torch.testing.assert_close(got.float(), wanted, rtol=2e-2, atol=near)


@every_case
def test_inputs_are_left_alone(name: str) -> None:
    """Backward passes work in place on their own tensors only: the second one gives the same."""
    ours, _, inputs = CASES[name]
    given = tuple(t.requires_grad_() for t in inputs())
    copies = [t.detach().clone() for t in given]
    out = ours(*given)
    once = torch.autograd.grad(out.square().sum(), given, retain_graph=True)
    again = torch.autograd.grad(out.square().sum(), given)
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)
    for before, after in zip(copies, given, strict=True):
        assert torch.equal(before, after)


def test_parameters_stay_fp32_under_bf16_activations() -> None:
    scale = torch.randn(D, requires_grad=True)
    weights = torch.randn(2, D, requires_grad=True)
    x = torch.randn(B, L, D, dtype=torch.bfloat16, requires_grad=True)
    out = ops.mix(ops.add_scaled(x, x, scale), x, weights)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert scale.grad is not None
    assert scale.grad.dtype == torch.float32
    assert weights.grad is not None
    assert weights.grad.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_loss_of_bf16_logits_is_fp32() -> None:
    losses = ops.softcap_cross_entropy(torch.randn(5, V).bfloat16(), TARGETS, 30.0)
    assert losses.dtype == torch.float32


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient() -> None:
    value, gradient = gradients(ops.rms_norm, (torch.zeros(2, D),))
    assert torch.equal(value, torch.zeros(2, D))
    assert gradient.isfinite().all()


def test_padding_chunks_send_no_gradient() -> None:
    x = randn(B, L, D).requires_grad_()
    out = ops.select_rows(x, STARTS, CHUNK_OF, BOUNDARY)
    (gradient,) = torch.autograd.grad(out[1, 2].sum(), x)
    assert not gradient.any()


def test_scale_gradient() -> None:
    x = randn(3, D).requires_grad_()
    out = ops.scale_gradient(x, 0.75)
    assert torch.equal(out, x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 0.75))
    assert ops.scale_gradient(x, 1.0) is x
