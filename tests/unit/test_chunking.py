"""From chunks back to positions: the native pass and the plain form against the recurrence, one position at a time."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from bytegolf.model.chunk import EXACT, Capacity, Chunks
from bytegolf.ops import native
from bytegolf.ops.chunking import P_FLOOR


@pytest.fixture(params=["plain", "native"])
def form(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and native.why_not():
        pytest.skip(str(native.why_not()))
    return str(request.param)


def run_as(form: str) -> contextlib.AbstractContextManager[None]:
    return native.disabled() if form == "plain" else contextlib.nullcontext()


def one_by_one(z: Tensor, p: Tensor, residual: Tensor, chunks: Chunks, first: Tensor | None) -> Tensor:
    """The recurrence along the positions; the confidence is 1 + c − (c without its gradient)."""
    rows = []
    for b in range(p.shape[0]):
        running, chunk = z[b, 0], -1
        for t in range(p.shape[1]):
            if chunks.boundary[b, t]:
                chunk += 1
                weight = p[b, t].clamp(P_FLOOR, 1 - P_FLOOR)
                afresh = chunk == 0 or (first is not None and bool(first[b, t]))
                running = z[b, chunk] if afresh else weight * z[b, chunk] + (1 - weight) * running
            c = p[b, t] if chunks.boundary[b, t] else 1 - p[b, t]
            rows.append(running * (1 + c - c.detach()) + residual[b, t])
    return torch.stack(rows).view(residual.shape)


def problem(
    batch: int, length: int, width: int, rate: float, restarts: float, seed: int, capacity: Capacity = EXACT
) -> tuple[tuple[Tensor, Tensor, Tensor], Chunks, Tensor | None]:
    """z, p and residual in fp64, chunks and document starts; probabilities at and beyond the clamp among them."""
    generator = torch.Generator().manual_seed(seed)
    boundary = torch.rand(batch, length, generator=generator) < rate
    boundary[:, 0] = True
    first = (torch.rand(batch, length, generator=generator) < restarts) & boundary if restarts else None
    p = torch.rand(batch, length, generator=generator, dtype=torch.float64)
    special = torch.tensor([0.0, 1e-6, 1.0, 1 - 1e-6], dtype=torch.float64)
    p = torch.where(p < 0.3, special[(p * 1000).long() % 4], p)
    chunks = Chunks.of(boundary, capacity)
    z = torch.randn(batch, chunks.starts.shape[1], width, generator=generator, dtype=torch.float64)
    return (z, p, torch.randn(batch, length, width, generator=generator, dtype=torch.float64)), chunks, first


def passes(function: object, tensors: tuple[Tensor, ...], weights: Tensor) -> list[Tensor]:
    """The value and all gradients."""
    given = [t.clone().requires_grad_() for t in tensors]
    out = function(*given)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad(out, given, weights.to(out.dtype))]


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    width=st.sampled_from([1, 3, 16, 300]),
    rate=st.sampled_from([0.0, 0.2, 1.0]),
    restarts=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**16),
    capacity=st.sampled_from([EXACT, Capacity("bucketed"), Capacity("fixed", 6.0)]),
)
@example(batch=1, length=1, width=3, rate=0.0, restarts=0.0, seed=0, capacity=EXACT)
@example(batch=2, length=40, width=520, rate=0.5, restarts=0.3, seed=0, capacity=EXACT)
def test_dechunk_is_the_recurrence(
    batch: int, length: int, width: int, rate: float, restarts: float, seed: int, capacity: Capacity
) -> None:
    tensors, chunks, first = problem(batch, length, width, rate, restarts, seed, capacity)
    weights = torch.randn_like(tensors[2])
    wanted = passes(lambda z, p, r: one_by_one(z, p, r, chunks, first), tensors, weights)
    for name in ("plain", "native"):
        with run_as(name):
            ours = passes(lambda z, p, r: chunks.dechunk(z, p, r, first), tensors, weights)
        for got, exact in zip(ours, wanted, strict=True):
            torch.testing.assert_close(got, exact, rtol=0, atol=1e-9)


def test_gradcheck(form: str) -> None:
    """Of z and the residual: p's gradient is the straight-through estimator's, not that of the value."""
    (z, p, residual), chunks, first = problem(2, 12, 3, 0.4, 0.3, 0)
    given = (z.requires_grad_(), residual.requires_grad_())
    with run_as(form):
        assert torch.autograd.gradcheck(lambda z, r: chunks.dechunk(z, p, r, first), given)


def test_in_bf16(form: str) -> None:
    (z, p, residual), chunks, first = problem(2, 200, 8, 0.2, 0.05, 1)
    weights = torch.randn_like(residual)
    with run_as(form):
        exact = passes(lambda z, p, r: chunks.dechunk(z, p, r, first), (z, p, residual), weights)
        rounded = passes(
            lambda z, p, r: chunks.dechunk(z, p, r, first), (z.bfloat16(), p.float(), residual.bfloat16()), weights
        )
    assert [t.dtype for t in rounded] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16]
    for got, wanted in zip(rounded, exact, strict=True):
        assert (got.double() - wanted).norm() < 0.02 * wanted.norm()


def test_padding_is_never_read_and_gets_no_gradient(form: str) -> None:
    boundary = torch.zeros(2, 12, dtype=torch.bool)
    boundary[0, ::2], boundary[1, 0] = True, True
    chunks = Chunks.of(boundary)
    z, p, residual = torch.randn(2, 6, 4), torch.rand(2, 12), torch.randn(2, 12, 4)
    z[1, 1:] = 1e30
    with run_as(form):
        out, dz, dp, _ = passes(chunks.dechunk, (z, p, residual), torch.ones(2, 12, 4))
    torch.testing.assert_close(out[1], z[1, :1] + residual[1])
    assert not dz[1, 1:].any()
    assert dp.isfinite().all()


def test_select_is_the_same_in_both_forms() -> None:
    for batch, length, width in ((1, 1, 3), (3, 50, 7), (4, 600, 16)):  # the last is shared out to threads
        boundary = torch.rand(batch, length) < 0.3
        boundary[:, 0] = True
        chunks = Chunks.of(boundary)
        x = torch.randn(batch, length, width)
        weights = torch.randn(*chunks.starts.shape, width)
        fast = passes(chunks.select, (x,), weights)
        with native.disabled():
            slow = passes(chunks.select, (x,), weights)
        for got, wanted in zip(fast, slow, strict=True):
            assert torch.equal(got, wanted)
