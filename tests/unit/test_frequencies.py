"""Integer frequencies: positive, of one sum, near the probabilities, and those that the range coder really uses."""

from __future__ import annotations

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytegolf.infer.frequencies import Decoder, Encoder, _weights, probabilities
from bytegolf.mixing.frequencies import TOTAL, quantised


def drawn(seed: int, rows: int, symbols: int, spread: float) -> np.ndarray:
    """Distributions from nearly even to all on one symbol."""
    chance = np.random.default_rng(seed)
    return probabilities(torch.from_numpy(chance.normal(0, spread, (rows, symbols))))


@given(st.integers(0, 2**32 - 1), st.integers(2, 1024), st.sampled_from([0.0, 1.0, 10.0, 500.0]))
def test_frequencies_are_positive_sum_exactly_and_are_near(seed: int, symbols: int, spread: float) -> None:
    p = drawn(seed, 3, symbols, spread)
    found = quantised(p)
    assert found.min() >= 1
    assert found.sum(1).tolist() == [TOTAL] * 3
    likeliest = p.argmax(1)[:, None] == np.arange(symbols)
    assert np.abs(found / TOTAL - p)[~likeliest].max(initial=0) <= (symbols + 1) / TOTAL
    cost = -(p * np.log2(found / TOTAL)).sum(1) + (p * np.log2(np.where(p > 0, p, 1))).sum(1)
    assert (cost < 2 * symbols / TOTAL * np.log2(np.e)).all(), "bits a symbol above the entropy"


def test_the_native_softmax_is_torchs() -> None:
    """fp32 logits, from a given id on; what is hopeless is not quite 0, as its exponential ends at e^−700."""
    logits = torch.randn(5, 40) * torch.tensor([[0.0], [1.0], [10.0], [100.0], [1000.0]])
    wanted = torch.softmax(logits[:, 4:].double(), -1).numpy()
    np.testing.assert_allclose(probabilities(logits, 4), wanted, rtol=4e-15, atol=1e-300)


def test_the_coder_uses_exactly_these_frequencies() -> None:
    """The symbol at the first and last quantile of each frequency, read by a coder whose state is the quantile."""
    frequencies = quantised(drawn(1, 1, 256, 3.0))
    ends = frequencies[0].cumsum()
    family = constriction.stream.model.Categorical(_weights(frequencies)[0], perfect=False)
    for symbol in range(256):
        for quantile in (ends[symbol] - frequencies[0, symbol], ends[symbol] - 1):
            coder = constriction.stream.stack.AnsCoder(np.array([quantile, 1], np.uint32))
            assert coder.decode(family) == symbol


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 5]), st.sampled_from([2, 256, 1024]), st.integers(0, 40))
def test_symbols_come_back_and_cost_what_they_should(seed: int, rows: int, symbols: int, steps: int) -> None:
    chance = np.random.default_rng(seed)
    tables = [quantised(drawn(seed + step, rows, symbols, 3.0)) for step in range(steps)]
    said = [chance.integers(0, symbols, rows) for _ in tables]
    encoder = Encoder()
    for table, row in zip(tables, said, strict=True):
        encoder.code(table, row)
    decoder = Decoder(encoder.payload())
    nothing = np.zeros(rows, np.int64)
    assert [decoder.code(table, nothing).tolist() for table in tables] == [row.tolist() for row in said]
    shares = [table[np.arange(rows), row] / TOTAL for table, row in zip(tables, said, strict=True)]
    assert 8 * len(encoder.payload()) == pytest.approx(-np.log2(shares).sum(), abs=64)
