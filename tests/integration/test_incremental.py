"""A text that changes, read incrementally: what comes out is what reading all of it gives."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TinyRun, text
from conftest import shapes_unchecked

import bytegolf
from bytegolf.analyze.incremental import IncrementalReader, StateCache, _likeliest


def same(model: bytegolf.Model, reader: IncrementalReader, data: bytes) -> int:
    """Compare, in fp32; how many tokens were computed."""
    live, whole = reader.read(data), model.read(data)
    assert live.reading.data == whole.data
    np.testing.assert_allclose(live.reading.bits, whole.bits, atol=2e-3)
    assert live.reading.nats == pytest.approx(whole.nats, rel=1e-4)
    np.testing.assert_array_equal(live.reading.windows, whole.windows)
    for one, two in zip(live.reading.levels, whole.levels, strict=True):
        np.testing.assert_allclose(one.p, two.p, atol=1e-4)
        np.testing.assert_array_equal(one.boundary, two.boundary)
        np.testing.assert_array_equal(one.candidates, two.candidates)
    assert len(live.expected.ids) == live.token_starts.sum() + 1
    return live.computed


@pytest.mark.parametrize("fixture", ["tiny_run", "two_level_run", "flat_run", "soft_run", "subword_run"])
def test_whatever_is_done_to_a_text(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SPACING": 16, "BEHIND": 4, "SHORT": 32, "ROUND": 8}.items():
        monkeypatch.setattr(f"bytegolf.analyze.incremental.{name}", value)
    run: TinyRun = request.getfixturevalue(fixture)
    model, draw = bytegolf.load(run.folder, data=run.data, precision="fp32"), random.Random(4)
    reader, written = model.reader(), text(400)
    for _ in range(10):
        at, what = draw.randrange(len(written) + 1), draw.choice(["insert", "delete", "append", "end"])
        if what == "insert":
            written = written[:at] + draw.choice(["x", "the café ", "\n"]) + written[at:]
        elif what == "delete":
            written = written[:at] + written[at + draw.randrange(1, 9) :]
        else:
            written = written[: len(written) - 3] if what == "end" else written + draw.choice("abé")
        with shapes_unchecked():
            same(model, reader, written.encode())
        assert reader.read(written.encode()).computed == 0, "the same again"


def test_a_letter_more_costs_a_step(two_level_run: TinyRun) -> None:
    model = bytegolf.load(two_level_run.folder, precision="fp32")
    reader, data = model.reader(), text(600).encode()[:200]
    assert same(model, reader, data) == 201
    for size, byte in enumerate(b"letters", 1):
        assert same(model, reader, data + b"letters"[:size]) == 1, byte
    assert same(model, reader, data[:190]) <= 128, "the window that was shortened, and no other"


def test_a_fixed_capacity_is_read_whole(tiny_run: TinyRun) -> None:
    model = bytegolf.load(tiny_run.folder, precision="fp32")
    model.module.set_capacity("fixed", 8.0)
    reader, data = model.reader(), text(600).encode()[:200]
    assert not reader.stepwise
    for size in (200, 199, 60):
        same(model, reader, data[:size])


def test_the_cache_forgets_what_was_not_asked_for_the_longest(tiny_run: TinyRun) -> None:
    model = bytegolf.load(tiny_run.folder, precision="fp32")
    data = [text(600, seed).encode()[:100] for seed in range(9)]
    reader = model.reader()
    reader.read(data[0])
    cache = StateCache(4 * reader.cache.used + 100)
    reader = model.reader(cache)
    for one in data[:4]:
        reader.read(one)
    assert reader.read(data[0]).computed == 0
    reader.read(data[4])
    assert (cache.used <= cache.limit, len(cache)) == (True, 4)
    assert reader.read(data[0]).computed == 0
    assert reader.read(data[1]).computed > 0


def test_models_share_a_cache_and_not_what_is_in_it(tiny_run: TinyRun, two_level_run: TinyRun) -> None:
    cache, data = StateCache(), text(600).encode()[:300]
    models = [bytegolf.load(run.folder, precision="fp32") for run in (tiny_run, two_level_run)]
    readers = [model.reader(cache) for model in models]
    for model, reader in itertools.chain(*[zip(models, readers, strict=True)] * 2):
        same(model, reader, data)


def test_none_and_bytes_that_are_no_text(tiny_run: TinyRun, tmp_path: Path) -> None:
    model = bytegolf.load(tiny_run.folder, precision="fp32")
    empty = model.reader().read(b"")
    assert (empty.reading.data, empty.reading.nats, len(empty.expected.ids)) == (b"", 0.0, 1)
    same(model, model.reader(), bytes(range(256)))


def test_candidates_are_the_likeliest_also_where_many_are_equal() -> None:
    torch.manual_seed(1)
    coarse = torch.log_softmax((3 * torch.randn(200, 260)).bfloat16().float(), -1)
    assert (coarse.topk(9).values[:, 7] == coarse.topk(9).values[:, 8]).any(), "the eighth is one of several somewhere"
    for log_p in (coarse, torch.zeros(2, 260), torch.log_softmax(torch.randn(3, 8), -1)):
        ids, values = _likeliest(log_p, 8)
        np.testing.assert_array_equal(values, log_p.topk(8).values)
        np.testing.assert_array_equal(np.take_along_axis(log_p.numpy(), ids.astype(np.int64), -1), values)
        assert all(len(set(row)) == 8 for row in ids.tolist())
