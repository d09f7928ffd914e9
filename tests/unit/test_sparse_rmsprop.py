"""RMSprop by row: only touched rows move, each by its own count of steps."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from bytegolf.ops import native
from bytegolf.ops.sparse_rmsprop import touched
from bytegolf.training.optim import SparseRMSprop

BETA = 0.9


def gradients(steps: int = 6) -> list[torch.Tensor]:
    """Gradients of a (5, 3) table that touch row 0 always, row 1 every other step, row 2 late; 3 and 4 never."""
    found = []
    for step in range(steps):
        gradient = torch.zeros(5, 3)
        gradient[0] = torch.randn(3)
        if step % 2:
            gradient[1] = torch.randn(3)
        if step == steps - 1:
            gradient[2] = torch.randn(3)
        found.append(gradient)
    return found


def train(given: list[torch.Tensor], sparse: bool) -> tuple[torch.Tensor, SparseRMSprop]:
    table = nn.Parameter(torch.ones(5, 3))
    rows = SparseRMSprop({"table": table}, BETA)
    for step, gradient in enumerate(given):
        table.grad = gradient.to_sparse(1) if sparse else gradient.clone()
        rows.step(0.1 / (1 + step))
    return table.detach(), rows


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_row_is_adam_without_momentum_over_the_steps_that_touched_it(sparse: bool, fused: bool) -> None:
    given = gradients()
    with nullcontext() if fused else native.disabled():
        found, _ = train(given, sparse)
    for row in range(5):
        weight = nn.Parameter(torch.ones(3))
        adam = torch.optim.Adam([weight], betas=(0.0, BETA), eps=1e-12)
        for step, gradient in enumerate(given):
            if gradient[row].any():
                adam.param_groups[0]["lr"] = 0.1 / (1 + step)
                weight.grad = gradient[row].clone()
                adam.step()
        torch.testing.assert_close(found[row], weight.detach())


def test_a_first_step_moves_each_element_by_the_learning_rate() -> None:
    given = gradients(1)
    found, _ = train(given, sparse=True)
    torch.testing.assert_close(found[0], 1 - 0.1 * given[0][0].sign())
    assert found[3:].equal(torch.ones(2, 3))


def test_gradients_of_several_backward_passes_add_up() -> None:
    """As micro-batches leave them: the same row twice in one sparse tensor."""
    once = torch.sparse_coo_tensor(
        torch.tensor([[2, 4, 2]]), torch.tensor([[1.0], [5.0], [2.0]]), (6, 1), check_invariants=True
    )
    rows, summed = touched(once)
    assert rows.tolist() == [2, 4]
    assert summed[:, 0].tolist() == [3.0, 5.0]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_kernel_sums_a_row_that_is_named_often(threads: int) -> None:
    """Whichever thread's share it lies in, and in however many digits it is sorted: the same as the plain form."""
    apart = 7001  # more than a digit of the sort
    names = torch.tensor([[7, 0, 7, 3, 3, 3, 3, 3, 9, 3, 7]]) * apart
    values = torch.randn(names.shape[1], 5)
    tables = []
    torch.set_num_threads(threads)
    for plain in (False, True):
        table = nn.Parameter(torch.ones(9 * apart + 1, 5))
        rows = SparseRMSprop({"table": table}, BETA)
        for _ in range(3):
            table.grad = torch.sparse_coo_tensor(names, values, table.shape, check_invariants=True)
            with native.disabled() if plain else nullcontext():
                rows.step(0.1)
        tables.append(table.detach())
    torch.set_num_threads(1)
    torch.testing.assert_close(*tables)
    assert tables[0][1].equal(torch.ones(5))
    assert not tables[0][9 * apart].equal(torch.ones(5))


def test_the_state_is_all_there_is_to_go_on() -> None:
    given = gradients()
    whole, _ = train(given, sparse=True)
    half, before = train(given[:3], sparse=True)
    table = nn.Parameter(half.clone())
    rows = SparseRMSprop({"table": table}, BETA)
    for name, tensor in rows.state().items():
        tensor.copy_(before.state()[name])
    for step, gradient in enumerate(given[3:], 3):
        table.grad = gradient.to_sparse(1)
        rows.step(0.1 / (1 + step))
    assert table.detach().equal(whole)
