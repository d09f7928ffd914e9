"""Hand-written primitives, plain and native: values and gradients (fp64) of the formulas, and bf16 near fp32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bytegolf.model.stack import Stream
from bytegolf.ops import native
from bytegolf.ops.boundary import boundary_probability
from bytegolf.ops.chunking import select
from bytegolf.ops.cross_entropy import softcap_cross_entropy, softcap_cross_entropy_reference
from bytegolf.ops.embedding import normed_embedding
from bytegolf.ops.fused_add_rmsnorm import (
    add_scaled,
    add_scaled_reference,
    mix_streams,
    mix_streams_reference,
)
from bytegolf.ops.relu_squared import relu_squared, relu_squared_reference
from bytegolf.ops.rms_norm import NORM_EPS, rms_norm, rms_norm_reference
from bytegolf.ops.rotary import rotary, rotary_angles, rotary_reference
from bytegolf.ops.scale_gradient import scale_gradient

B, L, D, V = 2, 5, 6, 7

BOUNDARY = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 0, 0, 1]], dtype=torch.bool)
STARTS = torch.tensor([[0, 2, 4], [0, 4, 0]])  # the second sequence has two chunks: the last entry is padding
CHUNK_OF = BOUNDARY.cumsum(1) - 1
TARGETS = torch.tensor([0, 3, 6, 6, 2])
IDS = torch.tensor([[0, 3, 6, 6, 2], [6, 0, 0, 1, 4]])


@pytest.fixture(params=["native", "plain"], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs with both forms."""
    if request.param == "native" and (reason := native.why_not()):
        pytest.skip(reason)
    with native.disabled() if request.param == "plain" else contextlib.nullcontext():
        yield request.param


def plain_rms_norm(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + NORM_EPS).sqrt()


def plain_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    u, v = x.chunk(2, -1)
    return torch.cat((u * cos + v * sin, v * cos - u * sin), -1)


def plain_cross_entropy(z: Tensor, cap: float) -> Tensor:
    return F.cross_entropy(cap * torch.tanh(z / cap) if cap else z, TARGETS, reduction="none")


def plain_boundary_probability(q: Tensor, k: Tensor) -> Tensor:
    cosine = F.cosine_similarity(q[:, 1:], k[:, :-1], dim=-1)
    return torch.cat((torch.ones_like(q[:, :1, 0]), (1 - cosine) / 2), 1)


def both(stream: Stream, normed: Tensor) -> Tensor:
    return torch.cat((stream.sum(), normed))


def plain_both(total: Tensor) -> Tensor:
    return torch.cat((total, plain_rms_norm(total)))


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def row() -> Tensor:
    return randn(B, L, D)


COS, SIN = (t.double() for t in rotary_angles(torch.arange(L), D, 10.0))
COS, SIN = COS.unsqueeze(-2), SIN.unsqueeze(-2)

# name → (ours, plain formula, inputs)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[], tuple[Tensor, ...]]]] = {
    "rms_norm": (rms_norm, plain_rms_norm, lambda: (randn(B, L, D),)),
    "rms_norm, tiny rows": (rms_norm, plain_rms_norm, lambda: (randn(B, L, D) * 1e-4,)),
    "mix": (
        mix_streams,
        lambda x, y, w: w[0] * x + w[1] * y,
        lambda: (randn(B, L, D), randn(B, L, D), randn(2, D)),
    ),
    "add_scaled": (
        add_scaled,
        lambda x, y, w: x + w * y,
        lambda: (randn(B, L, D), randn(B, L, D), randn(D)),
    ),
    "relu_squared": (relu_squared, lambda x: x.clamp(min=0).square(), lambda: (randn(B, L, D),)),
    "normed_embedding": (
        lambda w: normed_embedding(IDS, w, w.dtype),
        lambda w: plain_rms_norm(w[IDS]),
        lambda: (randn(V, D),),
    ),
    "boundary_probability": (boundary_probability, plain_boundary_probability, lambda: (row(), row())),
    "stream, one branch": (
        lambda x, y, s: both(*Stream(x).plus(y, s).read()),
        lambda x, y, s: plain_both(x + s * y),
        lambda: (row(), row(), randn(D)),
    ),
    "stream, its norm alone": (
        lambda x, y, s: Stream(x).plus(y, s).norm(),
        lambda x, y, s: plain_rms_norm(x + s * y),
        lambda: (row(), row(), randn(D)),
    ),
    "stream, mixed": (
        lambda x, x0, m: both(*Stream(x).read(x0, m)),
        lambda x, x0, m: plain_both(m[0] * x + m[1] * x0),
        lambda: (row(), row(), randn(2, D)),
    ),
    "stream, mixed with itself": (
        lambda x, m: both(*Stream(x).read(x, m)),
        lambda x, m: plain_both((m[0] + m[1]) * x),
        lambda: (row(), randn(2, D)),
    ),
    "stream, one branch, mixed": (
        lambda x, y, s, x0, m: both(*Stream(x).plus(y, s).read(x0, m)),
        lambda x, y, s, x0, m: plain_both(m[0] * (x + s * y) + m[1] * x0),
        lambda: (row(), row(), randn(D), row(), randn(2, D)),
    ),
    "stream, two branches": (
        lambda x, y, s, z, w: both(*Stream(x).plus(y, s).plus(z, w).read()),
        lambda x, y, s, z, w: plain_both(x + s * y + w * z),
        lambda: (row(), row(), randn(D), row(), randn(D)),
    ),
    "stream, two branches, mixed": (
        lambda x, y, s, z, w, x0, m: both(*Stream(x).plus(y, s).plus(z, w).read(x0, m)),
        lambda x, y, s, z, w, x0, m: plain_both(m[0] * (x + s * y + w * z) + m[1] * x0),
        lambda: (row(), row(), randn(D), row(), randn(D), row(), randn(2, D)),
    ),
    "stream, three branches": (
        lambda x, y, s: both(*Stream(x).plus(y, s).plus(x, s).plus(y, s).read()),
        lambda x, y, s: plain_both(x + 2 * s * y + s * x),
        lambda: (row(), row(), randn(D)),
    ),
    "rotary": (
        lambda x: rotary(x, COS, SIN),
        lambda x: plain_rotary(x, COS, SIN),
        lambda: (randn(B, L, 3, D),),
    ),
    "select_rows": (
        lambda x: select(x, STARTS, CHUNK_OF, BOUNDARY)[[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]],
        lambda x: x[[0, 0, 0, 1, 1], [0, 2, 4, 0, 4]],
        lambda: (randn(B, L, D),),
    ),
    "cross entropy, capped": (
        lambda z: softcap_cross_entropy(z, TARGETS, 3.0),
        lambda z: plain_cross_entropy(z, 3.0),
        lambda: (randn(5, V) * 4,),
    ),
    "cross entropy, no cap": (
        lambda z: softcap_cross_entropy(z, TARGETS, 0.0),
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
    out = mix_streams(add_scaled(x, x, scale), x, weights)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert scale.grad is not None
    assert scale.grad.dtype == torch.float32
    assert weights.grad is not None
    assert weights.grad.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_loss_of_bf16_logits_is_fp32() -> None:
    losses = softcap_cross_entropy(torch.randn(5, V).bfloat16(), TARGETS, 30.0)
    assert losses.dtype == torch.float32


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient() -> None:
    value, gradient = gradients(rms_norm, (torch.zeros(2, D),))
    assert torch.equal(value, torch.zeros(2, D))
    assert gradient.isfinite().all()


def test_padding_chunks_send_no_gradient() -> None:
    x = randn(B, L, D).requires_grad_()
    out = select(x, STARTS, CHUNK_OF, BOUNDARY)
    (gradient,) = torch.autograd.grad(out[1, 2].sum(), x)
    assert not gradient.any()


def test_scale_gradient() -> None:
    x = randn(3, D).requires_grad_()
    out = scale_gradient(x, 0.75)
    assert torch.equal(out, x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 0.75))
    assert scale_gradient(x, 1.0) is x


@every_case
def test_strided_inputs_and_gradients(name: str) -> None:
    """Views that are not contiguous give what their copies give."""
    ours, _, inputs = CASES[name]
    given = inputs()
    strided = tuple(torch.stack((t, t), -1)[..., 0].requires_grad_() for t in given)
    weights = randn(2)
    out = ours(*strided)
    got = torch.autograd.grad(torch.stack((out, out), -1) @ weights, strided, torch.ones_like(out))
    plain = tuple(t.requires_grad_() for t in given)
    wanted = torch.autograd.grad(ours(*plain), plain, torch.full_like(out, float(weights.sum())))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@every_case
def test_without_gradients(name: str) -> None:
    ours, _, inputs = CASES[name]
    given = inputs()
    wanted = ours(*(t.clone().requires_grad_() for t in given)).detach()
    with torch.inference_mode():
        assert torch.equal(ours(*given), wanted)
    with torch.no_grad():
        assert torch.equal(ours(*given), wanted)


def test_second_derivatives_are_refused() -> None:
    x = row().requires_grad_()
    (gradient,) = torch.autograd.grad(relu_squared(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_ids_out_of_range_are_refused() -> None:
    """The kernels write where ids say."""
    logits = torch.randn(5, V, requires_grad=True)
    for wrong in (-1, V):
        with pytest.raises((IndexError, RuntimeError)):
            softcap_cross_entropy(logits, torch.tensor([0, 1, 2, 3, wrong]), 30.0)
        with pytest.raises((IndexError, RuntimeError)):
            normed_embedding(torch.full((B, L), wrong), torch.randn(V, D), torch.float32)


def test_no_rows() -> None:
    x, scale = torch.zeros(0, D, requires_grad=True), torch.ones(D, requires_grad=True)
    stream, normed = Stream(x).plus(x, scale).read(x, torch.ones(2, D))
    assert normed.shape == (0, D)
    d_x, d_scale = torch.autograd.grad((stream.base.sum() + normed.sum()), (x, scale))
    assert d_x.shape == (0, D)
    assert not d_scale.any()


def test_nan_stays_nan() -> None:
    x = torch.zeros(2, 40, dtype=torch.bfloat16)
    x[1, 33] = float("nan")
    for out in (rms_norm(x), relu_squared(x), softcap_cross_entropy(x, torch.zeros(2).long(), 30.0)):
        assert out[1].isnan().any()
        assert not out[0].isnan().any()


REFERENCES: dict[str, Callable[..., Tensor]] = {
    "rms_norm": rms_norm_reference,
    "mix": mix_streams_reference,
    "add_scaled": add_scaled_reference,
    "relu_squared": relu_squared_reference,
    "rotary": lambda x: rotary_reference(x, COS, SIN),
    "cross entropy, capped": lambda z: softcap_cross_entropy_reference(z, TARGETS, 3.0),
    "cross entropy, no cap": lambda z: softcap_cross_entropy_reference(z, TARGETS, 0.0),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_what_the_compiler_traces_is_the_operation(name: str) -> None:
    ours, _, inputs = CASES[name]
    given = inputs()
    for got, wanted in zip(gradients(REFERENCES[name], given), gradients(ours, given), strict=True):
        torch.testing.assert_close(got, wanted)
