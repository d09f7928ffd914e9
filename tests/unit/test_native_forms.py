"""Native kernels against the plain forms: any shape in the dtypes that models use, whole models, and training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import ModelMaker, shapes_unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bytegolf.config import OptimConfig
from bytegolf.model.lm import LanguageModel
from bytegolf.model.stack import Stream
from bytegolf.ops import native
from bytegolf.ops.add_norm import add_norm
from bytegolf.ops.autograd import wide
from bytegolf.ops.boundary import boundary_probability
from bytegolf.ops.cross_entropy import softcap_cross_entropy
from bytegolf.ops.embedding import normed_embedding
from bytegolf.ops.gated_norm import gated_norm
from bytegolf.ops.relu_squared import relu_squared
from bytegolf.ops.rms_norm import rms_norm
from bytegolf.ops.swiglu import swiglu
from bytegolf.training.optim import Optimizer

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}
"""Of the largest value: plain forms round between their passes."""


def joined(x: Tensor, y: Tensor, s: Tensor, z: Tensor, w: Tensor, x0: Tensor, m: Tensor) -> Tensor:
    stream, normed = Stream(x).plus(y, s).plus(z, w).read(x0, m)
    return torch.cat((stream.base, normed), -1)


def added(x: Tensor, branch: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor:
    total, normed = add_norm(x.to(wide(dtype)), branch, gain, 1e-5, dtype)
    return torch.cat((total, normed), -1)


def results(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The value and the gradients under gradients drawn at random, the same each time."""
    inputs = tuple(t.detach().clone().requires_grad_() for t in inputs)
    out = function(*inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights.to(out.dtype))]


dtypes = st.sampled_from(list(TOLERANCE))


@settings(derandomize=True)
@given(rows=st.integers(1, 70), width=st.integers(1, 70), dtype=dtypes, cap=st.sampled_from([0.0, 2.0, 30.0]))
def test_native_is_plain_for_any_shape(rows: int, width: int, dtype: torch.dtype, cap: float) -> None:
    torch.manual_seed(rows * 71 + width)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(dtype)

    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    scales = [torch.randn(width, dtype=parameters) for _ in range(2)]
    mix = torch.randn(2, width, dtype=parameters)
    ids = torch.randint(width, (rows,))
    x, y, z, x0 = (values(2, rows, width) for _ in range(4))
    for function, inputs in (
        (joined, (x, y, scales[0], z, scales[1], x0, mix)),
        (rms_norm, (x,)),
        (relu_squared, (x,)),
        (boundary_probability, (x, y)),
        (lambda y, z, gain: gated_norm(y, z, gain, 1e-5), (x, y, scales[0])),
        (lambda y: swiglu(torch.cat((y, y), -1)), (x,)),
        (lambda y, z, gain: added(y, z, gain, dtype), (x, y, scales[0])),
        (lambda logits: softcap_cross_entropy(logits, ids, cap), (values(rows, width) * 3,)),
        (lambda w: normed_embedding(torch.cat((ids, ids)), w, dtype), (mix.new_ones(rows, 1) * mix[:1],)),
    )[: 8 if rows != width else 9]:
        ours = results(function, inputs)
        with native.disabled():
            plain = results(function, inputs)
        for got, wanted in zip(ours, plain, strict=True):
            assert got.dtype == wanted.dtype
            near = TOLERANCE[dtype] * max(1.0, float(wanted.abs().max()))
            if len(inputs) > 2 and got.ndim < 3:  # a scale's gradient sums rounded terms over all rows; they may cancel
                near *= 2
            torch.testing.assert_close(got, wanted, rtol=0, atol=near)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_rows(threads: int) -> None:
    """More rows than one thread is given: sums over rows are complete, whatever their number."""
    x, y, z, x0 = (torch.randn(301, 67) for _ in range(4))
    scale, mix = torch.randn(67), torch.randn(2, 67)
    inputs = (x, y, scale, z, scale, x0, mix)
    with native.disabled():
        plain = results(joined, inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = results(joined, inputs)
        again = results(joined, inputs)
    finally:
        torch.set_num_threads(before)
    for got, same, wanted in zip(ours, again, plain, strict=True):
        assert torch.equal(got, same)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-4)


def losses_and_gradients(model: LanguageModel, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    out = model(ids[:, :-1])
    losses = model.losses(out, ids[:, 1:])
    model.objective(out, losses).backward()
    return losses.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def distance(ours: list[Tensor], wanted: list[Tensor]) -> float:
    """|ours − wanted| / |wanted|, all of them as one vector."""
    a, b = (torch.cat([t.flatten().double() for t in tensors]) for tensors in (ours, wanted))
    return float((a - b).norm() / b.norm())


def test_a_model_is_the_same(tiny: str, make_model: ModelMaker) -> None:
    model = make_model(tiny, reset_at_bos=True)
    ids = torch.randint(0, 260, (3, 130))  # more positions than the alphabet has rows
    losses, ours = losses_and_gradients(model, ids)
    with native.disabled():
        plain_losses, plain = losses_and_gradients(model, ids)
    torch.testing.assert_close(losses, plain_losses, rtol=0, atol=2e-5)
    for got, wanted in zip(ours, plain, strict=True):
        if wanted.numel():
            assert distance([got], [wanted]) < 1e-4


@pytest.mark.parametrize("name", ["flat", "flat-local"])
def test_a_model_in_bf16_is_as_near_to_fp32(name: str, make_model: ModelMaker) -> None:
    """(A router's boundaries fall the other way here and there, so that models with one cannot be compared.)"""
    model, ids = make_model(name), torch.randint(0, 260, (3, 130))
    with native.disabled():
        exact_losses, exact = losses_and_gradients(model, ids)
        model.precision = torch.bfloat16
        plain_losses, plain = losses_and_gradients(model, ids)
    losses, ours = losses_and_gradients(model, ids)
    assert distance([losses], [exact_losses]) < 1.2 * distance([plain_losses], [exact_losses])
    assert distance(ours, exact) < 1.2 * distance(plain, exact)


def test_training_is_the_same(make_model: ModelMaker) -> None:
    """Twenty steps from one seed: both curves fall, side by side."""
    ids = torch.randint(97, 110, (4, 65), generator=torch.Generator().manual_seed(5))

    def curve() -> list[float]:
        model = make_model("one-level")
        optimizer = Optimizer(model, OptimConfig(muon_lr=0.01, embed_lr=0.01, scalar_lr=0.01))
        means = []
        for step in range(20):
            losses, _ = losses_and_gradients(model, ids)
            means.append(float(losses.mean()))
            optimizer.step(1.0, step)
        return means

    with shapes_unchecked():
        ours = curve()
        with native.disabled():
            plain = curve()
    assert plain[-1] < 0.8 * plain[0]
    assert max(abs(a - b) for a, b in zip(ours[:5], plain[:5], strict=True)) < 1e-3
    assert max(abs(a - b) for a, b in zip(ours, plain, strict=True)) < 0.05
