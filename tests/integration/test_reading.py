"""Reading a text with a model: bits as ``eval`` counts them, boundaries as the router's record has them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TinyRun, text
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.analyze.reading import Reading, read, read_text
from bytegolf.artifact.loading import LoadedModel, load_own
from bytegolf.data.dataset import open_split
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.boundaries import BoundaryStats, collector
from bytegolf.evaluate.score import score

RUNS = ("tiny_run", "two_level_run", "subword_run", "flat_run")


def opened(request: pytest.FixtureRequest, name: str) -> tuple[LoadedModel, Path]:
    run: TinyRun = request.getfixturevalue(name)
    return load_own(run.folder, run.data, precision="fp32"), run.data


def read_with(one: LoadedModel, data: bytes) -> Reading:
    return read_text(one.model, one.tokenizer, data, one.config.train.seq_len)


@pytest.mark.parametrize("name", RUNS)
def test_bits_and_boundaries_are_those_of_eval(request: pytest.FixtureRequest, name: str) -> None:
    one, data = opened(request, name)
    stream = open_split(data, one.tokenizer.name, "val", one.tokenizer.vocab_size)
    length = one.config.train.seq_len
    targets = 5 * length
    stats = BoundaryStats()
    observe = collector(stats, one.tokenizer)
    total = score(
        one.model, stream, one.tokenizer, length, limit=targets, observe=observe if name != "flat_run" else None
    )
    found = read(one.model, one.tokenizer, stream.slice(0, targets + 1), length)
    assert found.nats == pytest.approx(total.nats, rel=1e-5)
    if name == "flat_run":
        assert found.levels == []
        return
    inside = read(one.model, one.tokenizer, stream.slice(0, targets), length)
    # of a window's first token eval drops the leading space, as it does not see what comes before
    assert replace(inside.stats(0).figures(), bytes=stats.bytes) == stats.figures()
    assert not any(level.chosen[inside.windows[inside.windows < len(inside.data)]].any() for level in inside.levels)


def test_a_tokens_bits_are_shared_out_among_its_bytes(subword_run: TinyRun) -> None:
    one = load_own(subword_run.folder, subword_run.data)
    found = read_with(one, text(600).encode())
    assert found.bits.sum(dtype=np.float64) == pytest.approx(found.nats / math.log(2), rel=1e-4)
    level = found.levels[0]
    starts = np.isfinite(level.p)
    assert starts.sum() < len(found.data)  # p belongs to the first byte of a token
    assert not (level.candidates & ~starts).any()


def test_an_inner_chunk_starts_where_an_outer_one_does(two_level_run: TinyRun) -> None:
    one = load_own(two_level_run.folder)
    with torch.no_grad():  # a trained router's rates, without training one
        for module in one.model.levels():
            module.router.load_state_dict(
                {key: value + torch.randn_like(value) for key, value in module.router.state_dict().items()}
            )
    outer, inner = read_with(one, text(3000).encode()).levels
    assert 0 < inner.chosen.sum() < outer.chosen.sum()
    assert not (inner.chosen & ~outer.boundary).any()
    assert np.array_equal(np.isfinite(inner.p) & outer.candidates, inner.candidates)
    assert (inner.p[inner.chosen] >= 0.5).all()


@settings(max_examples=10)
@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_can_be_read(tiny_run: TinyRun, data: bytes) -> None:
    found = read_with(load_own(tiny_run.folder), data)
    assert found.data == data
    assert np.isfinite(found.bits).all()
    assert found.levels[0].boundary[0]
    assert found.head(7).data == data[:7]


def test_nothing_to_read_and_no_such_level(tiny_run: TinyRun) -> None:
    one = load_own(tiny_run.folder)
    with pytest.raises(BytegolfError, match="is empty"):
        read_with(one, b"")
    with pytest.raises(BytegolfError, match="levels 0 to 0, not 1"):
        read_with(one, b"a").level(1)
