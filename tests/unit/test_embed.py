"""Hash n-gram embeddings: which rows they look up, and what they may not see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytegolf.config import NgramConfig
from bytegolf.model.embed import BOS, NOTHING, NgramEmbedding

LONGEST, BITS = 5, 10
BASE, MIXER = 1_000_003, 0x9E3779B97F4A7C15  # ⌊2⁶⁴/φ⌋, the usual constant of Fibonacci hashing

ids = st.lists(st.integers(0, 65_535), min_size=LONGEST, max_size=30)


def embedding(**settings: int) -> NgramEmbedding:
    given: dict[str, Any] = {"longest": LONGEST, "bits": BITS, "dim": 4, **settings}
    return NgramEmbedding(NgramConfig(**given), 8)


def rows_of(numbers: list[int], reset: bool = False) -> torch.Tensor:
    """The rows (L, N) of a whole sequence."""
    layer = embedding()
    padded = [NOTHING] * layer.context + numbers
    return layer.rows(torch.tensor([padded]), reset)[0]


@given(ids)
def test_rows_are_a_polynomial_hash_of_the_last_n_ids(numbers: list[int]) -> None:
    """Against Python's integers, which do not wrap around by themselves."""
    found = rows_of(numbers)
    assert found.shape == (len(numbers), LONGEST - 1)
    for at in range(len(numbers)):
        for n in range(2, LONGEST + 1):
            key, power = numbers[at] + 1, 1
            for back in range(1, n):
                power = power * BASE % 2**62
                key += (numbers[at - back] + 1 if back <= at else 0) * power
            row = (key * MIXER % 2**64) >> (64 - BITS)
            assert found[at, n - 2] == ((n - 2) << BITS) + row


@given(ids, st.integers(2, LONGEST), st.integers(0, 65_535))
def test_an_n_gram_is_its_last_n_ids_and_nothing_else(numbers: list[int], n: int, other: int) -> None:
    changed = numbers.copy()
    changed[-n - 1 : -n] = [other] if len(numbers) > n else []
    assert rows_of(numbers)[-1, : n - 1].equal(rows_of(changed)[-1, : n - 1])


def test_each_of_the_last_n_ids_counts() -> None:
    text = list(range(10, 10 + LONGEST))
    for back in range(LONGEST):
        changed = text.copy()
        changed[-1 - back] += 1
        same = rows_of(text)[-1] == rows_of(changed)[-1]
        assert same.tolist() == [n <= back for n in range(2, LONGEST + 1)]


@given(ids, ids)
def test_a_document_starts_afresh_where_the_model_does(before: list[int], after: list[int]) -> None:
    """Even when the document before contains BOS itself; without resets the n-grams cross it."""
    document = [BOS, *after]
    crossing = rows_of([*before, *document], reset=True)[len(before) :]
    assert crossing.equal(rows_of(document, reset=True))
    assert not rows_of([*before, *document])[len(before)].equal(rows_of(document)[0])


def test_an_unseen_n_gram_adds_nothing_and_a_seen_one_its_row() -> None:
    layer = embedding()
    text = torch.tensor([[NOTHING] * layer.context + [5, 6, 7]])
    assert not layer(text, False, torch.float32).any()
    row = layer.rows(text, False)[0, 2, 1]
    with torch.no_grad():
        layer.table[row] = torch.arange(4.0)
    out = layer(text, False, torch.float32)[0]
    weight = layer.proj.weight[:, 4:8]  # the second length's part of the map
    torch.testing.assert_close(out[2], weight @ torch.arange(4.0))
    assert not out[:2].any()


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_are_those_of_the_rows_alone(sparse: bool) -> None:
    layer = embedding()
    layer.sparse_gradients = sparse
    text = torch.randint(0, 20, (2, 12))
    layer(text, False, torch.float32).square().sum().backward()
    layer.zero_grad()
    torch.nn.init.normal_(layer.table)
    layer(text, False, torch.float32).sum().backward()
    gradient = layer.table.grad
    assert gradient is not None
    assert gradient.is_sparse == sparse
    used = set(layer.rows(text, False).flatten().tolist())
    assert set(gradient.to_dense().any(1).nonzero()[:, 0].tolist()) == used


def test_dropout_leaves_out_whole_rows_in_training_and_makes_up_for_them() -> None:
    layer = NgramEmbedding(NgramConfig(longest=LONGEST, bits=BITS, dim=4, dropout=0.25), 8)
    with torch.no_grad():
        layer.table.fill_(1.0)
    rows = torch.arange(4000).view(1, 1000, 4)
    torch.manual_seed(3)
    found = layer.train().look_up(rows, torch.ones(1, 1000, 4, 4))
    left_out = (found == 0).all(-1)
    assert found[~left_out].unique().tolist() == pytest.approx([2 / 0.75])  # so that the mean stays
    assert left_out.float().mean() == pytest.approx(0.25, abs=0.03)
    assert left_out.sum(-1).float().var() > 0  # each row by itself, not all of a position
    (gradient,) = torch.autograd.grad(found.sum(), layer.table)
    assert gradient[:4000][left_out.flatten()].eq(0).all()
    assert layer.eval().look_up(rows).eq(1).all()
