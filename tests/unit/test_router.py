"""The router: probabilities from the cosine of neighbours, boundaries, and the ratio loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bytegolf.config import RouterConfig
from bytegolf.model.routers.cosine import CosineRouter
from bytegolf.model.routers.losses import ratio_loss, surprisal_loss


def router(dim: int = 4, random: bool = False) -> CosineRouter:
    module = CosineRouter(RouterConfig(4.0), dim)
    if random:
        torch.nn.init.normal_(module.q_proj.weight)
        torch.nn.init.normal_(module.k_proj.weight)
    return module


def test_untrained_router_reads_the_cosine_of_neighbours() -> None:
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).unsqueeze(0)
    p, boundary = router(2)(x)
    # first; same direction; opposite; orthogonal (a tie is a boundary); 45 degrees
    torch.testing.assert_close(p, torch.tensor([[1, 0, 1, 0.5, 0.5 - 0.5**1.5]]))
    assert boundary.tolist() == [[True, False, True, True, False]]


def test_q_belongs_to_the_position_and_k_to_the_one_before() -> None:
    x = torch.randn(3, 9, 4)
    module = router(random=True)
    with torch.no_grad():
        p, boundary = module(x)
        q, k = x @ module.q_proj.weight.T, x @ module.k_proj.weight.T
    for b in range(3):
        for t in range(1, 9):
            cosine = float(q[b, t] @ k[b, t - 1] / (q[b, t].norm() * k[b, t - 1].norm()))
            assert float(p[b, t]) == pytest.approx((1 - cosine) / 2, abs=1e-6)
            assert bool(boundary[b, t]) == (float(p[b, t]) >= 0.5)


@given(
    length=st.integers(1, 12),
    scale=st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_p_is_a_probability_and_the_first_position_opens(
    length: int, scale: float, dtype: torch.dtype, seed: int
) -> None:
    x = (torch.randn(2, length, 4, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    x[:, 1::2] = x[:, :-1:2].clone()  # equal neighbours: the cosine rounds to just above 1
    p, boundary = router()(x)
    assert p.dtype == torch.float32
    assert bool(((p >= 0) & (p <= 1)).all())
    assert bool((p[:, 0] == 1).all())
    assert bool(boundary[:, 0].all())


def test_document_starts_open_a_chunk() -> None:
    x = torch.ones(1, 4, 4)
    first = torch.tensor([[True, False, True, False]])
    p, boundary = router()(x, first)
    torch.testing.assert_close(p, torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    assert boundary.tolist() == first.tolist()


@pytest.mark.parametrize("split", [1, 3, 8])
def test_extensions_give_the_same_as_forward(split: int) -> None:
    x = torch.randn(3, 8, 4)
    module = router(random=True)
    p, boundary = module(x)
    memory = torch.full((3, 4), float("nan"))  # what it holds before the start must not matter
    first = torch.ones(3, dtype=torch.bool)
    for start in range(0, 8, split):
        more_p, more_boundary, keys = module.extend(x[:, start : start + split], memory, first)
        torch.testing.assert_close(more_p, p[:, start : start + split])
        assert torch.equal(more_boundary, boundary[:, start : start + split])
        memory, first = keys[:, -1], torch.zeros(3, dtype=torch.bool)


def plain_ratio_loss(p: list[float], boundary: list[bool], n: float) -> float:
    share, mean = sum(boundary) / len(boundary), sum(p) / len(p)
    return n / (n - 1) * ((n - 1) * share * mean + (1 - share) * (1 - mean))


@given(
    examples=st.lists(
        st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=9), min_size=1, max_size=4
    ),
    target=st.floats(1.1, 16),
)
def test_ratio_loss_is_the_mean_over_examples_of_their_valid_positions(
    examples: list[list[tuple[float, bool]]], target: float
) -> None:
    longest = max(map(len, examples))
    p = torch.full((len(examples), longest), 0.77, dtype=torch.float64)
    boundary = torch.ones(p.shape, dtype=torch.bool)  # what stands at padding must not count
    valid = torch.zeros(p.shape, dtype=torch.bool)
    plain = []
    for row, example in enumerate(examples):
        ps, bs = [pair[0] for pair in example], [pair[1] for pair in example]
        p[row, : len(ps)] = torch.tensor(ps, dtype=torch.float64)
        boundary[row, : len(bs)], valid[row, : len(bs)] = torch.tensor(bs), True
        plain.append(plain_ratio_loss(ps, bs, target))
    wanted = sum(plain) / len(plain)
    assert float(ratio_loss(p, boundary, valid, target)) == pytest.approx(wanted, rel=1e-9)
    if bool(valid.all()):
        assert float(ratio_loss(p, boundary, None, target)) == pytest.approx(wanted, rel=1e-9)


def at_rate(n: int, share: int) -> Tensor:
    boundary = torch.zeros(1, 60, dtype=torch.bool)
    boundary[:, :share] = True
    return ratio_loss(boundary.double(), boundary, None, float(n))


@pytest.mark.parametrize("n", [2, 3, 6])
def test_ratio_loss_is_1_at_the_target_and_higher_on_both_sides(n: int) -> None:
    assert float(at_rate(n, 60 // n)) == pytest.approx(1, abs=1e-12)
    assert float(at_rate(n, 60 // n - 1)) > 1
    assert float(at_rate(n, 60 // n + 1)) > 1


def test_ratio_loss_pushes_p_towards_the_target() -> None:
    """More boundaries than wanted: the gradient lowers p; fewer: it raises it (F carries no gradient)."""
    for share, sign in ((30, 1), (5, -1)):
        boundary = torch.zeros(1, 60, dtype=torch.bool)
        boundary[:, :share] = True
        p = torch.full((1, 60), 0.5, requires_grad=True)
        (gradient,) = torch.autograd.grad(ratio_loss(p, boundary, None, 6.0), p)
        assert bool((gradient * sign > 0).all())


def test_surprisal_loss_is_minus_the_covariance_with_standardised_surprisal() -> None:
    p = torch.rand(2, 9, dtype=torch.float64, requires_grad=True)
    losses = torch.rand(2, 9, dtype=torch.float64, requires_grad=True)
    loss = surprisal_loss(p, losses)
    # losses[t] is about token t + 1, so token t's surprisal is losses[t − 1]
    s = losses.detach()[:, :-1].numpy()
    expected = -(p.detach().numpy()[:, 1:] * (s - s.mean()) / (s.std(ddof=1) + 1e-6)).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert losses.grad is None, "the model must not be taught to be surprised"
    assert p.grad is not None
    # raising p helps exactly where the token was more surprising than on average
    assert torch.equal(p.grad[:, 1:] < 0, torch.from_numpy(s > s.mean()))
    assert not p.grad[:, 0].any()
