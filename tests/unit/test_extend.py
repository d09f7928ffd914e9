"""Several tokens at once equal the same tokens one by one and all together: logits, boundaries and what is left."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import ModelMaker, shapes_unchecked
from test_step import LENGTH, every_model, ids  # noqa: F401  (ids is a fixture)
from torch import Tensor

from bytegolf.errors import BytegolfError
from bytegolf.model.embed import BOS
from bytegolf.model.lm import LanguageModel

A_FEW = [1, 1, 2, 3, 7, 8, 9, 17, 40]  # lengths around windows, rings and single steps


def by_forward(model: LanguageModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.cap(model(tokens).logits)


@every_model
def test_a_prefix_and_then_steps(name: str, reset: bool, ids: Tensor, make_model: ModelMaker) -> None:  # noqa: F811
    """Every split of 20 tokens in two, and the step behind it, in fp32."""
    model = make_model(name, reset)
    wanted = by_forward(model, ids[:, :21])
    for split in range(1, 20):
        with shapes_unchecked():
            state = model.start(4)
            found = [model.extend(ids[:, :split], state), model.extend(ids[:, split:20], state)]
            found += [model.step(ids[:, 20], state)[:, None]]
        torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=0, atol=1e-4)


@every_model
@pytest.mark.parametrize("seed", range(4))
def test_any_split_of_any_rows(name: str, reset: bool, seed: int, make_model: ModelMaker) -> None:
    """Sequences that take part in some calls only, by different lengths, with padding that must leave no trace."""
    chance = np.random.default_rng(seed)
    model = make_model(name, reset)
    model.precision = torch.float64
    tokens = torch.from_numpy(chance.integers(4, 30, (3, LENGTH)))
    tokens[torch.from_numpy(chance.random((3, LENGTH)) < 0.06)] = BOS
    wanted = by_forward(model, tokens)
    state, at = model.start(3, length=int(chance.integers(0, 50))), np.zeros(3, np.int64)
    with shapes_unchecked():
        while (at < LENGTH).any():
            rows = np.flatnonzero((chance.random(3) < 0.7) & (at < LENGTH))
            if not len(rows):
                continue
            counts = np.minimum(chance.choice(A_FEW, len(rows)), LENGTH - at[rows])
            more = torch.from_numpy(chance.integers(0, 260, (len(rows), int(counts.max()))))
            for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
                more[i, :count] = tokens[row, at[row] : at[row] + count]
            everything = len(rows) == 3 and (counts == counts[0]).all()
            found = model.extend(more, state) if everything else model.extend(more, state, rows, counts)
            for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
                expected = wanted[row, at[row] : at[row] + count]
                # a restart turns by other angles, which are fp32
                torch.testing.assert_close(found[i, :count], expected, rtol=0, atol=1e-5 if reset else 1e-10)
            at[rows] += counts


@pytest.mark.parametrize("name", ["one-level", "two-level"])
def test_boundaries_of_an_extension(name: str, ids: Tensor, make_model: ModelMaker) -> None:  # noqa: F811
    model = make_model(name)
    with torch.no_grad():
        out = model(ids)
    state = model.start(4)
    model.extend(ids[:, :33], state)
    before = state.traces
    model.extend(ids[:, 33:], state)
    boundary = torch.cat((before[0].boundary, state.traces[0].boundary), 1)
    assert torch.equal(boundary, out.traces[0].boundary)
    if name == "two-level":
        for row in range(4):
            found = [bool(b) for t in (before[1], state.traces[1]) for b in t.boundary[row, : t.counts[row]]]
            assert found == out.traces[1].boundary[row][: len(found)].tolist()
            assert len(found) == int(out.traces[0].boundary[row].sum())


def test_a_sequence_ends_a_call_inside_a_chunk(ids: Tensor, make_model: ModelMaker) -> None:  # noqa: F811
    """Rows in which no chunk opens at all keep what they came with."""
    model = make_model("one-level")
    tokens = torch.full((2, 30), 9)
    tokens[0, 0] = BOS
    tokens[1] = ids[0, :30]
    wanted = by_forward(model, tokens)
    state = model.start(2)
    found = [model.extend(tokens[:, :4], state), model.extend(tokens[:, 4:], state)]
    assert not bool(state.traces[0].boundary[0].any())
    assert bool(state.traces[0].boundary[1].any())
    torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=0, atol=1e-4)


def test_the_loop_allocates_no_cache(make_model: ModelMaker) -> None:
    """Within the capacity asked for, caches stay where they are; beyond it they grow."""
    model = make_model("flat")
    state = model.start(1, length=90)
    blocks = state.network.blocks  # type: ignore[union-attr]
    places = [cache.keys.data_ptr() for cache in blocks]
    with shapes_unchecked():
        for token in range(90):
            model.step(torch.tensor([4 + token]), state)
        assert [cache.keys.data_ptr() for cache in blocks] == places
        model.step(torch.tensor([4]), state)
    assert blocks[0].keys.shape[2] == 180


@pytest.mark.parametrize("cuts", [[50], [1, 20, 50], [7, 8, 9, 30, 50]])
def test_a_fixed_capacity_holds_across_calls(cuts: list[int], ids: Tensor, make_model: ModelMaker) -> None:  # noqa: F811
    model = make_model("two-level")
    model.set_capacity("fixed", 5.0)
    with torch.no_grad():
        out = model(ids[:, :50])
    assert all(bool(trace.truncated().any()) for trace in out.traces)
    state = model.start(4, length=50)
    found = [model.extend(ids[:, a:b], state) for a, b in itertools.pairwise([0, *cuts])]
    torch.testing.assert_close(torch.cat(found, 1), model.cap(out.logits), rtol=0, atol=1e-4)
    with pytest.raises(BytegolfError, match="started for sequences of 50 tokens"):
        model.extend(ids[:, :2], state)
