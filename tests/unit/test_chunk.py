"""Chunks: layout, selection and expansion against plain Python; smoothing against its recurrence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from bytegolf.model.chunk import Chunks
from bytegolf.ops.chunking import P_FLOOR, confidence, expand, smooth, smoothing_weight


@st.composite
def boundaries(draw: st.DrawFn) -> list[list[bool]]:
    """A batch of rows of equal length whose first entry is True."""
    length = draw(st.integers(1, 24))
    row = st.lists(st.booleans(), min_size=length - 1, max_size=length - 1)
    rate = draw(st.sampled_from(["mixed", "none", "all"]))
    rows = draw(st.lists(row, min_size=1, max_size=4))
    if rate != "mixed":  # only one chunk, or a chunk a position, beside rows that chunk freely
        rows[0] = [rate == "all"] * (length - 1)
    return [[True, *rest] for rest in rows]


def plain_starts(row: list[bool]) -> list[int]:
    return [position for position, opens in enumerate(row) if opens]


@given(rows=boundaries())
def test_layout(rows: list[list[bool]]) -> None:
    chunks = Chunks.of(torch.tensor(rows))
    starts = [plain_starts(row) for row in rows]
    assert chunks.counts.tolist() == [len(s) for s in starts]
    assert chunks.starts.shape == (len(rows), max(map(len, starts)))
    for row, of_row in enumerate(starts):
        count = len(of_row)
        assert chunks.starts[row, :count].tolist() == of_row
        assert chunks.valid[row].tolist() == [c < count for c in range(chunks.starts.shape[1])]
        assert chunks.chunk_of[row].tolist() == [sum(start <= t for start in of_row) - 1 for t in range(len(rows[row]))]


@given(rows=boundaries())
def test_select_takes_starts_and_expand_gives_back_to_the_whole_chunk(rows: list[list[bool]]) -> None:
    chunks = Chunks.of(torch.tensor(rows))
    x = torch.randn(len(rows), len(rows[0]), 3)
    selected, values, expanded = (
        chunks.select(x),
        chunks.select_values(x[..., 0]),
        expand(chunks.select(x), chunks.chunk_of),
    )
    for row, opens in enumerate(rows):
        latest = 0
        for chunk, start in enumerate(plain_starts(opens)):
            assert torch.equal(selected[row, chunk], x[row, start])
            assert values[row, chunk] == x[row, start, 0]
        for t, is_start in enumerate(opens):
            latest = t if is_start else latest
            assert torch.equal(expanded[row, t], x[row, latest])


@given(rows=boundaries())
def test_gradients_of_select_and_expand(rows: list[list[bool]]) -> None:
    """Against plain indexing; expand's gradient sums over the chunk's positions and never reaches padding."""
    chunks = Chunks.of(torch.tensor(rows))
    batch, length = len(rows), len(rows[0])
    x = torch.randn(batch, length, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(batch, length, 2, dtype=torch.float64)
    z = chunks.select(x)
    z.retain_grad()
    (expand(z, chunks.chunk_of) * weights).sum().backward()
    assert x.grad is not None
    assert z.grad is not None
    for row, opens in enumerate(rows):
        bounds = [*plain_starts(opens), length]
        for t in range(length):
            summed = torch.zeros(2, dtype=torch.float64)
            if opens[t]:
                summed = weights[row, t : bounds[bounds.index(t) + 1]].sum(0)
            torch.testing.assert_close(x.grad[row, t], summed)
        assert not z.grad[row, len(bounds) - 1 :].any()


# ---------------------------------------------------------------------------------------------- smoothing


def recurrence(z: Tensor, p: Tensor, first: Tensor | None = None) -> Tensor:
    """z̄_c = P_c·z_c + (1 − P_c)·z̄_{c−1}, afresh at chunk 0 and at ``first``, one by one."""
    weight = p.clamp(P_FLOOR, 1 - P_FLOOR)
    out: list[Tensor] = []
    for c in range(z.shape[1]):
        if c == 0:
            out.append(z[:, 0])
            continue
        running = weight[:, c, None] * z[:, c] + (1 - weight[:, c, None]) * out[-1]
        out.append(running if first is None else torch.where(first[:, c, None], z[:, c], running))
    return torch.stack(out, 1)


def problem(
    chunks: int, kind: str, restarts: float, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, chunks, 3, dtype=torch.float64, generator=generator)
    p = torch.rand(2, chunks, dtype=torch.float64, generator=generator)
    if kind == "high":  # what the router gives: a chunk starts where p ≥ ½
        p = 0.5 + p / 2
    elif kind == "extreme":
        values = torch.tensor([0.0, 1.0, 1e-6, 1 - 1e-6, 1e-4, 1 - 1e-4, 0.5], dtype=torch.float64)
        p = values[torch.randint(len(values), p.shape, generator=generator)]
    elif kind in ("0", "1"):
        p = torch.full_like(p, float(kind))
    first = torch.rand(2, chunks, dtype=torch.float64, generator=generator) < restarts
    return z.to(dtype), p.to(dtype), first


KINDS = ["any", "high", "extreme", "0", "1"]
problems = {
    "chunks": st.integers(1, 300),
    "kind": st.sampled_from(KINDS),
    "restarts": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    "seed": st.integers(0, 2**16),
}


@given(**problems)
@example(chunks=1, kind="any", restarts=0.0, seed=0)
@example(chunks=64, kind="any", restarts=0.0, seed=0)
@example(chunks=65, kind="extreme", restarts=0.3, seed=0)
@example(chunks=129, kind="0", restarts=0.0, seed=0)
@example(chunks=400, kind="extreme", restarts=0.02, seed=0)
def test_smooth_is_the_recurrence(chunks: int, kind: str, restarts: float, seed: int) -> None:
    z, p, first = problem(chunks, kind, restarts, seed)
    marks = first if restarts else None
    torch.testing.assert_close(smooth(z, p, marks), recurrence(z, p, marks), rtol=0, atol=1e-10)


@given(**problems)
@example(chunks=130, kind="extreme", restarts=0.02, seed=1)
def test_gradients_of_smooth_are_those_of_the_recurrence(chunks: int, kind: str, restarts: float, seed: int) -> None:
    z, p, first = problem(min(chunks, 150), kind, restarts, seed)
    z.requires_grad_()
    p.requires_grad_()
    weights = torch.randn(z.shape, dtype=torch.float64)
    ours = torch.autograd.grad((smooth(z, p, first) * weights).sum(), (z, p))
    plain = torch.autograd.grad((recurrence(z, p, first) * weights).sum(), (z, p), materialize_grads=True)
    torch.testing.assert_close(ours[0], plain[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(ours[1], plain[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("restarts", [0.0, 0.05, 0.5])
def test_smooth_in_fp32_is_near_fp64(kind: str, restarts: float) -> None:
    """Values and gradients: no digits are lost however far the chunks are from the start of the sequence."""
    z, p, first = problem(700, kind, restarts, 3)
    weights = torch.randn_like(z)
    results = []
    for function, dtype in ((smooth, torch.float32), (recurrence, torch.float64)):
        inputs = z.to(dtype).requires_grad_(), p.to(dtype).requires_grad_()
        out = function(*inputs, first)
        assert out.dtype == dtype
        grads = torch.autograd.grad((out * weights).sum(), inputs, materialize_grads=True)
        results.append([t.detach().double() for t in (out, *grads)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-5)


def test_smooth_in_bf16_keeps_its_weights_in_fp32() -> None:
    z, p, _ = problem(200, "high", 0.0, 4)
    got = smooth(z.bfloat16(), p.float())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), recurrence(z, p), rtol=0, atol=0.05)


@given(chunks=st.integers(2, 140), padding=st.integers(1, 80), seed=st.integers(0, 2**16))
def test_padding_never_reaches_a_real_chunk(chunks: int, padding: int, seed: int) -> None:
    z, p, first = problem(chunks + padding, "any", 0.1, seed, torch.float32)
    before = smooth(z, p, first)[:, :chunks]
    z[:, chunks:], p[:, chunks:], first[:, chunks:] = 1e30, 1.0, True
    assert torch.equal(smooth(z, p, first)[:, :chunks], before)
    torch.testing.assert_close(smooth(z[:, :chunks], p[:, :chunks], first[:, :chunks]), before, rtol=0, atol=1e-5)


def test_a_restart_forgets_whatever_came_before() -> None:
    z, p, first = problem(150, "any", 0.0, 5, torch.float32)
    first[:, 70] = True
    before = smooth(z, p, first)
    z[:, :70], p[:, :70] = -z[:, :70] * 1e3, 0.3
    torch.testing.assert_close(smooth(z, p, first)[:, 70:], before[:, 70:], rtol=0, atol=1e-5)


def test_marks_are_not_changed() -> None:
    z, p, first = problem(10, "any", 0.0, 6)
    smooth(z, p, first)
    assert not first.any()


def test_smoothing_weight_is_clamped() -> None:
    p = torch.tensor([0.0, 1e-6, 0.5, 1.0])
    torch.testing.assert_close(smoothing_weight(p), torch.tensor([1e-4, 1e-4, 0.5, 1 - 1e-4]))


def test_confidence_is_1_with_the_gradient_of_c() -> None:
    p = torch.tensor([[1.0, 0.2, 0.7, 0.4999]], requires_grad=True)
    boundary = torch.tensor([[True, False, True, False]])
    value = confidence(p, boundary)
    torch.testing.assert_close(value, torch.ones_like(value))
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert gradient.tolist() == [[1.0, -1.0, 1.0, -1.0]]
