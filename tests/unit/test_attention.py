"""The native attention against the plain one: values, gradients, masks, extremes, threads."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import ModelMaker
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.attention import AttentionShape, attention, attention_reference

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"{native.why_not()}")

HEADS = AttentionShape(4, 2, 4, 0, 100.0)


def inputs(
    batch: int, length: int, heads: AttentionShape, dtype: torch.dtype, gain: float = 1.5
) -> tuple[Tensor, Tensor]:
    packed = torch.randn(batch, length, (heads.heads + 2 * heads.groups) * heads.width, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return packed, gain * (1 + torch.rand(heads.heads, dtype=wide))


def documents_of(batch: int, length: int, kind: str) -> Tensor | None:
    """None, documents in a row, or numbers that come back (as those of padding chunks do)."""
    if kind == "none":
        return None
    if kind == "rows":
        return (torch.rand(batch, length) < 0.1).cumsum(1)
    return torch.randint(0, 3, (batch, length))


def both(packed: Tensor, gain: Tensor, documents: Tensor | None, heads: AttentionShape) -> list[tuple[Tensor, Tensor]]:
    """(native, plain) of the value and of the gradients of packed and gain."""
    results = []
    weights = torch.randn(*packed.shape[:2], heads.heads * heads.width, dtype=packed.dtype)
    for function in (attention, attention_reference):
        given = [packed.detach().clone().requires_grad_(), gain.detach().clone().requires_grad_()]
        out = function(*given, documents, heads)  # type: ignore[arg-type, call-arg]
        results.append((out.detach(), *torch.autograd.grad(out, given, weights)))
    return list(zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["none", "rows", "again"])
@pytest.mark.parametrize(
    ("batch", "length", "heads"),
    [
        (2, 9, HEADS),
        (1, 1, HEADS),
        (1, 70, AttentionShape(2, 1, 6, 0, 100.0)),
        (2, 11, AttentionShape(4, 4, 4, 3, 100.0)),
        (1, 131, AttentionShape(2, 1, 2, 20, 100.0)),
        (1, 66, AttentionShape(1, 1, 18, 65, 100.0)),
    ],
)
@pytest.mark.parametrize("gain", [1.5, 30.0])
def test_gradcheck(batch: int, length: int, heads: AttentionShape, kind: str, gain: float) -> None:
    given = tuple(t.requires_grad_() for t in inputs(batch, length, heads, torch.float64, gain))
    documents = documents_of(batch, length, kind)
    assert torch.autograd.gradcheck(lambda *x: attention(*x, documents, heads), given, fast_mode=True, atol=1e-4)  # type: ignore[call-arg]


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 200),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    width=st.sampled_from([2, 4, 18, 32, 64, 72]),
    window=st.one_of(st.just(0), st.integers(1, 220)),
    kind=st.sampled_from(["none", "rows", "again"]),
    gain=st.sampled_from([1.5, 8.0]),
    seed=st.integers(0, 2**16),
)
def test_is_the_plain_form(
    batch: int, length: int, groups: int, shared: int, width: int, window: int, kind: str, gain: float, seed: int
) -> None:
    torch.manual_seed(seed)
    heads = AttentionShape(groups * shared, groups, width, window, 10_000.0)
    packed, gains = inputs(batch, length, heads, torch.float32, gain)
    documents = documents_of(batch, length, kind)
    for got, wanted in both(packed, gains, documents, heads):
        assert (got - wanted).norm() <= gain * (1e-4 + 1e-5 * wanted.norm())  # a gain's is a sum that may cancel
    with torch.no_grad():
        rounded, exact = (
            attention(packed.to(dtype), gains, documents, heads) for dtype in (torch.bfloat16, torch.float32)
        )
    assert (rounded - exact).norm() < 0.02 * gain * exact.norm()


@pytest.mark.parametrize("window", [0, 64, 100])
def test_bf16_is_as_near_to_the_truth_as_the_plain_form(window: int) -> None:
    heads = AttentionShape(4, 2, 64, window, 10_000.0)
    packed, gain = inputs(2, 300, heads, torch.bfloat16)
    documents = documents_of(2, 300, "rows")
    torch.manual_seed(1)
    rounded = both(packed, gain, documents, heads)
    torch.manual_seed(1)
    for (got, other), (exact, _) in zip(rounded, both(packed.float(), gain, documents, heads), strict=True):
        error, plain_error = ((t.float() - exact).norm() / exact.norm() for t in (got, other))
        assert error < 0.03
        assert error < 1.5 * plain_error or got.shape == gain.shape  # the gains' gradients are sums that cancel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gains_of_any_size(dtype: torch.dtype) -> None:
    """With and without the running maximum: scores of up to ±400, where a softmax is one key's."""
    heads = dataclasses.replace(HEADS, width=16)
    for gain in (0.0, -1.0, 3.0, 100.0):
        packed, gains = inputs(2, 150, heads, dtype, gain)
        for i, (got, wanted) in enumerate(both(packed, gains, None, heads)):
            assert got.isfinite().all()
            if i == 0 and dtype == torch.float32:
                torch.testing.assert_close(got, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [0, 20, 64, 90])
def test_later_positions_change_nothing_by_a_bit(window: int, dtype: torch.dtype) -> None:
    heads = AttentionShape(2, 1, 8, window, 100.0)
    packed, gain = inputs(1, 200, heads, dtype)
    before = attention(packed, gain, None, heads)
    for t in (0, 14, 15, 16, 63, 64, 126, 127, 128, 198):
        changed = packed.clone()
        changed[:, t + 1 :] = torch.randn_like(changed[:, t + 1 :]) * 100
        after = attention(changed, gain, None, heads)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert torch.equal(attention(packed[:, : t + 1], gain, None, heads), before[:, : t + 1])


@pytest.mark.parametrize("window", [0, 20, 64])
def test_gradients_reach_exactly_what_is_seen(window: int) -> None:
    heads = AttentionShape(2, 1, 8, window, 100.0)
    packed, gain = inputs(1, 200, heads, torch.float32)
    packed.requires_grad_()
    documents = (torch.arange(200) >= 40).long().unsqueeze(0)
    out = attention(packed, gain, documents, heads)
    for t in (0, 5, 39, 40, 41, 127, 128, 199):
        (gradient,) = torch.autograd.grad(out[0, t].sum(), packed, retain_graph=True)
        values = gradient[0, :, -heads.width :].abs().sum(1) > 0
        oldest = max(0 if t < 40 else 40, t - window + 1 if window else 0)
        assert values.nonzero().flatten().tolist() == list(range(oldest, t + 1))


def test_a_window_sees_no_further_in_a_long_sequence() -> None:
    """And distances are all that rotary positions add, so the end of a sequence is a sequence."""
    heads = AttentionShape(2, 1, 16, 64, 10_000.0)
    packed, gain = inputs(1, 5000, heads, torch.float32)
    whole = attention(packed, gain, None, heads)
    torch.testing.assert_close(
        whole[:, -300:], attention(packed[:, -363:], gain, None, heads)[:, 63:], rtol=0, atol=1e-3
    )


def test_threads_change_nothing() -> None:
    heads = AttentionShape(4, 2, 8, 0, 100.0)
    packed, gain = inputs(3, 130, heads, torch.bfloat16)

    def run() -> tuple[Tensor, ...]:
        given = [packed.clone().requires_grad_(), gain.clone().requires_grad_()]
        out = attention(*given, None, heads)  # type: ignore[arg-type, call-arg]
        return (out.detach(), *torch.autograd.grad(out.float().square().sum(), given))

    alone = run()
    torch.set_num_threads(3)
    try:
        together = run()
    finally:
        torch.set_num_threads(1)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_gradients_that_are_views() -> None:
    packed, gain = inputs(2, 9, HEADS, torch.float64)
    packed.requires_grad_()
    (summed,) = torch.autograd.grad(attention(packed, gain, None, HEADS).sum(), packed)
    weights = torch.ones(2, 9, 16, dtype=torch.float64)
    (weighted,) = torch.autograd.grad(attention(packed, gain, None, HEADS), packed, weights)
    assert torch.equal(summed, weighted)


@pytest.mark.parametrize("reset", [False, True])
def test_a_model_is_the_same_without_native_kernels(tiny: str, reset: bool, make_model: ModelMaker) -> None:
    """Losses and gradients in fp64, so that no boundary falls elsewhere."""
    model = make_model(tiny, reset).double()
    model.precision = torch.float64
    ids = torch.randint(1, 40, (3, 90))

    def run() -> list[Tensor]:
        out = model(ids[:, :-1])
        loss = model.losses(out, ids[:, 1:]).mean() + out.router_loss()
        return [loss.detach(), *torch.autograd.grad(loss, [p for p in model.parameters() if p.numel()])]

    fast = run()
    with native.disabled():
        slow = run()
    for got, wanted in zip(fast, slow, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)
